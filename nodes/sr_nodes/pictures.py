"""Picture files: every kind that people have is read to 8-bit RGB, and nothing is left half written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from PIL import ImageCms, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor

from sr_nodes.modules import CPU
from sr_nodes.png import deep_channels, png_depth, rounded_to_8, text_chunks
from sr_nodes.types import Image
from sr_pipeline.files import DAMAGE, written_beside
from sr_pipeline.node import node
from sr_pipeline.paths import resolve
from sr_pipeline.sockets import Device, InputPath

T = TypeVar("T")

KINDS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".gif": "GIF",
}
"""What a suffix says a picture is, by Pillow's name; no other file of a folder is taken for a picture."""
READ = tuple(dict.fromkeys(KINDS.values()))
"""What is read, whatever a file's name says; no more: Pillow would start Ghostscript for an EPS."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True},
}


class UnreadablePicture(ValueError):  # noqa: N818 - it names what was met
    """A picture file that cannot be read; its text names the file and says why."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without Python's warnings. The filters belong to the process: never enter this from several threads at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_picture(path: Path) -> Tensor:
    """The first frame of a picture file, uint8 RGB [3, H, W].

    The EXIF orientation is applied; transparency is put on white; 16 bits are divided by 257 and rounded; an
    embedded colour profile (CMYK, Display P3, Adobe RGB) is converted to sRGB.

    Raises:
        UnreadablePicture: it is missing, empty, a folder, not a picture, truncated, damaged, too large, or holds
            numbers that have no white (floating point, 32 bits).
    """
    return read_pixels(path).contiguous()


def read_pixels(path: Path) -> Tensor:
    """As ``read_picture``, but in memory [H, W, 3], as it was decoded: to turn that round takes as long again."""
    with quiet():
        return _decode(path)


def read_pictures(
    paths: Sequence[Path], use: Callable[[Tensor], T], progress: Callable[[int, int], None]
) -> list[T | UnreadablePicture]:
    """``use`` of each picture, in the order of ``paths``, read by threads; an unreadable one's error in its place.

    Pictures are as ``read_pixels`` gives them.
    """

    def attempt(path: Path) -> T | UnreadablePicture:
        try:
            return use(_decode(path))
        except UnreadablePicture as error:
            return error

    results: list[T | UnreadablePicture] = []
    with quiet(), ThreadPoolExecutor() as pool:
        for result in pool.map(attempt, paths):
            results.append(result)
            progress(len(results), len(paths))
    return results


def decoded_bytes(path: Path) -> int:
    """The size in memory of a picture once decoded, by its header; 0 for one without a readable header."""
    try:
        with quiet(), PIL.Image.open(path, formats=READ) as picture:
            return 3 * picture.width * picture.height
    except (OSError, PIL.Image.DecompressionBombError, *DAMAGE):
        return 0


def _decode(path: Path) -> Tensor:
    with readable(path):
        return decoded(path.read_bytes())


def decoded(data: bytes) -> Tensor:
    """The first frame of a picture file's content, as ``read_pixels`` gives it; raises what decoders raise."""
    with PIL.Image.open(BytesIO(data), formats=READ) as picture:
        picture.load()
        return torch.from_numpy(_as_rgb(_upright(_eight_bits(picture, data)))).permute(2, 0, 1)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What decoders raise, as an UnreadablePicture that names the file."""
    try:
        yield
    except UnreadablePicture:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise UnreadablePicture(f"{path}: too large: {error}") from error
    except UnidentifiedImageError as error:
        reason = "not a picture, or of a kind unknown to Pillow" if path.stat().st_size else "the file is empty"
        raise UnreadablePicture(f"{path}: {reason}") from error
    except OSError as error:
        raise UnreadablePicture(f"{path}: {error.strerror or f'damaged or truncated: {error}'}") from error
    except DAMAGE as error:
        raise UnreadablePicture(f"{path}: damaged or unsupported: {error}") from error


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture turned as its EXIF says; as it lies where that is damaged."""
    try:
        return ImageOps.exif_transpose(picture)
    except DAMAGE:
        return picture


def _eight_bits(picture: PIL.Image.Image, data: bytes) -> PIL.Image.Image:
    """The picture; a PNG of 16 bits rounded, of which Pillow keeps the high byte, or no alpha."""
    if png_depth(data) != 16:
        return black_at_zero(picture)
    rounded = rounded_to_8(deep_channels(data, picture.info.get("transparency"))).permute(1, 2, 0).numpy()
    made = PIL.Image.fromarray(rounded[:, :, 0] if rounded.shape[2] == 1 else rounded)
    made.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return made


