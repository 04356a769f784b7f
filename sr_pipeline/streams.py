"""What a node may know of a step that is recorded as one CUDA graph: that it is, and since when a tensor is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_NAME = "_ready_since"
_RECORDED = ContextVar("recorded", default=False)


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
