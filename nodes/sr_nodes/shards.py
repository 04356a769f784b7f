"""Data past memory: pictures streamed from tar shards in webdataset's format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sr_nodes.crops import UNSEEDED, Crops, check_alike, images
from sr_nodes.modules import CPU
from sr_nodes.pictures import UnreadablePicture, decoded, quiet, readable
from sr_nodes.shard_files import LIST, Index, index_path, member_name, saved_index, scanned
from sr_nodes.types import Image
from sr_pipeline.jsontext import read_json
from sr_pipeline.node import node
from sr_pipeline.paths import resolve
from sr_pipeline.sockets import SILENT, Device, InputPath, Report, Reporter, Seed, SeedSource, Start, World
from sr_pipeline.world import ALONE


@dataclass(frozen=True, eq=False)
class Shards:
    """Pictures in tar files: item i is uint8 RGB [3, H, W], read at each access. It can be pickled.

    Reading one that is damaged raises UnreadablePicture, which names the shard and the picture in it.
    """

    files: tuple[Path, ...]
    index: Index
    """[pictures, 3]: where each begins in its file, its length, both in bytes, and its shorter side in pixels."""
    first: Index
    """[files + 1]: the number of each file's first picture, and that of all pictures."""
    in_memory = False

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Tensor:
        file, (offset, length, _) = self._file(number), self.index[number].tolist()
        try:
            with readable(file):
                with file.open("rb", buffering=0) as opened:
                    opened.seek(offset)
                    data = opened.read(length)
                with quiet():
                    return decoded(data)
        except UnreadablePicture as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise UnreadablePicture(f"{self.name(number)}: {reason}") from error

    def _file(self, number: int) -> Path:
        return self.files[int(np.searchsorted(self.first, number, side="right")) - 1]

    def name(self, number: int) -> str:
        """The shard, and the picture's name in it."""
        file = self._file(number)
        return f"{file}: {member_name(file, int(self.index[number, 0]))}"

    def announce(self, numbers: Index) -> None:
        """Have the system read these ahead, where it can be told so: in the order in which they lie in their files."""
        if not hasattr(os, "posix_fadvise"):
            return
        ordered = np.sort(numbers)
        files = np.searchsorted(self.first, ordered, side="right") - 1
        for number in np.unique(files).tolist():
            with self.files[number].open("rb", buffering=0) as file:
                for offset, length, _ in self.index[ordered[files == number]].tolist():
                    os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)


@node(category="data")
def open_shards(folder: InputPath, report: Report = SILENT, world: World = ALONE) -> Shards:
    """The pictures in the tar shards of a folder, by the indices that ``sr-pipeline shards`` writes beside them.

    Shards of others in webdataset's format are read too: each file in them with a picture's suffix is one picture.
    They have no index, so their headers are read here, at each start; a picture whose own header is damaged is warned
    of by name and left out. A folder is a local or a mounted one (NFS, Lustre, s3fs); web addresses are not read.

    Args:
        folder: a folder of .tar files, not compressed.

    Raises:
        ValueError: there is no such folder, no shard or no picture in it, a shard is missing, truncated or no tar
            file, or the job that makes them has not ended; or processes that share the run found different ones.
    """
    root = resolve(folder)
    files = _found(root)
    indices: list[Index] = []
    for number, file in enumerate(files):
        indices.append(_index(file, report))
        report.progress(number + 1, len(files))
    if not sum(map(len, indices)):
        raise ValueError(f"the shards in {str(root)!r} hold no picture")
    first = np.cumsum([0, *map(len, indices)])
    shards = Shards(tuple(files), np.concatenate(indices), first)
    check_alike(world, len(shards), repr([file.name for file in files]).encode() + shards.index.tobytes())
    return shards


def _found(root: Path) -> list[Path]:
    files = sorted(root.glob("*.tar"))
    if not files:
        raise ValueError(f"there is no .tar file in {str(root)!r}; sr-pipeline shards makes them from pictures")
    if (root / LIST).exists():  # made by make_shards, hence each with an index, written after it
        try:
            listed = [root / name for name in read_json((root / LIST).read_bytes())["shards"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{root / LIST} is damaged; sr-pipeline shards makes it again") from None
        missing = [file.name for file in listed if not (file.exists() and index_path(file).exists())]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(listed)} shards in {str(root)!r} are missing, the first of them "
                f"{missing[0]}: the sr-pipeline shards that makes them has not ended; the same command goes on with it"
            )
        return listed
    return files


