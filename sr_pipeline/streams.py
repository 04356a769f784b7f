"""CUDA's streams, for nodes: whether a step is recorded as one CUDA graph, since when a tensor is there, tensors
made ahead of their use, and work beside a node's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

_NAME = "_ready_since"
_RECORDED = ContextVar("recorded", default=False)
_JOB: ContextVar[_Job | None] = ContextVar("job", default=None)
_LEAD = 4
"""Tensors made ahead whose use is on its way."""


class _Job(NamedTuple):
    """What of a recording is being recorded."""

    settled: tuple[torch.cuda.Event, ...]
    used: list[torch.cuda.Stream]


@contextmanager
def recorded() -> Iterator[None]:
    """Inside, what runs is recorded or will be: launching a kernel costs nothing later, however slow it is now."""
    before = _RECORDED.set(True)
    try:
        yield
    finally:
        _RECORDED.reset(before)


def is_recorded() -> bool:
    return _RECORDED.get()


@contextmanager
def there_since(event: torch.cuda.Event, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the tensors are there since the event."""
    tensors = list(tensors)
    for tensor in tensors:
        setattr(tensor, _NAME, event)
    try:
        yield
    finally:
        for tensor in tensors:
            delattr(tensor, _NAME)


def ready_since(tensor: Tensor) -> torch.cuda.Event | None:
    """The event since which it is there: a node's own stream need not wait longer. None where nothing is known."""
    found: torch.cuda.Event | None = getattr(tensor, _NAME, None)
    return found


@contextmanager
def joining(stream: torch.cuda.Stream, settled: tuple[torch.cuda.Event, ...]) -> Iterator[None]:
    """Amid a recording, the stream goes on after all that is done ``beside`` it inside. Models and optimizers are as
    they are since all of ``settled``."""
    job = _Job(settled, [])
    token = _JOB.set(job)
    try:
        yield
    finally:
        _JOB.reset(token)
    for other in job.used:
        stream.wait_stream(other)


@contextmanager
def beside(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """Amid a recording, inside, a stream beside the current one, for what reads nothing but models and optimizers: it
    begins when they were changed last, which is not in the job that this is called in. Else where one is, and None."""
    here, job = recorded_stream(device), _JOB.get()
    if here is None or job is None:
        yield None
        return
    stream = _own(here)
    for event in job.settled:
        stream.wait_event(event)
    job.used.append(stream)
    with torch.cuda.stream(stream):
        yield stream


def recorded_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The current one of a device, if it is recorded."""
    recorded = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.cuda.current_stream(device) if recorded else None


def priority_beside(stream: torch.cuda.Stream) -> int:
    """Of a stream for what the work on this one need not wait for at once."""
    return min(0, int(stream.priority) + 1)


@cache
def _own(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """Of this stream alone."""
    return torch.cuda.Stream(stream.device, priority=priority_beside(stream))  # type: ignore[no-untyped-call]


def prefetched(tensors: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The same tensors, on CUDA each made beside what the device does with the one before, on a stream of its own.

    One more is kept on the device, and at most ``_LEAD`` that it has yet to use. An error is raised in its turn.
    """
    if device.type != "cuda":
        yield from tensors
        return
    beside, used = _beside(device), deque[torch.cuda.Event]()
    beside.wait_stream(torch.cuda.current_stream(device))

    def one() -> tuple[Tensor | Exception | None, torch.cuda.Event]:
        with torch.cuda.stream(beside):
            made: Tensor | Exception | None
            try:
                made = next(tensors, None)
            except Exception as error:  # noqa: BLE001  whatever it is
                made = error
            return made, beside.record_event()

    made, there = one()
    while made is not None:
        if isinstance(made, Exception):
            raise made
        following = one()
        current = torch.cuda.current_stream(device)
        current.wait_event(there)
        made.record_stream(current)  # so that its memory is not used again while what reads it is on its way
        yield made
        used.append(torch.cuda.current_stream(device).record_event())
        if len(used) > _LEAD:  # else the host would go on ahead, and each batch would take new memory
            used.popleft().synchronize()
        made, there = following


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
