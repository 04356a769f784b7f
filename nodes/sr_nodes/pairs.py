"""LR and HR pictures to measure on: all of a test set at once, or as a stream of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import Tensor

from sr_nodes.assets import resolve
from sr_nodes.degradation import bicubic
from sr_nodes.pictures import CPU, find_pictures, read_picture, to_image
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Device, Report, Start

Factor = Annotated[int, Field(ge=2, le=8)]


class Pair(NamedTuple):
    """One picture to measure on: each an Image of batch 1, [1, 3, h, w] and [1, 3, scale * h, scale * w]."""

    name: str
    lr: Tensor
    hr: Tensor


class Pairs(tuple[Pair, ...]):
    """The pictures of a test set, in the order of their names."""


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


def pair_files(folder: Path, scale: int) -> list[PairFiles]:
    """The pictures of a test set, in the order of their names, in one of the usual namings.

    NAME_LR and NAME_HR beside each other; a folder HR beside LR_bicubic/X4 (NAMEx4 or NAME); or HR alone.

    Raises:
        ValueError: there is no such folder, it holds no picture, or an LR or HR has no partner.
    """
    low = folder / "LR_bicubic" / f"X{scale}"
    if (folder / "HR").is_dir() and low.is_dir():
        return _by_folder(folder / "HR", low, scale)
    paths = find_pictures(folder)
    return _by_suffix(folder, paths) or [PairFiles(_name(folder, path), None, path) for path in paths]


def _by_folder(high: Path, low: Path, scale: int) -> list[PairFiles]:
    lr = {_name(low, path).removesuffix(f"x{scale}"): path for path in find_pictures(low)}
    hr = {_name(high, path): path for path in find_pictures(high)}
    _refuse_singles(lr.keys() ^ hr.keys(), high.parent, "each picture of HR needs its LR")
    return [PairFiles(name, lr[name], hr[name]) for name in sorted(hr)]


def _by_suffix(folder: Path, paths: list[Path]) -> list[PairFiles]:
    names = {_name(folder, path): path for path in paths}
    lr = {name.removesuffix("_LR"): path for name, path in names.items() if name.endswith("_LR")}
    hr = {name.removesuffix("_HR"): path for name, path in names.items() if name.endswith("_HR")}
    if lr:
        _refuse_singles(lr.keys() ^ hr.keys(), folder, "each NAME_LR needs a NAME_HR")
    return [PairFiles(name, lr[name], hr[name]) for name in sorted(lr)]


def _refuse_singles(alone: set[str], folder: Path, fix: str) -> None:
    if alone:
        raise ValueError(f"no partner for {', '.join(sorted(alone))} in {str(folder)!r}; {fix}")


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


@node(category="data")
def image_pairs(
    folder: str = "sr_nodes:samples/test",
    scale: Factor = 4,
    crop: Annotated[int, Field(ge=0)] = 0,
    device: Device = CPU,
    report: Report = SILENT,
) -> Pairs:
    """LR and HR pictures of a test set, read at once.

    Where the folder holds files NAME_LR and NAME_HR, or folders HR and LR_bicubic/X4, those are the pairs. Otherwise
    every picture is an HR, cut at the right and the bottom to a multiple of scale, and its LR is made by ``bicubic``
    with rounding to 8 bits, as a file would be.

    Args:
        folder: a folder of pictures; sr_nodes:NAME is one that travels with the pack.
        scale: HR's size over LR's.
        crop: 0 for whole pictures; otherwise the side, in HR pixels, of the square cut from the middle of each,
            rounded down to a multiple of scale.

    Raises:
        ValueError: there is no such folder, it holds no picture, one of them cannot be read (a figure over part of a
            test set is not that set's figure), an LR or HR has no partner, or their sizes do not agree with scale.
    """
    if 0 < crop < scale:
        raise ValueError(f"crop is {crop} pixels, less than one LR pixel at scale {scale}; use 0 for whole pictures")
    files = pair_files(resolve(folder), scale)
    pairs = []
    for pair in files:
        pairs.append(pair.read(scale, crop, device))
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
    folders: tuple[str, ...] = ("sr_nodes:samples/test",), scale: Factor = 4, start: Start = 0, device: Device = CPU
) -> Iterator[LabelledPair]:
    """A stream of the pictures of test sets, one after another, read when they are wanted.

    The namings are those of ``image_pairs``; a set is called by its folder's name.

    Args:
        folders: the folders of the test sets.
        scale: HR's size over LR's.

    Raises:
        ValueError: as image_pairs; or two folders of one name.
    """
    roots = [resolve(folder) for folder in folders]
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):
        raise ValueError(f"two test sets have one name: {', '.join(names)}; rename a folder")
    files = [(name, pair) for name, root in zip(names, roots, strict=True) for pair in pair_files(root, scale)]
    for testset, pair in files[start:]:
        name, lr, hr = pair.read(scale, 0, device)
        yield LabelledPair(lr, hr, Label(testset, name))


def _cut_hr(hr: Tensor, scale: int, crop: int, path: Path) -> Tensor:
    height, width = (min(side, crop or side) // scale * scale for side in hr.shape[2:])
    if not height or not width:
        raise ValueError(f"{path} has {_size(hr)} pixels, less than one LR pixel at scale {scale}; remove it")
    top, left = ((hr.shape[2] - height) // 2, (hr.shape[3] - width) // 2) if crop else (0, 0)
    return hr[:, :, top : top + height, left : left + width].contiguous()


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
