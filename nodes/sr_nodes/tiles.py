"""Enlarging pictures of any size in tiles, so that the result is that of the whole picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sr_nodes.inference import EXACT, Precision, Prepared, prepared
from sr_nodes.memory import CPU, free_bytes, is_out_of_memory
from sr_nodes.types import Generator
from sr_pipeline.sockets import SILENT, Reporter

_LEVELS = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
_SMALLEST = 16
_LARGEST = 1024
"""LR pixels: beyond it a tile gains nothing, and progress would be rare."""
_BUSY = 512 * 512
"""LR pixels that keep a CUDA device busy; smaller windows are batched up to it."""


class Box(NamedTuple):
    """A rectangle of LR pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class Layout:
    """How a picture is cut: cores that cover it once, and the window around each that the network sees."""

    height: int
    width: int
    overlap: int
    grid: int = 1

    def cores(self, box: Box, tile: int) -> list[Box]:
        """``box`` cut into nearly equal rectangles of at most ``tile`` pixels a side, up to the grid.

        >>> [core[1::2] for core in Layout(4, 10, overlap=2).cores(Box(0, 0, 4, 10), 4)]
        [(0, 4), (4, 8), (8, 10)]
        """
        return [
            Box(top, left, bottom, right)
            for top, bottom in self._cuts(box.top, box.bottom, tile)
            for left, right in self._cuts(box.left, box.right, tile)
        ]

    def _cuts(self, first: int, last: int, tile: int) -> list[tuple[int, int]]:
        count = -(-(last - first) // tile)
        size = -(-(last - first) // count)
        size = -(-size // self.grid) * self.grid
        return [(start, min(start + size, last)) for start in range(first, last, size)]

    def window(self, core: Box) -> Box:
        """The core and ``overlap`` around it, on the grid, and never beyond the picture.

        So padding enters only where the whole picture has it.
        """
        return Box(
            self._down(core.top - self.overlap),
            self._down(core.left - self.overlap),
            min(self.height, -(-(core.bottom + self.overlap) // self.grid) * self.grid),
            min(self.width, -(-(core.right + self.overlap) // self.grid) * self.grid),
        )

    def _down(self, place: int) -> int:
        return max(0, place // self.grid * self.grid)


def enlarge(
    generator: Generator,
    pixels: Tensor,
    *,
    tile: int | Literal["auto"] | None = "auto",
    overlap: int | Literal["exact"] = "exact",
    batch: int = 0,
    precision: Precision = "fp32",
    device: torch.device | None = None,
    report: Reporter = SILENT,
) -> Tensor:
    """Super-resolve a picture of any size: pixels [3, H, W] on the host to [3, scale * H, scale * W] there.

    uint8, uint16 (65535 is white) or float32 in [0, 1], and the result is of the same dtype: clamped, and rounded to
    the nearest. Only windows travel to the device, so memory grows with the picture by the picture itself alone.

    A window is a core and the receptive radius around it, clipped to the picture: the network's padding enters where
    the whole picture has it and nowhere else, and the result equals that of the whole picture up to float rounding.
    Where the radius is unbounded or over 64, windows overlap by 64, and a warning says that it is approximate. Out of
    memory, the failed windows are cut into halves, all that remain too, and a warning says so.

    Args:
        generator: the network; hand in what ``prepared`` gives where many pictures are enlarged.
        pixels: the picture.
        tile: the core's side in LR pixels; auto is the largest that half of the free memory holds beside the result,
            at most 1024; None is the whole picture.
        overlap: LR pixels around a core; exact is the receptive radius.
        batch: windows of one shape that run at once; 0 is 1 on a CPU, and what keeps a CUDA device busy.
        precision: as for ``prepared``.
        device: where the network runs; the generator's own device if not given.
        report: told of progress in LR pixels, and of approximations.

    Raises:
        ValueError: the pixels are none of those, or a number is out of range.
        MemoryError: the result does not fit into the free memory, or not even a tile of 16; its text names what needs
            less.
    """
    _check(pixels, tile, overlap, batch)
    needed, free = pixels.nbytes * generator.scale**2, free_bytes(CPU)
    if needed > free:  # else the system would end the process amid the work
        what = f"the result takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
        raise MemoryError(f"{what}; enlarge a part of the picture")
    net = prepared(generator, precision, device)
    height, width = pixels.shape[1:]
    whole = Box(0, 0, height, width)
    # The network's cost is measured only where it decides something.
    room = _room(net, pixels) if tile == "auto" or (batch == 0 and net.device.type != "cpu") else 0
    largest = max(height, width) if tile is None else _LARGEST if tile == "auto" else tile
    at_once = max(height, width) <= largest and (tile != "auto" or whole.area <= room)
    if at_once:
        layout, side = Layout(height, width, overlap=0), max(height, width)
    else:
        layout = _layout(net, height, width, overlap, report)
        side = _side(room, layout.overlap) if tile == "auto" else largest
    return _Job(net, pixels, layout, at_once, overlap, batch, room, report).run(side)


def _check(pixels: Tensor, tile: int | str | None, overlap: int | str, batch: int) -> None:
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"the pixels are {list(pixels.shape)}; wanted is [3, H, W] of at least one pixel")
    if pixels.dtype not in _LEVELS:
        raise ValueError(f"the pixels are {pixels.dtype}; wanted is uint8, uint16 or float32")
    if tile is not None and tile != "auto" and (isinstance(tile, str) or tile < 1):
        raise ValueError(f"tile is {tile!r}; give 'auto', None or at least 1")
    if overlap != "exact" and (isinstance(overlap, str) or overlap < 0):
        raise ValueError(f"overlap is {overlap!r}; give 'exact' or at least 0")
    if batch < 0:
        raise ValueError(f"batch is {batch}; give at least 1, or 0 for what suits the device")


def _layout(net: Prepared, height: int, width: int, overlap: int | str, report: Reporter) -> Layout:
    """How to cut, with a warning where the tiles will not equal the whole."""
    if net.field is None:
        margin, grid = EXACT, 16
        why, mend = f"this {net.architecture} sees farther than {EXACT} pixels, or without bound", "tile none"
    else:
        margin, grid = net.field
        why, mend = f"this {net.architecture} sees as far as {margin} pixels", "overlap exact"
    wanted = margin if isinstance(overlap, str) else overlap
    if net.field is None or wanted < margin:
        report.warning(f"tiles are approximate: {why}, and they overlap by {wanted}; give {mend} to be exact")
    return Layout(height, width, wanted, grid)


def _room(net: Prepared, pixels: Tensor) -> int:
    """LR pixels of the largest window: half of the free memory, less the result on a CPU, holds what becomes of it."""
    result = net.scale**2 * pixels.nbytes if net.device.type == "cpu" else 0
    return max(1, int((free_bytes(net.device) - result) / 2 / net.bytes_per_pixel))


def _side(room: int, overlap: int) -> int:
    return min(_LARGEST, max(_SMALLEST, int(room**0.5) - 2 * overlap))


@dataclass
class _Job:
    """One picture on its way."""

    net: Prepared
    pixels: Tensor
    layout: Layout
    whole: bool
    overlap: int | Literal["exact"]
    batch: int
    room: int
    report: Reporter

    def run(self, side: int) -> Tensor:
        height, width = self.pixels.shape[1:]
        out = torch.empty((3, self.net.scale * height, self.net.scale * width), dtype=self.pixels.dtype)
        waiting = self._sorted(self.layout.cores(Box(0, 0, height, width), side))
        done = 0
        launched: list[tuple[Box, Tensor]] = []
        while waiting:
            cores = self._alike(waiting)
            made = self._attempt(cores)
            if made is None:
                waiting = self._smaller(waiting, cores)
                continue
            waiting = waiting[len(cores) :]
            # The last windows are fetched while the device, which need not be waited for, is at these.
            _store(out, launched, self.net.scale)
            launched = list(zip(cores, made, strict=True))
            done += sum(core.area for core in cores)
            self.report.progress(done, height * width)
        _store(out, launched, self.net.scale)
        return out

    def _sorted(self, cores: list[Box]) -> list[Box]:
        """Windows of one shape beside each other."""
        return sorted(cores, key=lambda core: (self.layout.window(core).size, core))

    def _alike(self, waiting: list[Box]) -> list[Box]:
        """The next windows that run at once."""
        window = self.layout.window(waiting[0])
        count = self.batch or (1 if self.net.device.type == "cpu" else min(self.room, _BUSY) // window.area) or 1
        return list(takewhile(lambda core: self.layout.window(core).size == window.size, waiting[:count]))

    def _attempt(self, cores: list[Box]) -> list[Tensor] | None:
        """The SR of each core, on the device, in the picture's dtype; ``None`` where memory ran out."""
        try:
            return list(self._compute(cores))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, so that the error's traceback holds no tensors any more.
        if self.net.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _compute(self, cores: list[Box]) -> Iterator[Tensor]:
        windows = [self.layout.window(core) for core in cores]
        cut = [self.pixels[:, w.top : w.bottom, w.left : w.right] for w in windows]
        levels, scale = _LEVELS[self.pixels.dtype], self.net.scale
        sr = self.net(torch.stack(cut).to(self.net.device).float() / levels)
        for picture, core, window in zip(sr, cores, windows, strict=True):
            top, left = core.top - window.top, core.left - window.left
            height, width = core.size
            inner = picture[:, scale * top : scale * (top + height), scale * left : scale * (left + width)]
            yield inner if levels == 1 else (inner * levels).round_().to(self.pixels.dtype)

    def _smaller(self, waiting: list[Box], failed: list[Box]) -> list[Box]:
        """What is left to do after ``failed``: fewer at once, or else smaller cores."""
        if len(failed) > 1:
            self.batch = len(failed) // 2
            return waiting
        side = max(failed[0].size) // 2
        if side < _SMALLEST:
            raise MemoryError(
                f"not enough memory on {self.net.device} for a tile of {max(failed[0].size)} pixels; give a smaller "
                "--tile, --precision bf16 or a smaller model"
            )
        self.report.warning(f"out of memory on {self.net.device}: going on with tiles of {side}")
        if self.whole:
            self.whole = False
            height, width = self.pixels.shape[1:]
            self.layout = _layout(self.net, height, width, self.overlap, self.report)
        return self._sorted([part for core in waiting for part in self.layout.cores(core, side)])


def _store(out: Tensor, made: list[tuple[Box, Tensor]], scale: int) -> None:
    for core, sr in made:
        top, left, bottom, right = (scale * side for side in core)
        out[:, top:bottom, left:right] = sr.cpu()
