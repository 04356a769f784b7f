"""How much memory is free, and how much of it a network needs. No nodes."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
_UNKNOWN = 2 * 1024**3
"""Bytes taken for free where the system does not tell: Windows and macOS without psutil."""
_MUCH = 1 << 62
"""Bytes, where there is no limit."""
_CGROUPS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of v2 and v1: the controller, the limit, what is used, and what of it are cached files that the system drops when it
needs room."""
_PROBE = 32
_SIGNS = ("not enough memory", "can't allocate memory", "out of memory", "could not allocate")


def free_bytes(device: torch.device = CPU) -> int:
    """Bytes that a new tensor may take: of a CUDA device, or of this machine and its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for itself is free as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_machine(), _container())


def _machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if _has_pages() else _UNKNOWN


def _has_pages() -> bool:
    return hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names


def _container(folder: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """What the limits of this process's control group and of those around it leave, by cgroup v2 or v1; without one,
    more than there is."""
    least = _MUCH
    for controller, limit_name, used_name, inactive in _CGROUPS:
        for group in _groups(own, controller):
            at = folder / controller / group
            try:
                limit, used = ((at / name).read_text(encoding="ascii").strip() for name in (limit_name, used_name))
            except OSError:
                continue
            if limit != "max":  # v1 says 2^63 where there is no limit
                least = min(least, max(0, int(limit) - int(used) + _counter(at / "memory.stat", inactive)))
    return least


def _groups(own: Path, controller: str) -> list[PurePosixPath]:
    """This process's control group of a controller, and those around it: containers, jobs of SLURM, systemd's units."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    named = [PurePosixPath(line[2].lstrip("/")) for line in lines if controller in line[1].split(",")]
    return list(dict.fromkeys(group for name in [*named, PurePosixPath()] for group in (name, *name.parents)))


def _counter(stat: Path, name: str) -> int:
    """One number of a ``memory.stat``; 0 where it does not tell."""
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's CPU allocator and oneDNN say so in a RuntimeError's text.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def bytes_per_pixel(network: nn.Module, device: torch.device = CPU) -> float:
    """Bytes that ``network`` holds at its peak for each LR pixel, input and output counted; measured on 32 x 32."""
    peak = Peak()
    with peak, torch.no_grad():
        network(torch.zeros(1, 3, _PROBE, _PROBE, device=device))
    return max(1.0, peak.bytes / _PROBE**2)


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made inside it: ``bytes`` is the most that lived at once.

    What a kernel takes for itself meanwhile is not seen.

    >>> with Peak() as peak:
    ...     first = torch.zeros(256) + 1  # two tensors of 1024 bytes, for a moment
    ...     del first
    ...     second = torch.zeros(256)
    >>> peak.bytes
    2048
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._now = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:
                self._add(leaf.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr()
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._seen.pop(key, 0)


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses new tensors beyond a number of bytes, before they are made: for building what a file or graph describes.

    >>> with Budget(1000, "that is too much"):
    ...     torch.zeros(10**12)
    Traceback (most recent call last):
    ...
    ValueError: that is too much

    Raises:
        ValueError: there would be more; its text is ``refusal``.
    """

    def __init__(self, bytes_: int, refusal: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left, self.refusal = bytes_, refusal

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = (argument.name for argument in func._schema.arguments)  # type: ignore[attr-defined]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if "size" in given and not isinstance(args[0], Tensor):  # it makes a tensor of nothing
            self.left -= math.prod(given["size"]) * (given.get("dtype") or torch.get_default_dtype()).itemsize
            if self.left < 0:
                raise ValueError(self.refusal)
        return func(*args, **kwargs)
