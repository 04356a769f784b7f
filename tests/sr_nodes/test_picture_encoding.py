"""What each format holds of a picture, read back by Pillow or by the reader that test_picture_files pins."""

from __future__ import annotations

import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import PIL.Image
import pytest
import torch
from PIL import ImageCms
from PIL.ExifTags import IFD, Base
from torch import Tensor

from sr_nodes.picture_encoding import by_rows, check_holds, encode, fitted
from sr_nodes.picture_files import WRITTEN, Picture, read_whole

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EVERY = tuple(dict.fromkeys(WRITTEN.values()))
LOSSLESS = ("PNG", "TIFF", "BMP")


def values(channels: int, dtype: torch.dtype = torch.uint8, height: int = 6, width: int = 8) -> Tensor:
    top = 256 if dtype == torch.uint8 else 65536
    drawn = torch.randint(0, top, (channels, height, width), generator=torch.Generator().manual_seed(channels))
    return drawn.to(dtype)


def read_back(data: bytes, folder: Path) -> Picture:
    (folder / "a").write_bytes(data)
    return read_whole(folder / "a")


def exif_bytes() -> bytes:
    exif = PIL.Image.Exif()
    exif[Base.Artist] = "me"
    exif[Base.Orientation] = 1
    exif[IFD.Exif] = {Base.ExifImageWidth: 2, Base.ExifImageHeight: 1, Base.FNumber: 2.8}
    exif[IFD.GPSInfo] = {1: "N"}
    return exif.tobytes()


@pytest.mark.parametrize("kind", EVERY)
def test_profile_exif_and_resolution_are_kept(kind: str, tmp_path: Path) -> None:
    picture = fitted(Picture(values(3), icc=SRGB, exif=exif_bytes(), dpi=(300.0, 150.0)), kind)
    read = read_back(encode(picture, kind), tmp_path)
    assert (read.kind, read.size) == (kind, (6, 8))
    assert read.dpi == pytest.approx((300, 150), abs=0.02)
    if kind == "BMP":
        assert picture.notes == ("colour profile, EXIF left out, because BMP has no place for it",)
        return
    assert (read.icc, picture.notes) == (SRGB, ())
    exif = PIL.Image.Exif()
    assert read.exif is not None
    exif.load(read.exif)
    assert (exif[Base.Artist], exif.get_ifd(IFD.GPSInfo)) == ("me", {1: "N"})
    shot = exif.get_ifd(IFD.Exif)
    assert (shot[Base.ExifImageWidth], shot[Base.ExifImageHeight]) == (8, 6)  # the new size, not the old one's


XMP = b'<?xpacket begin="\xef\xbb\xbf"?><x:xmpmeta xmlns:x="adobe:ns:meta/">caf\xc3\xa9</x:xmpmeta><?xpacket end="w"?>'


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("exif", [None, exif_bytes()])
def test_xmp_is_kept_or_told(kind: str, exif: bytes | None, tmp_path: Path) -> None:
    """Byte for byte, beside EXIF and without; and not where metadata is unwanted."""
    picture = fitted(Picture(values(3), exif=exif, xmp=XMP), kind)
    if kind == "BMP":
        assert picture.notes == (f"{'EXIF, ' if exif else ''}XMP left out, because BMP has no place for it",)
        return
    read = read_back(encode(picture, kind), tmp_path)
    assert (read.xmp, read.exif is None, picture.notes) == (XMP, exif is None, ())
    assert read_back(encode(picture, kind, metadata=False), tmp_path).xmp is None


def test_xmp_of_a_deep_png_and_one_that_is_longer_than_jpeg_holds(tmp_path: Path) -> None:
    deep = Picture(values(3, torch.uint16), xmp=XMP)
    assert read_back(encode(deep, "PNG"), tmp_path).xmp == XMP
    long = Picture(values(3), xmp=XMP + b" " * 65_500)
    assert fitted(long, "PNG").xmp == long.xmp
    fit = fitted(long, "JPEG")
    assert (fit.xmp, fit.notes) == (None, ("XMP left out, because it is longer than JPEG holds",))
    exif = PIL.Image.Exif()
    exif[Base.ImageDescription] = "x" * 70_000
    fit = fitted(Picture(values(3), exif=exif.tobytes()), "JPEG")
    assert (fit.exif, fit.notes) == (None, ("EXIF left out, because it is longer than JPEG holds",))
    assert encode(fit, "JPEG")
    just = Picture(values(3), xmp=b"x" * 65_000)
    assert read_back(encode(fitted(just, "JPEG"), "JPEG"), tmp_path).xmp == just.xmp


@pytest.mark.parametrize("height", [1, 255, 256, 257, 600])
def test_by_rows_is_the_whole_at_once(height: int) -> None:
    pixels, alpha = values(3, height=height), values(1, height=height)
    fit = fitted(Picture(pixels, alpha), "JPEG")
    share = alpha.double() / 255
    assert torch.equal(fit.pixels.double(), (pixels * share + 255 * (1 - share)).add(0.5).floor())
    assert torch.equal(by_rows(lambda part: part[:1], pixels), pixels[:1])


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_every_value(kind: str, channels: int, tmp_path: Path) -> None:
    pixels = values(channels)
    assert torch.equal(read_back(encode(Picture(pixels), kind), tmp_path).pixels, pixels)


