"""LR and HR pictures to measure on: all of a test set at once, or as a stream of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import Tensor

from sr_nodes.degradation import Factor, bicubic
from sr_nodes.modules import CPU
from sr_nodes.pictures import find_pictures, read_picture, to_image
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.paths import resolve
from sr_pipeline.sockets import SILENT, Device, InputPath, Report, Reporter, Start


class Pair(NamedTuple):
    """One picture to measure on: each an Image of batch 1, [1, 3, h, w] and [1, 3, scale * h, scale * w]."""

    name: str
    lr: Tensor
    hr: Tensor


class Pairs(tuple[Pair, ...]):
    """The pictures of a test set, in the order of their names, on the host: between two measurements they would lie in
    a GPU's memory for nothing."""


class PairFiles(NamedTuple):
    """Where a pair comes from; without an LR file, the LR is made of the HR."""

    name: str
    lr: Path | None
    hr: Path

    def read(self, scale: int, crop: int, device: Device) -> Pair:
        """Read the pictures, and cut them to a whole number of LR pixels.

        Raises:
            ValueError: one cannot be read, or their sizes do not agree with scale.
        """
        hr = to_image(read_picture(self.hr).to(device))
        if self.lr is None:
            hr = _cut_hr(hr, scale, crop, self.hr)
            return Pair(self.name, bicubic(hr, scale, eight_bit=True), hr)
        lr = to_image(read_picture(self.lr).to(device))
        hr = _check_pair(lr, hr, scale, self)
        return Pair(self.name, *_cut_pair(lr, hr, scale, crop))


def pair_files(folder: Path, scale: int, report: Reporter = SILENT) -> list[PairFiles]:
    """The pictures of a test set, in the order of their names, in one of the usual namings.

    NAME_LR and NAME_HR beside each other, where other pictures are passed over with a warning; a folder HR, or
    SET_HR, beside LR_bicubic/X4, or SET_LR_bicubic/X4 (NAMEx4 or NAME in it); or HR alone, with a warning where two
    folders hold files of one name, as HR and LR of another naming would.

    Raises:
        ValueError: there is no such folder, it holds no picture, two of one name or several sets, its LR are not of
            this scale, or an LR or HR has no partner.
    """
    high, low = _ending(folder, "HR"), _ending(folder, "LR_bicubic")
    if high or low:
        return _by_folder(*_one_set(folder, high, low, scale), scale)
    names = _named(folder, find_pictures(folder))
    return _by_suffix(folder, names, report) or _hr_alone(names, report)


