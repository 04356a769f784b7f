"""Work beside the current stream, amid a recording: branches of the CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from sr_pipeline.streams import beside, priority_beside, recorded_stream

_BESIDE = 3
"""Streams for the gradients of weights, which nothing waits for until the pass is over."""


class Beside:
    """Amid a recording, runs work on streams beside the current one: branches of the graph. Work writes into memory of
    the current stream."""

    def __init__(self, device: torch.device, number: int = _BESIDE, calm: bool = True) -> None:
        """``calm`` is for what need not be done at once."""
        self.here = here = recorded_stream(device)
        priority = 0 if here is None else priority_beside(here) if calm else here.priority
        self.streams = () if here is None else _streams(device, number, priority)
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

    def wait(self, stream: torch.cuda.Stream | None = None) -> None:
        """The current stream, or another, goes on after all work so far."""
        for other in self.streams[: len(self.works)]:
            (stream or torch.cuda.current_stream(other.device)).wait_stream(other)

    def join(self) -> None:
        """So do the current stream and the one that all began on; and nothing is kept."""
        self.wait()
        self.wait(self.here)
        self.works.clear()

    def join_later(self, pending: list[Beside]) -> None:
        """Join when autograd's pass is over, in which this is called; whoever reads what was made before waits for what
        is ``pending``."""
        pending[:] = [self]
        if self.works:
            torch.autograd.Variable._execution_engine.queue_callback(self.join)


class Ahead:
    """Tensors that are made of a module's weights beside whatever comes before who calls for them."""

    def __init__(self, make: Callable[[], list[Tensor]], *modules: nn.Module) -> None:
        own = [module._parameters.get("weight") for module in modules]  # one that is computed may change with each call
        device = None if any(weight is None for weight in own) else cast(Tensor, own[0]).device
        with nullcontext() if device is None else beside(device) as self.stream:
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