def _index(file: Path, report: Reporter) -> Index:
    if not index_path(file).exists():
        return scanned(file, report.warning)
    index = saved_index(file)
    if index is None:
        raise ValueError(f"{file} is truncated; copy it again, or run the sr-pipeline shards that made it once more")
    return index


@node(category="data")
def shard_crops(
    shards: Shards,
    size: Annotated[int, Field(ge=1)] = 96,
    batch: Annotated[int, Field(ge=1)] = 16,
    steps: Annotated[int, Field(ge=1)] = 1_000_000,
    buffer: Annotated[int, Field(ge=1)] = 4096,
    flips: bool = True,
    rotations: bool = True,
    workers: Annotated[int | None, Field(ge=0)] = None,
    start: Start = 0,
    seed: Seed = UNSEEDED,
    device: Device = CPU,
    world: World = ALONE,
) -> Iterator[Image]:
    """A stream of batches of square crops, one from each picture of an epoch, each an Image [batch, 3, size, size].

    An epoch takes the shards in random order and shuffles their pictures in blocks of ``buffer``: each picture is
    taken once, and pictures of one block come from neighbouring places of a few files. The last batch of an epoch goes
    on with the first pictures of the next one, whose order is another.

    Batch i depends on the run's seed, this node's id and i alone, so it goes on anywhere at no cost, with any number of
    workers. Where several processes share the run, each reads its share of every batch and nothing else.

    A picture is read when its crop is cut, and nothing is kept of it. When a block begins, the system is told what of
    the next block this process will need, in the order of the files, so that the disk reads forwards: on Linux, into
    the cache of files, of which about two blocks are in use. So a larger buffer needs no memory of the process.

    Args:
        shards: what to cut from.
        size: side of a crop in pixels; a multiple of the scale.
        batch: crops a step, of all processes together.
        steps: the length of the stream, which is the length of the whole run.
        buffer: pictures that are shuffled together; best several times as many as a shard holds.
        flips: mirror each crop left to right with probability 1/2.
        rotations: turn each crop by 0, 90, 180 or 270 degrees, with probability 1/4 each.
        workers: processes that read and cut ahead; 0 does it in this one. Without it there is one for each core, up
            to 8.

    Raises:
        ValueError: a picture is smaller than a crop or damaged, or the batch does not divide by the processes.
    """
    _check_sides(shards, size)
    crops = _Shuffled(shards, size, batch, world.share(batch), flips, rotations, seed, buffer)
    yield from images(crops, range(start, steps), workers, device)


def _check_sides(shards: Shards, size: int) -> None:
    (small,) = np.nonzero(shards.index[:, 2] < size)
    if len(small):
        shown = ", ".join(map(shards.name, small[:5].tolist())) + (f" and {len(small) - 5} more" * (len(small) > 5))
        raise ValueError(
            f"smaller than a crop of {size}x{size}: {shown}; make size smaller, or the shards again with --min-size"
        )


@dataclass(frozen=True, eq=False)
class _Shuffled(Crops):
    """Each picture once an epoch."""

    photos: Shards
    buffer: int

    def chosen(self, index: int, rng: torch.Generator) -> Sequence[int]:
        count = len(self.photos)
        places = [divmod(p, count) for p in range(index * self.batch, (index + 1) * self.batch)]
        for epoch, place in places:
            if place % self.buffer == 0:  # only one of the workers gets here
                after = place + self.buffer
                self.photos.announce(self._own(epoch, after) if after < count else self._own(epoch + 1, 0))
        return [int(self._order(epoch)[place]) for epoch, place in places]

    def _order(self, epoch: int) -> Index:
        return _order(self.photos, self.buffer, self.seed, epoch)

    def _own(self, epoch: int, begin: int) -> Index:
        """What this process needs of a block."""
        block = self._order(epoch)[begin : begin + self.buffer]
        rows = (epoch * len(self.photos) + begin + np.arange(len(block))) % self.batch
        return block[(rows >= self.rows.start) & (rows < self.rows.stop)]


@lru_cache(maxsize=2)  # a batch can lie in two epochs
def _order(shards: Shards, buffer: int, seed: SeedSource, epoch: int) -> Index:
    """The numbers of all pictures in the order of an epoch."""
    rng = replace(seed, node=f"{seed.node}/epoch").rng(epoch)
    files = torch.randperm(len(shards.files), generator=rng).tolist()
    in_files = np.concatenate([np.arange(shards.first[file], shards.first[file + 1]) for file in files])
    keys = torch.rand(len(in_files), generator=rng, dtype=torch.float64).numpy()
    return in_files[np.lexsort((keys, np.arange(len(in_files)) // buffer))]