@pytest.mark.parametrize("kind", [k for k in EVERY if k not in ("JPEG", "BMP")])
def test_alpha_is_kept(kind: str, tmp_path: Path) -> None:
    alpha = torch.zeros(1, 16, 16, dtype=torch.uint8)
    alpha[:, :, 8:] = 255
    picture = fitted(Picture(torch.full((3, 16, 16), 90, dtype=torch.uint8), alpha), kind)
    read = read_back(encode(picture, kind, quality=100), tmp_path)
    assert picture.notes == ()
    assert read.alpha is not None
    assert int((read.alpha.int() - alpha.int()).abs().max()) <= 3


@pytest.mark.parametrize("kind", ["JPEG", "BMP"])
def test_without_alpha_it_is_put_on_white_and_told(kind: str, tmp_path: Path) -> None:
    alpha = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    fit = fitted(Picture(torch.full((1, 1, 3), 100, dtype=torch.uint8), alpha), kind)
    assert fit.pixels.tolist() == [[[255, 224, 100]]]  # 0.2 * 100 + 0.8 * 255 = 224
    assert fit.alpha is None
    assert fit.notes == (f"transparency was put on white, because {kind} has none",)


@pytest.mark.parametrize("kind", EVERY)
def test_16_bits_are_kept_or_rounded_and_told(kind: str, tmp_path: Path) -> None:
    picture = Picture(values(3, torch.uint16))
    fit = fitted(picture, kind)
    if kind == "PNG":
        assert torch.equal(read_back(encode(fit, kind), tmp_path).pixels, picture.pixels)
        return
    assert fit.notes == (f"16 bits a channel were written as the 8 that {kind} holds here; as PNG all are kept",)
    assert torch.equal(fit.pixels.double(), (picture.pixels.double() / 257).round())


def test_tiff_keeps_16_bits_of_gray(tmp_path: Path) -> None:
    picture = Picture(values(1, torch.uint16))
    assert torch.equal(read_back(encode(fitted(picture, "TIFF"), "TIFF"), tmp_path).pixels, picture.pixels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("exif", [None, exif_bytes()])
def test_metadata_can_be_left_out_and_the_look_stays(dtype: torch.dtype, exif: bytes | None) -> None:
    picture = Picture(values(3, dtype), icc=SRGB, exif=exif, dpi=(300.0, 300.0))
    for metadata in (True, False):
        with PIL.Image.open(BytesIO(encode(picture, "PNG", metadata=metadata, prompt='{"a": 1}'))) as read:
            read.load()
            assert read.info.get("prompt") == ('{"a": 1}' if metadata else None)
            assert bool(read.getexif()) == (metadata and exif is not None)
            assert read.info["icc_profile"] == SRGB
            assert read.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_quality_is_the_formats_own_or_the_users() -> None:
    noisy = Picture(values(3, height=64, width=64))
    for kind in ("JPEG", "WEBP", "AVIF"):
        low, usual, high = (len(encode(noisy, kind, quality)) for quality in (10, None, 100))
        assert low < usual < high
    with PIL.Image.open(BytesIO(encode(noisy, "JPEG"))) as read:
        assert [component[1:3] for component in read.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]  # 4:4:4


@pytest.mark.parametrize(("kind", "side"), [("WEBP", 16383), ("JPEG", 65500), ("AVIF", 32768)])
def test_a_side_that_a_format_cannot_hold(kind: str, side: int) -> None:
    check_holds(kind, 1, side)
    with pytest.raises(ValueError, match=rf"{side + 1}x1 is more than {kind} holds, {side} a side; write it as PNG"):
        check_holds(kind, 1, side + 1)
    with pytest.raises(ValueError, match=f"more than {kind} holds"):
        encode(Picture(torch.zeros(1, 1, side + 1, dtype=torch.uint8)), kind)


def gray_profile(gamma: float) -> bytes:
    """A profile of gray, of ICC version 2, as short as they come."""
    text = b"gray\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(12 + 67),
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),  # D50, in 16.16
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma)) + bytes(2),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"", 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0") + table + body


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_gray_of_a_profile_becomes_srgb_where_gray_cannot_be(kind: str, tmp_path: Path) -> None:
    """Linear gray of 55 is sRGB of 128; the same number in a profile of gray would be read as linear again."""
    gray = Picture(torch.full((1, 16, 16), 55, dtype=torch.uint8), torch.full((1, 16, 16), 9, dtype=torch.uint8))
    fit = fitted(replace(gray, icc=gray_profile(1.0)), kind)
    assert fit.notes == ("gray was converted to sRGB through its profile",)
    assert fit.alpha is not None
    read = read_back(encode(fit, kind), tmp_path)
    assert read.icc is None
    linear = 55 / 255
    wanted = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert fit.pixels.shape == (3, 16, 16)
    assert float((fit.pixels - wanted).abs().max()) <= 1
    assert float((read.pixels - wanted).abs().max()) <= 3


def test_a_profile_of_gray_is_kept_where_gray_is_and_left_out_where_damaged() -> None:
    gray, icc = Picture(values(1)), gray_profile(2.2)
    for kind in ("PNG", "JPEG", "TIFF"):
        assert (fitted(replace(gray, icc=icc), kind).icc, fitted(replace(gray, icc=icc), kind).notes) == (icc, ())
    assert fitted(replace(gray, icc=SRGB), "WEBP").icc == SRGB  # of three equal channels it is right
    damaged = fitted(replace(gray, icc=icc[:150]), "WEBP")
    assert (damaged.icc, torch.equal(damaged.pixels, gray.pixels)) == (None, True)
    assert damaged.notes == ("the colour profile was left out, because it is damaged or not of gray",)


def test_what_an_encoder_refuses_is_told() -> None:
    with pytest.raises(ValueError, match="it cannot be written as JPEG"):
        encode(replace(Picture(values(3)), alpha=values(1)), "JPEG")  # not fitted
