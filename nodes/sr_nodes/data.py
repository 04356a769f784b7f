"""Photographs to train on, the stream of crops, and pairs to validate on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, overload

from pydantic import Field
from torch import Tensor

from sr_nodes.crops import UNSEEDED, Crops, check_alike, images
from sr_nodes.modules import CPU
from sr_nodes.pictures import (
    UnreadablePicture,
    decoded_bytes,
    find_pictures,
    read_pictures,
    read_pixels,
)
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.paths import resolve
from sr_pipeline.sockets import SILENT, Device, InputPath, Report, Seed, Start, World
from sr_pipeline.world import ALONE


@dataclass(frozen=True, eq=False)
class Photos(Sequence[Tensor]):
    """Photographs: item i is uint8 RGB [3, H, W], from memory or read at each access. It can be pickled.

    Reading one that has gone since it was found raises UnreadablePicture, which names it.
    """

    folder: Path
    names: tuple[str, ...]
    """Paths below the folder."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each."""
    pixels: tuple[Tensor, ...] | None = None
    """All of them decoded, or None where they are read at each access."""

    @property
    def in_memory(self) -> bool:
        return self.pixels is not None

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Photos: ...
    def __getitem__(self, index: int | slice) -> Tensor | Photos:
        if isinstance(index, slice):
            pixels = self.pixels and self.pixels[index]
            return Photos(self.folder, self.names[index], self.sizes[index], pixels)
        return self.pixels[index] if self.pixels is not None else read_pixels(self.folder / self.names[index])


@node(category="data")
def photographs(
    folder: InputPath = "sr_nodes:samples/train",
    memory_gb: Annotated[float, Field(gt=0)] = 8.0,
    report: Report = SILENT,
    world: World = ALONE,
) -> Photos:
    """The photographs of a folder and of the folders in it, in the order of their names.

    Each is decoded once, here: a damaged file is warned of by name now, rather than ending a run at step 80,000.

    Args:
        folder: a folder of pictures; sr_nodes:NAME is one that travels with the pack.
        memory_gb: the photographs are kept in memory if they need at most this many GB (1e9 bytes), at 3 bytes a
            pixel; otherwise each is read again at each use, by the workers of random_crops.

    Raises:
        ValueError: there is no such folder, it holds no picture, or none of them can be read; or processes that share
            the run found different ones.
    """
    root = resolve(folder)
    paths = find_pictures(root)
    keep = sum(map(decoded_bytes, paths)) <= memory_gb * 1e9

    def examine(pixels: Tensor) -> tuple[tuple[int, int], Tensor | None]:
        return (pixels.shape[1], pixels.shape[2]), pixels if keep else None

    names: list[str] = []
    good: list[tuple[tuple[int, int], Tensor | None]] = []
    bad: list[UnreadablePicture] = []
    for path, result in zip(paths, read_pictures(paths, examine, report.progress), strict=True):
        if isinstance(result, UnreadablePicture):
            bad.append(result)
            continue
        names.append(path.relative_to(root).as_posix())
        good.append(result)
    if not good:
        reasons = "; ".join(map(str, bad[:3]))
        raise ValueError(f"none of the {len(bad)} pictures in {str(root)!r} can be read: {reasons}")
    for error in bad:
        report.warning(f"left out: {error}")
    pixels = tuple(pixels for _, pixels in good if pixels is not None)
    photos = Photos(root, tuple(names), tuple(size for size, _ in good), pixels if keep else None)
    check_alike(world, len(photos), repr((photos.names, photos.sizes)).encode())
    return photos


@node(category="data")
def random_crops(
    photos: Photos,
    size: Annotated[int, Field(ge=1)] = 96,
    batch: Annotated[int, Field(ge=1)] = 16,
    steps: Annotated[int, Field(ge=1)] = 1_000_000,
    flips: bool = True,
    rotations: bool = True,
    workers: Annotated[int | None, Field(ge=0)] = None,
    start: Start = 0,
    seed: Seed = UNSEEDED,
    device: Device = CPU,
    world: World = ALONE,
) -> Iterator[Image]:
    """A stream of batches of square crops at random places, each an Image [batch, 3, size, size].

    Where several processes share the run, each cuts its share of every batch.

    Batch i depends on the run's seed, this node's id and i alone: not on the number of workers, nor on where the
    run started. The crops of a batch come from distinct photographs; where the batch is larger than their number,
    each gives as many crops as any other, or one more. The place in the photograph is uniform.

    Source: SRGAN (Ledig et al., 2017), section 3.2: 16 crops of 96x96 from distinct images.

    Args:
        photos: what to cut from.
        size: side of a crop in pixels; a multiple of the scale.
        batch: crops a step, of all processes together.
        steps: the length of the stream, which is the length of the whole run.
        flips: mirror each crop left to right with probability 1/2.
        rotations: turn each crop by 0, 90, 180 or 270 degrees, with probability 1/4 each.
        workers: processes that cut ahead; 0 cuts in this one. Without it, photographs in memory are copied to a CUDA
            device that has room for them and cut there, or else cut in this process; for others there is a process for
            each core, up to 8.

    Raises:
        ValueError: a photograph is smaller than a crop, or the batch does not divide by the processes.
    """
    _check_sizes(photos, size)
    crops = Crops(photos, size, batch, world.share(batch), flips, rotations, seed)
    yield from images(crops, range(start, steps), workers, device)


def _check_sizes(photos: Photos, size: int) -> None:
    small = [
        f"{name} ({width}x{height})"
        for name, (height, width) in zip(photos.names, photos.sizes, strict=True)
        if min(height, width) < size
    ]
    if small:
        shown = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        raise ValueError(f"smaller than a crop of {size}x{size}: {shown}; remove them, or make size smaller")
