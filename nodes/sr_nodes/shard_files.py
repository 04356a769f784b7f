"""Tar shards in webdataset's format, written by that library, each with an index of its pictures."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, cast

import numpy as np
import PIL.Image
from pydantic import Field
from torch import Tensor

from sr_nodes.pictures import READ, UnreadablePicture, find_pictures, is_picture, quiet, read_pictures, readable
from sr_pipeline.files import remove_stale, written_beside
from sr_pipeline.node import node
from sr_pipeline.paths import resolve
from sr_pipeline.sockets import SILENT, InputPath, OutputPath, Report, Reporter, RunDir, Socket, Start

Index = np.ndarray[Any, np.dtype[np.int64]]
ShardMade = Annotated[dict[str, int], Socket("ShardMade")]
"""How many ``shards``, ``pictures``, pictures ``left_out`` and ``bytes``."""
LIST = "shards.json"
"""Names the shards that there are to be, and tells what they are made of."""


def index_path(shard: Path) -> Path:
    """The file beside a shard that tells where its pictures are: there only if the shard is whole."""
    return shard.with_suffix(".npy")


def saved_index(shard: Path) -> Index | None:
    """What is beside a shard, as ``scanned``; None where it is missing, or the shard shorter than it says."""
    if not (index_path(shard).exists() and shard.exists()):
        return None
    try:
        index: Index = np.load(index_path(shard), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        index = np.empty(0, np.int64)
    if index.ndim != 2 or index.shape[1] != 3 or index.dtype != np.int64 or (index < 0).any():
        raise ValueError(f"{index_path(shard)} is damaged; remove it, and it is made again from the shard")
    return index if shard.stat().st_size >= index[:, :2].sum(axis=1).max(initial=0) else None


def scanned(shard: Path, warn: Callable[[str], None]) -> Index:
    """The index of a shard by its headers and its pictures' own: [pictures, 3], offset, bytes, shorter side.

    Raises:
        ValueError: it is no tar file, or truncated.
    """
    rows: list[tuple[int, int, int]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not is_picture(Path(member.name)) or member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    warn(f"left out: {shard}: {member.name}: a link, or sparse, so that its bytes are not there")
                    continue
                file = cast(IO[bytes], tar.extractfile(member))
                try:
                    rows.append((member.offset_data, member.size, _side(shard, file)))
                except UnreadablePicture as error:
                    warn(f"left out: {shard}: {member.name}: {str(error).removeprefix(f'{shard}: ')}")
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is truncated, damaged or no tar file ({error}); copy it or make it again") from error
    return np.array(rows, np.int64).reshape(-1, 3)


def _side(shard: Path, file: IO[bytes]) -> int:
    with readable(shard), quiet(), PIL.Image.open(file, formats=READ) as picture:
        return min(picture.size)


def member_name(shard: Path, offset: int) -> str:
    """The name of the file whose content begins there."""
    try:
        with tarfile.open(shard, "r:") as tar:
            return next((member.name for member in tar if member.offset_data == offset), f"byte {offset}")
    except (OSError, tarfile.TarError):
        return f"byte {offset}"


@dataclass(frozen=True)
class Part:
    """The pictures of one shard, and the place where it is to be."""

    shard: Path
    pictures: tuple[Path, ...]
    number: int
    """Of the first picture in the sorted list."""
    min_size: int


@node(category="data")
def shard_parts(
    folders: tuple[InputPath, ...],
    output: OutputPath | None = None,
    shard_mb: Annotated[float, Field(gt=0)] = 256.0,
    shard_count: Annotated[int, Field(ge=1)] = 10_000,
    min_size: Annotated[int, Field(ge=1)] = 96,
    start: Start = 0,
    run_dir: RunDir | None = None,
    report: Report = SILENT,
) -> Iterator[Part]:
    """A stream of the tar shards to make of the pictures of folders: which pictures each takes.

    That is decided by the lengths of the files alone. The list of shards is written first; until the last of them is
    there, open_shards refuses them all.

    Args:
        folders: folders of pictures, with the folders in them.
        output: the folder of the shards; null is the folder shards in the run's folder.
        shard_mb: a shard holds at most so many MB (1e6 bytes) of pictures, or one picture.
        shard_count: a shard holds at most so many pictures.
        min_size: leave out pictures whose shorter side has fewer pixels.

    Raises:
        ValueError: a folder does not exist or holds no picture, the output holds other shards, or webdataset, an
            optional extra, is not installed.
    """
    _tar_writer()  # told before the work
    found = {root: find_pictures(root) for root in map(resolve, folders)}
    paths = [path for of_root in found.values() for path in of_root]
    names = [path.relative_to(root).as_posix() for root, of_root in found.items() for path in of_root]
    sizes = [path.stat().st_size for path in paths]
    parts = _parts(sizes, int(shard_mb * 1e6), shard_count)
    target = (run_dir or Path()) / "shards" if output is None else Path(output).expanduser()
    shards = [target / f"shard-{number:06d}.tar" for number in range(len(parts))]
    _begin(target, shards, [min_size, *zip(names, sizes, strict=True)])
    for number in range(start, len(parts)):
        report.progress(number + 1, len(parts))
        part = parts[number]
        yield Part(shards[number], tuple(paths[part.start : part.stop]), part.start, min_size)


def _tar_writer() -> Any:
    try:
        return importlib.import_module("webdataset").TarWriter
    except ImportError as error:
        raise ValueError(f"shards are written by webdataset ({error}); pip install 'sr-pipeline[shards]'") from error


def _parts(sizes: Sequence[int], most_bytes: int, most: int) -> list[range]:
    """Which pictures each shard takes, by the lengths of their files alone, so that it is known before they are read.

    >>> _parts([3, 3, 5, 9, 1, 1, 1], most_bytes=8, most=2)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 6), range(6, 7)]
    """
    parts: list[range] = []
    begin = held = 0
    for number, size in enumerate(sizes):
        if number > begin and (held + size > most_bytes or number - begin == most):
            parts.append(range(begin, number))
            begin, held = number, 0
        held += size
    return [*parts, range(begin, len(sizes))]


def _begin(target: Path, shards: list[Path], made_of: list[Any]) -> None:
    """Write the list of shards, or see that the one that is there is the same."""
    target.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    names = [shard.name for shard in shards]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    content = json.dumps({"shards": names, "made_of": digest}, indent=1) + "\n"
    place = target / LIST
    if place.exists() or any(target.glob("*.tar")):
        if not place.exists() or place.read_text(encoding="utf-8") != content:
            raise ValueError(
                f"{str(target)!r} holds shards of other pictures, or of other sizes; give another folder, or empty it"
            )
        return
    with written_beside(place) as beside:
        beside.write_text(content, encoding="utf-8")


@node(category="data")
def make_shard(part: Part, report: Report = SILENT) -> ShardMade:
    """Write one shard in webdataset's format, and its index beside it; one that is there already is passed over.

    A picture's bytes are kept as they are; its key is its number in the sorted list and its name. Each is decoded
    once, here: a damaged one is warned of by name and left out, and so is one that is too small. A shard is there
    whole or not at all.

    Args:
        part: from shard_parts.
    """
    index = saved_index(part.shard)
    if index is None:
        _write(part.shard, _good(part, report))
        index = scanned(part.shard, report.warning)
        with written_beside(index_path(part.shard)) as beside, beside.open("wb") as file:
            np.save(file, index)
    held, written = len(index), part.shard.stat().st_size
    return {"shards": 1, "pictures": held, "left_out": len(part.pictures) - held, "bytes": written}


def _good(part: Part, report: Reporter) -> list[tuple[int, Path]]:
    """The pictures that can be read and are large enough, with their numbers."""

    def side(pixels: Tensor) -> int:
        return min(pixels.shape[1:])

    good: list[tuple[int, Path]] = []
    found = read_pictures(part.pictures, side, report.progress)
    for number, (path, pixels) in enumerate(zip(part.pictures, found, strict=True), part.number):
        if isinstance(pixels, UnreadablePicture):
            report.warning(f"left out: {pixels}")
        elif pixels < part.min_size:
            report.warning(f"left out: {path}: its shorter side has {pixels} pixels, {part.min_size} are wanted")
        else:
            good.append((number, path))
    return good


def _write(shard: Path, pictures: list[tuple[int, Path]]) -> None:
    with (
        written_beside(shard) as beside,
        beside.open("wb") as file,
        _tar_writer()(file, encoder=False, mtime=0) as tar,  # no time in it: the same pictures make the same bytes
    ):
        for number, path in pictures:
            tar.write({"__key__": _key(number, path), path.suffix.lower()[1:]: path.read_bytes()})


def _key(number: int, path: Path) -> str:
    """webdataset ends a key at the first dot, takes two files of one key for one sample, and tar has short names.

    >>> _key(7, Path("Köln at night.v2.jpeg"))
    '00000007-K_ln_at_night_v2'
    """
    return f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]', '_', path.stem)[:64]}"


@node(category="data", output=True)
class ShardsMade:
    """Count what was packed into shards, and say it.

    Args:
        made: of one shard, from make_shard.
    """

    def __init__(self) -> None:
        self._total = Counter[str]()

    def __call__(self, made: ShardMade) -> None:
        self._total.update(made)

    def result(self) -> str:
        shards, pictures, left_out, size = (self._total[key] for key in ("shards", "pictures", "left_out", "bytes"))
        return f"{pictures} pictures in {shards} shards of {size / 1e6:.1f} MB together, {left_out} left out"

    def state_dict(self) -> dict[str, Any]:
        return {"total": dict(self._total)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._total = Counter(state["total"])
