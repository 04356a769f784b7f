"""Square crops at random places, in batches that are functions of their position: cut here, ahead, or on a device."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr_nodes.memory import free_bytes
from sr_nodes.pictures import to_image
from sr_nodes.types import Image
from sr_pipeline.sockets import SeedSource, World
from sr_pipeline.streams import prefetched

UNSEEDED = SeedSource()
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Draw = tuple[float, float, float, float]
_SHARE = 0.25
"""Of a device's free memory, what pictures may take there."""


class Window(NamedTuple):
    """A square of a picture: its corner, whether it is mirrored left to right, and quarter turns to the left then."""

    top: int
    left: int
    mirrored: bool
    turns: int


class Pictures(Protocol):
    """Numbered pictures, each uint8 RGB [3, H, W]."""

    @property
    def in_memory(self) -> bool: ...
    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Crops(Dataset[Tensor]):
    """Item i is this process's rows of batch i of a stream, uint8 [rows, 3, size, size].

    It depends on the seed and i alone. A batch's crops come from distinct pictures; where the batch is larger than
    their number, each gives as many crops as any other, or one more.
    """

    photos: Pictures
    size: int
    batch: int
    rows: range
    flips: bool
    rotations: bool
    seed: SeedSource

    def chosen(self, index: int, rng: torch.Generator) -> Sequence[int]:
        """The picture of each row of the whole batch."""
        order = torch.randperm(len(self.photos), generator=rng)
        return order[torch.arange(self.batch) % len(order)].tolist()

    def drawn(self, index: int) -> list[tuple[int, Draw]]:
        """The picture of each own row of item i, and four numbers that are uniform in [0, 1)."""
        rng = self.seed.rng(index)
        own = slice(self.rows.start, self.rows.stop)
        chosen = self.chosen(index, rng)[own]
        draws = torch.rand(self.batch, 4, generator=rng, dtype=torch.float64)[own].tolist()
        return list(zip(chosen, draws, strict=True))

    def window(self, height: int, width: int, draw: Draw) -> Window:
        """Where in a picture of this size a crop lies, and how it is turned."""
        down, right, mirror, turn = draw
        return Window(
            int(down * (height - self.size + 1)),
            int(right * (width - self.size + 1)),
            self.flips and mirror < 0.5,
            int(4 * turn) if self.rotations else 0,
        )

    def __getitem__(self, index: int) -> Tensor:
        crops = np.empty((len(self.rows), 3, self.size, self.size), np.uint8)
        for crop, (photo, draw) in zip(crops, self.drawn(index), strict=True):
            crop[...] = self._cut(self.photos[photo].numpy(), draw)
        return torch.from_numpy(crops)

    def _cut(self, photo: Pixels, draw: Draw) -> Pixels:
        """A view of the photograph."""
        top, left, mirrored, turns = self.window(photo.shape[1], photo.shape[2], draw)
        crop = photo[:, top : top + self.size, left : left + self.size]
        if mirrored:
            crop = crop[:, :, ::-1]
        return np.rot90(crop, turns, axes=(1, 2))


class CropsOnDevice:
    """The items of ``crops``, cut on a device that holds all the pictures: uint8 [rows, 3, size, size] there.

    The pictures lie in one tensor, each as [H, W, 3]; a crop is a lattice of addresses in it, told by four numbers.
    """

    def __init__(self, crops: Crops, device: torch.device) -> None:
        self.crops = crops
        pictures = [crops.photos[number].permute(1, 2, 0) for number in range(len(crops.photos))]
        self.sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        self.first = [0, *accumulate(picture.numel() for picture in pictures)]
        self.pixels = torch.empty(self.first[-1], dtype=torch.uint8, device=device)
        for picture, first, end in zip(pictures, self.first, self.first[1:], strict=False):
            self.pixels[first:end].view(picture.shape).copy_(picture)
        self.channels = torch.arange(3, device=device).view(3, 1, 1)
        self.across = torch.arange(crops.size, device=device)

    def __getitem__(self, index: int) -> Tensor:
        corners = torch.tensor([self._corner(photo, draw) for photo, draw in self.crops.drawn(index)])
        first, down, right = to_device(corners, self.pixels.device).view(-1, 3, 1, 1, 1).unbind(1)
        rows = (first + self.channels).addcmul(down, self.across.view(-1, 1))
        return self.pixels.take(rows.addcmul(right, self.across))

    def _corner(self, photo: int, draw: Draw) -> tuple[int, int, int]:
        """Of a crop the address of its first pixel, and the way to the one below and to the one on its right."""
        height, width = self.sizes[photo]
        top, left, mirrored, turns = self.crops.window(height, width, draw)
        last = self.crops.size - 1
        first, down, right = self.first[photo] + 3 * (top * width + left), 3 * width, 3
        if mirrored:
            first, right = first + last * right, -right
        for _ in range(turns):
            first, down, right = first + last * right, -right, down
        return first, down, right


def check_alike(world: World, number: int, described: bytes) -> None:
    """Raise a ValueError where a process has other pictures than the first: each takes its rows of one list."""
    found = world.all_gather((number, sha256(described).digest()))
    other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
    if other is not None:
        raise ValueError(
            f"process {other + 1} found {found[other][0]} pictures, and the first process {found[0][0]}, not the same; "
            "give all processes the same files under the same names"
        )


def images(crops: Crops, positions: range, workers: int | None, device: torch.device) -> Iterator[Image]:
    """The items at these positions as Images on a device, cut by so many processes ahead of their use; 0 is none.

    By default a CUDA device that has room for the pictures cuts by itself; so do pictures in memory in this process,
    and for others there are as many processes as cores, up to 8.
    """
    yield from prefetched(map(to_image, _pixels(crops, positions, workers, device)), device)


def _pixels(crops: Crops, positions: range, workers: int | None, device: torch.device) -> Iterator[Tensor]:
    if workers is None and device.type == "cuda" and _has_room(device, crops.photos):
        return map(CropsOnDevice(crops, device).__getitem__, positions)
    if workers is None:
        workers = 0 if crops.photos.in_memory else own_cores(most=8)
    read = _read(crops, positions, workers)
    return (to_device(pixels, device) for pixels in read)  # as 8-bit pixels, a quarter of the bytes


def _has_room(device: torch.device, photos: Pictures) -> bool:
    """Whether the pictures, if they are in memory, fit into what is free on a device."""
    return photos.in_memory and sum(photos[n].numel() for n in range(len(photos))) <= _SHARE * free_bytes(device)


def own_cores(most: int) -> int:
    """How many cores this process has for itself, of its machine's that share the run."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on a device; pinned, their copy does not wait for it."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def _read(crops: Crops, positions: range, workers: int) -> Iterator[Tensor]:
    if not workers:
        return map(crops.__getitem__, positions)
    with _interrupts_held(), warnings.catch_warnings():
        # Python warns of fork beside threads, and torch of more workers than cores: neither is the user's to mend.
        warnings.simplefilter("ignore")
        loader = DataLoader(
            crops,
            batch_size=None,
            sampler=positions,
            num_workers=workers,
            worker_init_fn=_leave_interrupts_to_the_run,
            generator=torch.Generator(),  # its own, so that the global one does not move
        )
        return iter(loader)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started in here are not stopped with the run, from their first moment on: the run ends them.

    A terminal's Ctrl-C goes to all of a group of processes, and so does what torchrun, SLURM and Kubernetes send.
    """
    if sys.platform == "win32":  # which cannot hold a signal: there the worker's own first act must do
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts_to_the_run(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        os.setpgid(0, 0)  # a group of its own
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # by which the run ends it
