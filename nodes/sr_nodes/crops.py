"""Square crops at random places, in batches that are functions of their position, cut ahead by processes."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr_nodes.pictures import to_image
from sr_nodes.types import Image
from sr_pipeline.sockets import SeedSource

UNSEEDED = SeedSource()
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Pictures(Protocol):
    """Numbered pictures, each uint8 RGB [3, H, W]."""

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

    def __getitem__(self, index: int) -> Tensor:
        rng = self.seed.rng(index)
        own = slice(self.rows.start, self.rows.stop)
        chosen = self.chosen(index, rng)[own]
        draws = torch.rand(self.batch, 4, generator=rng, dtype=torch.float64)[own].tolist()
        crops = np.empty((len(self.rows), 3, self.size, self.size), np.uint8)
        for crop, photo, draw in zip(crops, chosen, draws, strict=True):
            crop[...] = self._cut(self.photos[photo].numpy(), *draw)
        return torch.from_numpy(crops)

    def _cut(self, photo: Pixels, down: float, right: float, mirror: float, turn: float) -> Pixels:
        """A view of the photograph; the four numbers are uniform in [0, 1)."""
        top = int(down * (photo.shape[1] - self.size + 1))
        left = int(right * (photo.shape[2] - self.size + 1))
        crop = photo[:, top : top + self.size, left : left + self.size]
        if self.flips and mirror < 0.5:
            crop = crop[:, :, ::-1]
        return np.rot90(crop, int(4 * turn), axes=(1, 2)) if self.rotations else crop


def images(crops: Crops, positions: range, workers: int, device: torch.device) -> Iterator[Image]:
    """The items at these positions as Images on a device, cut by so many processes ahead of their use; 0 is none."""
    for pixels in _read(crops, positions, workers):
        # The 8-bit pixels travel, a quarter of the bytes; pinned, their copy does not wait for the device.
        sent = pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels.to(device)
        yield to_image(sent)


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
    """Processes started in here do not get Ctrl-C, from their first moment on: it is the run's, which ends them."""
    if sys.platform == "win32":  # which cannot hold a signal: there the worker's own first act must do
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts_to_the_run(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
