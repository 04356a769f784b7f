"""CUDA's streams, for nodes: whether a step is recorded as one CUDA graph, since when a tensor is there, and tensors
made ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

_NAME = "_ready_since"
_RECORDED = ContextVar("recorded", default=False)
_LEAD = 4
"""Tensors made ahead whose use is on its way."""


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
