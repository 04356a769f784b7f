"""Pictures as they are: a file read with its alpha, depth, profile, EXIF and resolution."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import UnidentifiedImageError
from PIL.ExifTags import IFD, Base
from torch import Tensor

from sr_nodes.pictures import (
    KINDS,
    READ,
    UnreadablePicture,
    black_at_zero,
    gray_levels,
    quiet,
    readable,
    through_profile,
)
from sr_nodes.png import deep_channels, png_depth
from sr_pipeline.files import DAMAGE

PIPE = Path("-")
"""Stands for standard input, and for standard output."""
WRITTEN = {suffix: kind for suffix, kind in KINDS.items() if kind != "GIF"}
"""Pillow's names of the formats that are written, by suffix."""
_KEPT_TAGS = frozenset(
    {
        Base.ImageDescription,
        Base.Make,
        Base.Model,
        Base.Software,
        Base.DateTime,
        Base.Artist,
        Base.HostComputer,
        Base.Copyright,
        Base.Rating,
    }
)
"""What EXIF says of the picture; the rest says how the old file stored it."""
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>)\s*)[1-8]")
_UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda t: t.flip(2),
    3: lambda t: t.flip(1, 2),
    4: lambda t: t.flip(1),
    5: lambda t: t.transpose(1, 2),
    6: lambda t: t.transpose(1, 2).flip(2),
    7: lambda t: t.transpose(1, 2).flip(1, 2),
    8: lambda t: t.transpose(1, 2).flip(1),
}
"""What each EXIF orientation asks for, [C, H, W]."""
_ONE_AT_A_TIME = Lock()
"""Pillow's limit on pixels and Python's filters of warnings belong to the process."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture file's content, upright.

    ``pixels`` is uint8 or uint16, [3, H, W] or, for gray, [1, H, W]; ``alpha`` is [1, H, W] of that dtype. Values are
    in the colour space of ``icc``, sRGB where there is none. ``notes`` tells what could not be kept.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    kind: str = "PNG"
    """Pillow's name of the file's format."""
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]


def read_whole(path: Path, max_megapixels: int = 150) -> Picture:
    """Read a picture file; ``-`` is standard input.

    The EXIF orientation is applied, and 1 from then on; a palette becomes RGB; CMYK is converted with its profile to
    sRGB. Of a JPEG with more pictures (a phone's depth or gain map) the first is the picture. 16 bits a channel are
    kept of PNG, and of gray TIFF; a colour TIFF of 16 bits is read as 8, and a note says so.

    Raises:
        UnreadablePicture: it is missing, empty, no picture, truncated, damaged, animated, of several pages, of more
            pixels than the limit, or of numbers that have no white (floating point, 32 bits).
    """
    with readable(path):
        data = sys.stdin.buffer.read() if path == PIPE else path.read_bytes()
    if not data:
        raise UnreadablePicture(f"{path}: the file is empty")
    with _ONE_AT_A_TIME, quiet(), readable(path):
        before, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None  # the limit here is the caller's
        try:
            with PIL.Image.open(BytesIO(data), formats=READ) as picture:
                _check_size(path, picture, max_megapixels)
                _check_frames(path, picture)
                return _decoded(picture, data)
        except UnidentifiedImageError as error:
            raise UnreadablePicture(f"{path}: not a picture of a kind that is read: {', '.join(READ)}") from error
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = before


def _check_size(path: Path, picture: PIL.Image.Image, max_megapixels: int) -> None:
    megapixels = picture.width * picture.height / 1e6
    if megapixels > max_megapixels:
        raise UnreadablePicture(
            f"{path}: {picture.width}x{picture.height} is {megapixels:.0f} megapixels, and at most {max_megapixels} "
            "are read, lest a small file fill the memory; raise max_megapixels if it is meant"
        )


def _check_frames(path: Path, picture: PIL.Image.Image) -> None:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":
        found = f"has {frames} pages" if picture.format == "TIFF" else f"is animated: {frames} frames"
        raise UnreadablePicture(f"{path}: {found}; save the one that is meant as a file of its own")


def _decoded(picture: PIL.Image.Image, data: bytes) -> Picture:
    if png_depth(data) != 16:
        picture.load()
        _scale_clear_gray(picture, png_depth(data))
    notes = ["the first picture of several is taken"] if getattr(picture, "n_frames", 1) > 1 else []
    if picture.format == "TIFF" and len(picture.getbands()) > 1 and 16 in np.atleast_1d(_depths(picture)):
        notes.append("16 bits a channel were read as 8; as PNG all are kept")
    try:
        exif = picture.getexif()
    except (OSError, *DAMAGE):
        exif, notes = PIL.Image.Exif(), [*notes, "its EXIF is damaged and left out"]
    turn = _UPRIGHT.get(exif.get(Base.Orientation, 1))
    channels, icc = _channels(picture, data)
    upright = (turn(channels) if turn else channels).contiguous()
    opaque = len(upright) in (1, 3)
    try:
        kept: bytes | None = _kept_exif(exif)
    except (OSError, *DAMAGE):
        kept, notes = None, [*notes, "its EXIF is damaged and left out"]
    return Picture(
        pixels=upright if opaque else upright[:-1],
        alpha=None if opaque else upright[-1:],
        icc=icc,
        exif=kept,
        xmp=_upright_xmp(picture),
        dpi=_dpi(picture, exif),
        kind="JPEG" if picture.format == "MPO" else picture.format or "PNG",
        notes=tuple(notes),
    )


def _scale_clear_gray(picture: PIL.Image.Image, depth: int) -> None:
    """Make the gray that is transparent in a PNG of 2 or 4 bits one of the 256 that Pillow made of the pixels."""
    if depth in (2, 4) and picture.mode == "L" and "transparency" in picture.info:
        picture.info["transparency"] *= 255 // (2**depth - 1)


def _depths(picture: PIL.Image.Image) -> Any:
    return getattr(picture, "tag_v2", {}).get(Base.BitsPerSample, 8)


def _channels(picture: PIL.Image.Image, data: bytes) -> tuple[Tensor, bytes | None]:
    """Gray, gray and alpha, RGB or RGBA, and the profile that its values are in."""
    icc = picture.info.get("icc_profile")
    if png_depth(data) == 16:
        return deep_channels(data, picture.info.get("transparency")), icc
    if picture.mode == "CMYK":
        return _tensor(through_profile(picture).convert("RGB")), None
    if picture.mode.startswith("I"):
        return torch.from_numpy(gray_levels(black_at_zero(picture)).astype(np.uint16))[None], icc
    if picture.mode in ("F", "LAB"):
        raise ValueError(f"pixels of mode {picture.mode}, which have no agreed white; save it as RGB of 8 or 16 bits")
    gray = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        return _tensor(picture.convert("LA" if gray else "RGBA")), icc
    return _tensor(picture.convert("L" if gray else "RGB")), icc


def _tensor(picture: PIL.Image.Image) -> Tensor:
    array = np.array(picture)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def _kept_exif(exif: PIL.Image.Exif) -> bytes | None:
    kept = copied_exif(exif, _KEPT_TAGS)
    if not len(kept):
        return None
    kept[Base.Orientation] = 1
    return kept.tobytes()


def _upright_xmp(picture: PIL.Image.Image) -> bytes | None:
    """XMP, in which the orientation is 1 too; none of a file of several pictures, because it speaks of them all."""
    found = picture.info.get("xmp")
    if not isinstance(found, bytes) or not found.strip() or picture.format == "MPO":
        return None
    return _XMP_ORIENTATION.sub(rb"\g<1>1", found)


def copied_exif(exif: PIL.Image.Exif, tags: Collection[int]) -> PIL.Image.Exif:
    """Those tags, and the directories of the shot and of its place."""
    copy = PIL.Image.Exif()
    for tag in sorted(set(exif) & set(tags)):
        copy[tag] = _raw(exif[tag])
    for ifd in (IFD.Exif, IFD.GPSInfo):
        if content := exif.get_ifd(ifd):
            copy[ifd] = {tag: _raw(content[tag]) for tag in sorted(content) if tag != IFD.Interop}
    return copy


def _raw(value: Any) -> Any:
    # Pillow reads text as Latin-1, whatever it is, and writes ASCII: so the bytes are given back to it.
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def _dpi(picture: PIL.Image.Image, exif: PIL.Image.Exif) -> tuple[float, float] | None:
    """Pixels an inch across and down, of the upright picture."""
    found = picture.info.get("dpi")
    if found is None and picture.format in ("WEBP", "AVIF"):  # which have no other place for it
        inches = {2: 1.0, 3: 2.54}.get(exif.get(Base.ResolutionUnit, 2), math.nan)
        found = [inches * float(exif.get(tag, math.nan)) for tag in (Base.XResolution, Base.YResolution)]
    if found is None or not all(0 < float(value) < 1e6 for value in found):
        return None
    across, down = float(found[0]), float(found[1])
    return (down, across) if exif.get(Base.Orientation, 1) in (5, 6, 7, 8) else (across, down)