def _ending(folder: Path, end: str) -> list[Path]:
    """The folders END and SET_END in a folder."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if path.is_dir() and re.fullmatch(rf"(.+_)?{end}", path.name, re.IGNORECASE)]


def _one_set(folder: Path, high: list[Path], low: list[Path], scale: int) -> tuple[Path, Path]:
    """The folder of HR, and that of its LR at a scale."""
    found = ", ".join(path.name for path in high + low)
    if len(high) != 1 or len(low) != 1:
        raise ValueError(
            f"{str(folder)!r} holds the folders {found}, and a set is one of HR and one LR_bicubic; give a folder of "
            "one set, or the folder of HR itself, of which the LR are made"
        )
    sets = [path.name[: -len(end)].casefold() for path, end in ((high[0], "HR"), (low[0], "LR_bicubic"))]
    if all(sets) and sets[0] != sets[1]:
        raise ValueError(f"{str(folder)!r} holds {found}, which are of two sets; give a folder of one set")
    scales = {path.name.upper(): path for path in low[0].iterdir() if path.is_dir()}
    if f"X{scale}" not in scales:
        present = ", ".join(sorted(name for name in scales if re.fullmatch(r"X\d+", name))) or "no folder X2, X3, X4"
        raise ValueError(f"{low[0]} holds {present}, and no X{scale}; set scale as the LR are")
    return high[0], scales[f"X{scale}"]


def _named(folder: Path, paths: list[Path], end: str = "") -> dict[str, Path]:
    """Those pictures whose name has this end, a regular expression, by their name without it."""
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        match = re.fullmatch(rf"(.+?){end}", stem, re.IGNORECASE | re.DOTALL)
        if match and found.setdefault(name := match[1], path) != path:
            raise ValueError(f"{found[name]} and {path.name} are two files of one name; remove one of them")
    return found


def _by_folder(high: Path, low: Path, scale: int) -> list[PairFiles]:
    hr, lr = _named(high, find_pictures(high)), _named(low, find_pictures(low), f"(?:x{scale})?")
    _refuse_singles(lr.keys() ^ hr.keys(), high.parent, "each picture of HR needs its LR")
    return [PairFiles(name, lr[name], hr[name]) for name in sorted(hr)]


def _by_suffix(folder: Path, names: dict[str, Path], report: Reporter) -> list[PairFiles]:
    paths = list(names.values())
    lr, hr = _named(folder, paths, "_LR"), _named(folder, paths, "_HR")
    if not lr:
        return []
    _refuse_singles(lr.keys() ^ hr.keys(), folder, "each NAME_LR needs a NAME_HR")
    for path in sorted({*paths} - {*lr.values(), *hr.values()}):
        report.warning(f"passed over: {path} is neither NAME_LR nor NAME_HR, as others in its folder are")
    return [PairFiles(name, lr[name], hr[name]) for name in sorted(lr)]


def _hr_alone(names: dict[str, Path], report: Reporter) -> list[PairFiles]:
    first: dict[str, Path] = {}
    twins = [(first[path.stem], path) for path in names.values() if first.setdefault(path.stem, path) != path]
    if twins:
        report.warning(
            f"{twins[0][0]} and {twins[0][1]} have one name, and each is taken for an HR; if the folders hold HR and "
            "LR in a naming of their own, give the folder of HR"
        )
    return [PairFiles(name, None, path) for name, path in names.items()]


def _refuse_singles(alone: set[str], folder: Path, fix: str) -> None:
    if alone:
        raise ValueError(f"no partner for {', '.join(sorted(alone))} in {str(folder)!r}; {fix}")


@node(category="data")
def image_pairs(
    folder: InputPath = "sr_nodes:samples/test",
    scale: Factor = 4,
    crop: Annotated[int, Field(ge=0)] = 0,
    device: Device = CPU,
    report: Report = SILENT,
) -> Pairs:
    """LR and HR pictures of a test set, read at once, and kept on the host.

    Where the folder holds files NAME_LR and NAME_HR, or folders HR and LR_bicubic/X4 (or DIV2K's SET_HR and
    SET_LR_bicubic/X4), those are the pairs; case does not matter, and files that are neither are passed over with a
    warning. Otherwise every picture is an HR, cut at the right and the bottom to a multiple of scale, and its LR is
    made by ``bicubic`` with rounding to 8 bits, as a file would be.

    Args:
        folder: a folder of pictures; sr_nodes:NAME is one that travels with the pack.
        scale: HR's size over LR's.
        crop: 0 for whole pictures; otherwise the side, in HR pixels, of the square cut from the middle of each,
            rounded down to a multiple of scale.

    Raises:
        ValueError: there is no such folder, it holds no picture, one of them cannot be read (a figure over part of a
            test set is not that set's figure), two have one name, an LR or HR has no partner, there are no LR of this
            scale, or the sizes do not agree with scale.
    """
    if 0 < crop < scale:
        raise ValueError(f"crop is {crop} pixels, less than one LR pixel at scale {scale}; use 0 for whole pictures")
    files = pair_files(resolve(folder), scale, report)
    pairs = []
    for pair in files:
        name, lr, hr = pair.read(scale, crop, device)
        pairs.append(Pair(name, lr.cpu(), hr.cpu()))
        report.progress(len(pairs), len(files))
    return Pairs(pairs)


class Label(NamedTuple):
    """Which picture of which test set."""

    testset: str
    name: str


class LabelledPair(NamedTuple):
    """One item of ``pair_stream``: lr [1, 3, h, w], hr [1, 3, scale * h, scale * w]."""

    lr: Image
    hr: Image
    label: Label


@node(category="data")
def pair_stream(
    folders: tuple[InputPath, ...] = ("sr_nodes:samples/test",),
    scale: Factor = 4,
    border: Annotated[int, Field(ge=0)] = 0,
    least: Annotated[int, Field(ge=1)] = 1,
    start: Start = 0,
    device: Device = CPU,
    report: Report = SILENT,
) -> Iterator[LabelledPair]:
    """A stream of the pictures of test sets, one after another, read when they are wanted.

    The namings are those of ``image_pairs``; a set is called by its folder's name.

    Args:
        folders: the folders of the test sets.
        scale: HR's size over LR's.
        border: pixels of HR that metrics leave out at each edge.
        least: pixels a side that they need of what is left.

    Raises:
        ValueError: as image_pairs; or two folders of one name, or a picture of which less is left.
    """
    roots = [resolve(folder) for folder in folders]
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):
        raise ValueError(f"two test sets have one name: {', '.join(names)}; rename a folder")
    files = [(name, pair) for name, root in zip(names, roots, strict=True) for pair in pair_files(root, scale, report)]
    for testset, pair in files[start:]:
        name, lr, hr = pair.read(scale, 0, device)
        _check_left(hr, border, least, pair.hr)
        yield LabelledPair(lr, hr, Label(testset, name))


def _cut_hr(hr: Tensor, scale: int, crop: int, path: Path) -> Tensor:
    height, width = (min(side, crop or side) // scale * scale for side in hr.shape[2:])
    if not height or not width:
        raise ValueError(f"{path} has {_size(hr)} pixels, less than one LR pixel at scale {scale}; remove it")
    top, left = ((hr.shape[2] - height) // 2, (hr.shape[3] - width) // 2) if crop else (0, 0)
    return hr[:, :, top : top + height, left : left + width].contiguous()


def _check_left(hr: Tensor, border: int, least: int, path: Path) -> None:
    height, width = (side - 2 * border for side in hr.shape[2:])
    if min(height, width) < least:
        raise ValueError(
            f"{path} has {_size(hr)} pixels, and the metrics need {least} a side within a border of {border}; "
            "leave it out, or use larger pictures"
        )


def _check_pair(lr: Tensor, hr: Tensor, scale: int, files: PairFiles) -> Tensor:
    """The HR, less the rows and columns at its end that are no whole LR pixel (DIV2K's LR are made without them)."""
    height, width = scale * lr.shape[2], scale * lr.shape[3]
    if not (0 <= hr.shape[2] - height < scale and 0 <= hr.shape[3] - width < scale):
        lr_name = files.lr.name if files.lr else ""
        raise ValueError(
            f"{files.hr} has {_size(hr)} pixels and {lr_name} {_size(lr)}: not {scale} times as many a side; "
            "set scale, or use a folder of pairs of this scale alone"
        )
    return hr[:, :, :height, :width]


def _cut_pair(lr: Tensor, hr: Tensor, scale: int, crop: int) -> tuple[Tensor, Tensor]:
    height, width = (min(side, crop // scale or side) for side in lr.shape[2:])
    top, left = (lr.shape[2] - height) // 2, (lr.shape[3] - width) // 2
    small = lr[:, :, top : top + height, left : left + width]
    large = hr[:, :, scale * top : scale * (top + height), scale * left : scale * (left + width)]
    return small.contiguous(), large.contiguous()


def _size(image: Tensor) -> str:
    return f"{image.shape[3]}x{image.shape[2]}"
