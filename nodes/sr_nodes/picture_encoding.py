"""A picture as the bytes of a file: what each format can hold of it, and how it is compressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageCms
from PIL.ExifTags import IFD, Base
from torch import Tensor

from sr_nodes.picture_files import Picture, copied_exif
from sr_nodes.png import encode_png16, rounded_to_8, text_chunks
from sr_pipeline.files import DAMAGE

_QUALITY = {"JPEG": 95, "WEBP": 95, "AVIF": 85}
_LONGEST = {"JPEG": 65500, "WEBP": 16383, "AVIF": 32768}
_XMP_TAG = 700
_LONGEST_XMP = _LONGEST_EXIF = 65000
_ROWS = 256
"""Rows worked on at once: what is made meanwhile in wider numbers stays small beside the picture."""


def check_holds(kind: str, height: int, width: int) -> None:
    """Refuse a size that a format cannot hold, before it is computed.

    Raises:
        ValueError: it names the longest side that the format holds.
    """
    longest = _LONGEST.get(kind, 2**31 - 1)
    if max(height, width) > longest:
        raise ValueError(f"{width}x{height} is more than {kind} holds, {longest} a side; write it as PNG or TIFF")


def fitted(picture: Picture, kind: str) -> Picture:
    """The picture as a format can hold it; its notes tell what that cost.

    JPEG and BMP have no transparency: it is put on white. Only PNG holds 16 bits a channel, and TIFF those of gray.
    WebP, AVIF and BMP have no gray: three equal channels, or gray's profile applied, so that they are sRGB. BMP has
    neither profile nor EXIF nor XMP.
    """
    notes = list(picture.notes)
    deep_tiff = kind == "TIFF" and len(picture.pixels) == 1 and picture.alpha is None
    if picture.pixels.dtype == torch.uint16 and kind != "PNG" and not deep_tiff:
        notes.append(f"16 bits a channel were written as the 8 that {kind} holds here; as PNG all are kept")
        alpha = None if picture.alpha is None else by_rows(rounded_to_8, picture.alpha)
        picture = replace(picture, pixels=by_rows(rounded_to_8, picture.pixels), alpha=alpha)
    if picture.alpha is not None and kind in ("JPEG", "BMP"):
        notes.append(f"transparency was put on white, because {kind} has none")
        picture = replace(picture, pixels=by_rows(_on_white, picture.pixels, picture.alpha), alpha=None)
    if kind in ("WEBP", "AVIF") and len(picture.pixels) == 1 and picture.icc:
        picture, note = _gray_as_srgb(picture, picture.icc)
        notes += [note] if note else []
    if kind == "BMP" and (lost := _named(picture)):
        notes.append(f"{lost} left out, because BMP has no place for it")
    if kind == "JPEG" and len(picture.exif or b"") > _LONGEST_EXIF:
        picture, notes = replace(picture, exif=None), [*notes, "EXIF left out, because it is longer than JPEG holds"]
    if kind == "JPEG" and len(picture.xmp or b"") > _LONGEST_XMP:
        picture, notes = replace(picture, xmp=None), [*notes, "XMP left out, because it is longer than JPEG holds"]
    return replace(picture, notes=tuple(notes))


def _named(picture: Picture) -> str:
    """What there is beside the pixels, in words."""
    there = {"colour profile": picture.icc, "EXIF": picture.exif, "XMP": picture.xmp}
    return ", ".join(name for name, content in there.items() if content)


def by_rows(function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """A function of pixels [C, H, W] that knows no neighbours, by blocks of rows.

    >>> by_rows(torch.add, torch.ones(1, 700, 2), torch.ones(1, 700, 2)).sum()
    tensor(2800.)
    """
    height, out = parts[0].shape[1], None
    for row in range(0, height, _ROWS):
        block = function(*(part[:, row : row + _ROWS] for part in parts))
        if out is None:
            out = block.new_empty(len(block), height, block.shape[2])
        out[:, row : row + _ROWS] = block
    assert out is not None
    return out


def _gray_as_srgb(picture: Picture, icc: bytes) -> tuple[Picture, str]:
    """Gray whose profile is of gray as RGB in sRGB, because that profile cannot describe three channels."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        if profile.profile.xcolor_space.strip() == "RGB":
            return picture, ""
        gray = PIL.Image.fromarray(picture.pixels[0].numpy())
        srgb = ImageCms.profileToProfile(gray, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return replace(picture, icc=None), "the colour profile was left out, because it is damaged or not of gray"
    pixels = torch.from_numpy(np.array(srgb)).permute(2, 0, 1).contiguous()
    return replace(picture, pixels=pixels, icc=None), "gray was converted to sRGB through its profile"


def _on_white(pixels: Tensor, alpha: Tensor) -> Tensor:
    wide, share = pixels.to(torch.int32), alpha.to(torch.int32)
    return ((wide * share + 255 * (255 - share) + 127) // 255).to(torch.uint8)


def encode(
    picture: Picture, kind: str, quality: int | None = None, metadata: bool = True, prompt: str | None = None
) -> bytes:
    """A picture as a file's bytes: PNG (level 6), JPEG (quality 95, 4:4:4), WebP (95), AVIF (85, 4:4:4), TIFF
    (deflate, and not compressed where it has EXIF or XMP) or BMP. The profile and the resolution are kept.

    Args:
        picture: one that ``fitted`` made.
        kind: Pillow's name of the format.
        quality: of JPEG, WebP and AVIF.
        metadata: write EXIF and XMP, and the prompt into a PNG.
        prompt: the graph that made it, as JSON.

    Raises:
        ValueError: the format cannot hold it.
    """
    check_holds(kind, *picture.size)
    options = _options(picture, kind, quality, metadata)
    if kind == "PNG":
        options["pnginfo"] = text_chunks(prompt, picture.xmp) if metadata else text_chunks()
    try:
        if kind == "PNG" and picture.pixels.dtype == torch.uint16:
            options.pop("compress_level")
            return encode_png16(_channels(picture), 6, **options)
        out = BytesIO()
        _pillow(picture).save(out, kind, **options)
    except (OSError, *DAMAGE) as error:
        raise ValueError(f"it cannot be written as {kind}: {error}") from error
    return out.getvalue()


def _channels(picture: Picture) -> Tensor:
    return picture.pixels if picture.alpha is None else torch.cat([picture.pixels, picture.alpha])


def _pillow(picture: Picture) -> PIL.Image.Image:
    if len(picture.pixels) == 1 and picture.alpha is None:
        return PIL.Image.fromarray(picture.pixels[0].numpy())
    count = len(picture.pixels)
    mixed = torch.empty(*picture.size, count + (picture.alpha is not None), dtype=picture.pixels.dtype)
    mixed[:, :, :count] = picture.pixels.permute(1, 2, 0)
    if picture.alpha is not None:
        mixed[:, :, count] = picture.alpha[0]
    return PIL.Image.fromarray(mixed.numpy())


def _options(picture: Picture, kind: str, quality: int | None, metadata: bool) -> dict[str, Any]:
    by_kind: dict[str, dict[str, Any]] = {
        "PNG": {"compress_level": 6},
        "JPEG": {"subsampling": "4:4:4"},
        "AVIF": {"subsampling": "4:4:4"},
        # Pillow compresses through libtiff, which takes none of EXIF's directories.
        "TIFF": {} if metadata and (picture.exif or picture.xmp) else {"compression": "tiff_adobe_deflate"},
    }
    options = by_kind.get(kind, {})
    if kind in _QUALITY:
        options["quality"] = quality or _QUALITY[kind]
    if picture.dpi and kind not in ("WEBP", "AVIF"):
        options["dpi"] = picture.dpi
    if kind != "BMP":
        if picture.icc:
            options["icc_profile"] = picture.icc
        if exif := _exif_for(picture, kind, metadata):
            options["exif"] = exif
        if picture.xmp and metadata and kind not in ("PNG", "TIFF"):
            options["xmp"] = picture.xmp
    return options


def _exif_for(picture: Picture, kind: str, metadata: bool) -> bytes | None:
    exif = PIL.Image.Exif()
    if picture.exif and metadata:
        old = PIL.Image.Exif()
        old.load(picture.exif)
        exif = copied_exif(old, set(old))
        ifd = exif.get(IFD.Exif, {})
        for tag, side in ((Base.ExifImageHeight, picture.size[0]), (Base.ExifImageWidth, picture.size[1])):
            if tag in ifd:
                ifd[tag] = side
    if picture.xmp and metadata and kind == "TIFF":
        exif[_XMP_TAG] = picture.xmp
    if picture.dpi and kind in ("WEBP", "AVIF"):
        exif[Base.XResolution], exif[Base.YResolution] = picture.dpi
        exif[Base.ResolutionUnit] = 2
    return exif.tobytes() if len(exif) else None
