"""Work beside the current stream, amid a recording: branches of the CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from sr_pipeline.streams import beside, priority_beside, recorded_stream

_BESIDE = 3
"""Streams for the gradients of weights, which nothing waits for until the pass is over."""


class Beside:
    """Amid a recording, runs work on streams beside the current one, which waits for all of it in the end: branches of
    the graph. Work writes into memory of the current stream."""

    def __init__(self, device: torch.device, number: int = _BESIDE) -> None:
        here = recorded_stream(device)
        self.streams = () if here is None else _streams(device, number, priority_beside(here))
        self.works = list[Callable[[], None]]()
        """Kept until all is over, with what they read: its memory must not be used again before."""

    def __call__(self, work: Callable[[], None]) -> None:
        if not self.streams:
            work()
            return
        stream = self.streams[len(self.works) % len(self.streams)]
        self.works.append(work)
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            work()

    def join(self) -> None:
        for stream in self.streams[: len(self.works)]:
            torch.cuda.current_stream(stream.device).wait_stream(stream)


class Ahead:
    """Tensors that are made beside whatever comes before who calls for them."""

    def __init__(self, make: Callable[[], list[Tensor]], device: torch.device) -> None:
        with beside(device) as self.stream:
            self.made = make()
            self.there = None if self.stream is None else self.stream.record_event()

    def __call__(self) -> list[Tensor]:
        if self.there is not None:
            here = torch.cuda.current_stream(self.made[0].device)
            here.wait_event(self.there)
            for tensor in self.made:
                tensor.record_stream(here)
        return self.made


@contextmanager
def on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Inside, the stream; None is the current one."""
    if stream is None:
        yield
        return
    with torch.cuda.stream(stream):
        yield


@cache
def _streams(device: torch.device, number: int, priority: int) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device, priority=priority) for _ in range(number))  # type: ignore[no-untyped-call]