def black_at_zero(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture, a TIFF of 16 bits turned from negative to positive where its white is zero: Pillow does that to one
    of 8 bits alone."""
    if not picture.mode.startswith("I") or getattr(picture, "tag_v2", {}).get(Base.PhotometricInterpretation) != 0:
        return picture
    made = PIL.Image.fromarray(65535 - np.asarray(picture).astype(np.int32))
    made.info = picture.info
    return made


def _as_rgb(picture: PIL.Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an upright picture as 8-bit sRGB, [H, W, 3]; as ``read_picture`` says."""
    if picture.mode == "F":
        raise ValueError("floating-point pixels, which have no agreed white; save it as 8 or 16 bits")
    if picture.mode.startswith("I"):
        return _from_16_bit(picture)
    if picture.has_transparency_data:
        picture = _on_white(picture)
    if picture.mode == "L":
        picture = through_profile(picture)  # while a profile for gray fits
    if picture.mode != "CMYK":
        picture = picture.convert("RGB")
    return np.array(through_profile(picture).convert("RGB"))


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    picture = picture.convert("RGBA")
    opaque = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
    opaque.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return opaque


def gray_levels(picture: PIL.Image.Image) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The pixels of a gray picture of 16 bits, [H, W], 0 to 65535.

    Raises:
        ValueError: it has 32, and uses them.
    """
    levels = np.asarray(picture).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"32-bit pixels from {levels.min()} to {levels.max()}; save it as 8 or 16 bits")
    return levels


def _from_16_bit(picture: PIL.Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.repeat(rounded_to_8(torch.from_numpy(gray_levels(picture))).numpy()[:, :, None], 3, axis=2)


def through_profile(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture in sRGB, where it says in a readable way that it is in something else."""
    profile = picture.info.get("icc_profile")
    if not profile:
        return picture
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        described = ImageCms.getProfileDescription(source)
        if "sRGB" in described and "inear" not in described:  # there is "GIMP built-in Linear sRGB" too
            return picture
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture
    return converted or picture


def is_picture(path: Path) -> bool:
    """Whether a file's suffix says so."""
    return path.suffix.lower() in KINDS


def find_pictures(folder: Path) -> list[Path]:
    """Every picture file below a folder, by suffix, sorted; hidden files and folders are passed over.

    Raises:
        ValueError: there is no such folder, or it holds no picture.
    """
    paths = list(filter(is_picture, find_files(folder)))
    if not paths:
        raise ValueError(f"the folder {str(folder)!r} holds no picture ({' '.join(sorted(KINDS))})")
    return paths


def find_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted; hidden files and folders are passed over.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"the folder {str(folder)!r} {found}; give a folder of pictures")
    inside = (path.relative_to(folder) for path in folder.rglob("*"))
    names = sorted(name for name in inside if not any(part.startswith(".") for part in name.parts))
    paths = [folder / name for name in names]
    return [path for path in paths if path.is_file() or not path.exists()]  # a broken link is told when it is read


def to_image(pixels: Tensor) -> Image:
    """8-bit pixels [3, H, W] or [B, 3, H, W] as an Image in [0, 1], [B, 3, H, W].

    >>> to_image(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)).flatten()
    tensor([0.0000, 0.2000, 1.0000])
    """
    # By a tensor, because CUDA multiplies by one over a number, which is another float32 for half of them.
    image = pixels.to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))
    return image if image.ndim == 4 else image.unsqueeze(0)


def to_uint8(image: Tensor) -> Tensor:
    """A picture in [0, 1] as 8-bit pixels of its shape: clamped, and rounded to the nearest (a half to even).

    >>> to_uint8(torch.tensor([-1.0, 0.2, 0.999, 7.0]))
    tensor([  0,  51, 255, 255], dtype=torch.uint8)
    """
    return image.detach().clamp(0, 1).mul(255).round().to(torch.uint8)


def write_png(path: Path, pixels: Tensor) -> None:
    """Write uint8 [3, H, W] as PNG: beside its place, then renamed, so that no reader sees half a file."""
    write_picture(path, from_uint8(pixels))


def from_uint8(pixels: Tensor) -> PIL.Image.Image:
    """8-bit pixels [3, H, W] as a Pillow picture."""
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def write_picture(path: Path, picture: PIL.Image.Image, prompt: str | None = None) -> None:
    """Write PNG, JPEG (quality 95, 4:4:4) or WebP (lossless) by the suffix: beside its place, then renamed.

    Args:
        path: where.
        picture: what.
        prompt: the graph that made it, as JSON, for a PNG to carry.

    Raises:
        ValueError: another suffix.
    """
    kind = saved_as(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path, sync=False) as beside:
        picture.save(beside, format=kind, **_OPTIONS[kind], pnginfo=text_chunks(prompt))


def saved_as(path: Path) -> str:
    """Pillow's name of the format that a suffix asks for.

    Raises:
        ValueError: it is none of those written.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind not in _OPTIONS:
        written = " ".join(suffix for suffix, kind in KINDS.items() if kind in _OPTIONS)
        raise ValueError(f"{path.name!r} has the suffix {path.suffix!r}; write one of {written}")
    return kind


@node(category="images")
def load_image(path: InputPath, device: Device = CPU) -> Image:
    """One picture file as an Image [1, 3, H, W]: 8-bit sRGB divided by 255.

    The EXIF orientation is applied, transparency is put on white, 16-bit gray is rounded to 8 bits, CMYK and wide
    colour profiles are converted to sRGB, and of several frames the first is read.

    Args:
        path: the file, or sr_nodes:NAME for one that travels with the pack.

    Raises:
        UnreadablePicture: it is missing, empty, not a picture, truncated or too large; a ValueError.
    """
    return to_image(read_picture(resolve(path)).to(device))
