"""Pictures read as they are: every mode, depth, orientation and format, against what Pillow was given."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageCms, ImageOps
from PIL.ExifTags import IFD, Base

from sr_nodes.picture_files import Picture, read_whole
from sr_nodes.pictures import UnreadablePicture, read_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height: int, width: int, channels: int, levels: int = 256) -> Any:
    dtype = np.uint8 if levels == 256 else np.uint16
    return np.random.default_rng(0).integers(0, levels, (height, width, channels), dtype=dtype)


def picture_of(mode: str, height: int = 5, width: int = 7) -> PIL.Image.Image:
    array = noise(height, width, len(mode))
    return PIL.Image.merge(mode, [PIL.Image.fromarray(array[:, :, n]) for n in range(len(mode))])


def saved(path: Path, picture: PIL.Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def channels(picture: Picture) -> Any:
    parts = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha]
    return torch.cat(parts).permute(1, 2, 0).numpy()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(array: Any, extra: bytes = b"") -> bytes:
    """Written chunk by chunk, without filters, so that no code under test is in it."""
    height, width, count = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_8_bits_stay_as_they_are(mode: str, tmp_path: Path) -> None:
    made = picture_of(mode)
    read = read_whole(saved(tmp_path / "a.png", made))
    assert np.array_equal(channels(read), np.array(made).reshape(5, 7, -1))
    assert (len(read.pixels), read.alpha is None) == (len(mode.rstrip("A")), not mode.endswith("A"))
    assert (read.size, read.kind, read.notes) == ((5, 7), "PNG", ())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_png_of_16_bits_stays_as_it_is(count: int, tmp_path: Path) -> None:
    array = noise(5, 7, count, 65536)
    (tmp_path / "a.png").write_bytes(png16(array))
    read = read_whole(tmp_path / "a.png")
    assert read.pixels.dtype == torch.uint16
    assert np.array_equal(channels(read), array)
    assert (read.alpha is None) == (count in (1, 3))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_png_of_16_bits_is_rounded_where_8_are_wanted(count: int, tmp_path: Path) -> None:
    """On white where it is clear: within the one level that rounding before and after it makes."""
    array = noise(40, 50, count, 65536)
    (tmp_path / "a.png").write_bytes(png16(array))
    colours = array[:, :, : count - 1] if count % 2 == 0 else array
    opaque = array[:, :, -1:] / 65535 if count % 2 == 0 else 1.0
    wanted = np.broadcast_to(255 * (colours / 65535 * opaque + 1 - opaque), (40, 50, 3))
    found = read_picture(tmp_path / "a.png").permute(1, 2, 0).numpy() - wanted
    assert np.abs(found).max() <= (0.5 if count % 2 else 1.5)
    assert abs(found.mean()) < 0.02  # the high byte alone is half a level too dark


def test_png_of_16_bits_with_a_clear_colour_is_on_white_and_upright(tmp_path: Path) -> None:
    array = np.array([[[1000, 2000, 3000], [1000, 2000, 3001]]], np.uint16)
    exif = PIL.Image.Exif()
    exif[Base.Orientation] = 3  # by 180 degrees
    extra = chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000)) + chunk(b"eXIf", exif.tobytes()[6:])
    (tmp_path / "a.png").write_bytes(png16(array, extra))
    assert read_picture(tmp_path / "a.png").permute(1, 2, 0).tolist() == [[[4, 8, 12], [255, 255, 255]]]


def test_interlaced_png_of_16_bits(tmp_path: Path) -> None:
    """Adam7, by its definition: seven passes, each every so many rows and columns from a start."""
    array = noise(11, 13, 3, 65536)
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    parts = [array[top::down, left::right] for top, down, left, right in passes]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts for row in part if row.size)
    header = struct.pack(">IIBBBBB", 13, 11, 16, 2, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.array_equal(channels(read_whole(tmp_path / "a.png")), array)


@pytest.mark.parametrize("count", [1, 3])
def test_a_clear_colour_of_16_bits_is_alpha(count: int, tmp_path: Path) -> None:
    array = noise(5, 7, count, 65536)
    (tmp_path / "a.png").write_bytes(png16(array, chunk(b"tRNS", array[2, 3].astype(">u2").tobytes())))
    read = read_whole(tmp_path / "a.png")
    expected = np.full((5, 7), 65535, np.uint16)
    expected[2, 3] = 0
    assert read.alpha is not None
    assert np.array_equal(read.alpha[0].numpy(), expected)


def test_palette_one_bit_and_clear_colours(tmp_path: Path) -> None:
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert channels(read_whole(saved(tmp_path / "p.png", palette))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    clear = read_whole(saved(tmp_path / "c.png", palette, transparency=bytes([51, 255])))
    assert channels(clear).tolist() == [[[10, 20, 30, 51], [40, 50, 60, 255]]]
    bit = read_whole(saved(tmp_path / "b.png", PIL.Image.fromarray(np.array([[True, False]]))))
    assert channels(bit).tolist() == [[[255], [0]]]
    gray = read_whole(saved(tmp_path / "g.png", PIL.Image.fromarray(np.array([[7, 9]], np.uint8)), transparency=7))
    assert channels(gray).tolist() == [[[7, 0], [9, 255]]]


@pytest.mark.parametrize(("bits", "levels"), [(1, [0, 255]), (2, [0, 85, 170, 255]), (4, list(range(0, 256, 17)))])
def test_the_clear_gray_of_few_bits(bits: int, levels: list[int], tmp_path: Path) -> None:
    """A PNG names it as it stores it, 1 of 0 to 3, and its pixels are read as 0 to 255."""
    row = sum(level << bits * (len(levels) - 1 - level) for level in range(len(levels)))
    packed = (row << -len(levels) * bits % 8).to_bytes(-(-len(levels) * bits // 8), "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(levels), 1, bits, 0, 0, 0, 0))
    rest = chunk(b"tRNS", b"\0\1") + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rest)
    wanted = [[level, 0 if place == 1 else 255] for place, level in enumerate(levels)]
    assert channels(read_whole(tmp_path / "a.png")).tolist() == [wanted]


def test_tiff_of_16_bits_is_kept_in_gray_and_read_as_8_in_colour(tmp_path: Path) -> None:
    gray = noise(5, 7, 1, 65536)
    read = read_whole(saved(tmp_path / "g.tif", PIL.Image.fromarray(gray[:, :, 0])))
    assert np.array_equal(channels(read), gray)
    assert read.notes == ()
    colour = noise(2, 3, 3, 65536)
    pixels = colour.astype("<u2").tobytes()
    tags = [(256, 4, 1, 3), (257, 4, 1, 2), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3)]
    tags += [(278, 4, 1, 2), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    depth = 8 + len(pixels)
    tags = sorted([*tags, (258, 3, 3, depth)])
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    data = struct.pack("<2sHI", b"II", 42, depth + 6) + pixels + struct.pack("<HHH", 16, 16, 16) + table
    (tmp_path / "c.tif").write_bytes(data)
    read = read_whole(tmp_path / "c.tif")
    assert read.notes == ("16 bits a channel were read as 8; as PNG all are kept",)
    assert np.abs(channels(read).astype(int) - colour / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_orientation_is_applied_once(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[Base.Orientation] = orientation
    exif[Base.Make] = "maker"
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", picture_of("RGB"), exif=exif.tobytes(), **options)
    with PIL.Image.open(path) as picture:
        expected = np.array(ImageOps.exif_transpose(picture))
    read = read_whole(path)
    assert np.array_equal(channels(read), expected)
    assert read.exif is not None
    kept = PIL.Image.Exif()
    kept.load(read.exif)
    assert (kept[Base.Orientation], kept[Base.Make]) == (1, "maker")


def test_orientation_of_16_bits(tmp_path: Path) -> None:
    array = noise(5, 7, 3, 65536)
    exif = PIL.Image.Exif()
    exif[Base.Orientation] = 6
    (tmp_path / "a.png").write_bytes(png16(array, chunk(b"eXIf", exif.tobytes()[6:])))
    assert np.array_equal(channels(read_whole(tmp_path / "a.png")), np.rot90(array, -1))


def test_exif_keeps_the_shot_and_its_place_and_not_how_the_file_stored_it(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[Base.Artist] = "\u00c4".encode()
    exif[Base.XResolution] = 72.0
    exif[IFD.Exif] = {Base.FNumber: 2.8, Base.ExifImageWidth: 7}
    exif[IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.0)}
    read = read_whole(saved(tmp_path / "a.jpg", picture_of("RGB"), exif=exif))
    kept = PIL.Image.Exif()
    assert read.exif is not None
    kept.load(read.exif)
    assert kept[Base.Artist].encode("latin-1").decode() == "\u00c4"
    assert set(kept) == {Base.Artist, Base.Orientation, IFD.Exif, IFD.GPSInfo}
    assert kept.get_ifd(IFD.Exif)[Base.FNumber] == pytest.approx(2.8)
    assert kept.get_ifd(IFD.GPSInfo) == {1: "N", 2: (1.0, 2.0, 3.0)}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_resolution_and_profile(suffix: str, tmp_path: Path) -> None:
    profile = {} if suffix == "bmp" else {"icc_profile": SRGB}
    read = read_whole(saved(tmp_path / f"a.{suffix}", picture_of("RGB"), dpi=(300, 150), **profile))
    assert read.dpi == pytest.approx((300, 150), abs=0.02)
    assert read.icc == profile.get("icc_profile")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("orientation", "wanted"), [(1, (300, 150)), (3, (300, 150)), (6, (150, 300)), (8, (150, 300))]
)
def test_the_resolution_turns_with_the_picture(
    suffix: str, orientation: int, wanted: tuple[int, int], tmp_path: Path
) -> None:
    exif = PIL.Image.Exif()
    exif[Base.Orientation] = orientation
    read = read_whole(saved(tmp_path / f"a.{suffix}", picture_of("RGB"), dpi=(300, 150), exif=exif))
    assert read.dpi == pytest.approx(wanted, abs=0.02)


def test_a_wide_profile_is_kept_and_values_are_not_converted(tmp_path: Path) -> None:
    made = picture_of("RGB")
    read = read_whole(saved(tmp_path / "a.png", made, icc_profile=b"a profile that nobody can read"))
    assert read.icc == b"a profile that nobody can read"
    assert np.array_equal(channels(read), np.array(made))


def test_cmyk_becomes_rgb_without_its_profile(tmp_path: Path) -> None:
    white = PIL.Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    read = read_whole(saved(tmp_path / "a.jpg", white, quality=95))
    assert (read.icc, len(read.pixels)) == (None, 3)
    assert int(read.pixels.min()) >= 250


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "avif", "tif"])
def test_animated_and_many_pages_are_told(suffix: str, tmp_path: Path) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    found = "has 3 pages" if suffix == "tif" else "is animated: 3 frames"
    with pytest.raises(UnreadablePicture, match=rf"a\.{suffix}: {found}; save the one that is meant"):
        read_whole(path)


def test_the_first_of_a_phones_pictures(tmp_path: Path) -> None:
    first = PIL.Image.new("RGB", (8, 8), "red")
    path = saved(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[PIL.Image.new("RGB", (4, 4))])
    read = read_whole(path)
    assert (read.kind, read.size, read.notes) == ("JPEG", (8, 8), ("the first picture of several is taken",))


def data_of(picture: PIL.Image.Image, kind: str) -> bytes:
    out = BytesIO()
    picture.save(out, kind)
    return out.getvalue()


DAMAGED = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"no picture at all", "not a picture of a kind that is read: PNG, JPEG, WEBP"),
    "cut.jpg": (data_of(picture_of("RGB", 64, 64), "JPEG")[:-600], "damaged or truncated"),
    "cut.png": (data_of(picture_of("RGB", 64, 64), "PNG")[:-600], "damaged or"),
    "cut16.png": (png16(noise(9, 9, 3, 65536))[:-80], "damaged or"),
    "cut.webp": (data_of(picture_of("RGB", 64, 64), "WEBP")[:-600], "damaged|not a picture"),
    "float.tif": (data_of(PIL.Image.new("F", (2, 2)), "TIFF"), "mode F, which have no agreed white"),
    "deep.tif": (data_of(PIL.Image.new("I", (2, 2), 70000), "TIFF"), "32-bit pixels from 70000 to 70000"),
    "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a kind that is read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_with_the_files_name(name: str, tmp_path: Path) -> None:
    data, words = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadablePicture, match=rf"{name}: .*({words})"):
        read_whole(tmp_path / name)


@pytest.mark.parametrize(
    "form", [b'tiff:Orientation="6"', b"tiff:Orientation='6'", b"<tiff:Orientation>6</tiff:Orientation>"]
)
def test_the_orientation_in_xmp_is_1_from_then_on(form: bytes, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[Base.Orientation] = 6
    content = b'<x:xmpmeta>tiff:OrientationX="6" ' + form + b"</x:xmpmeta>"
    read = read_whole(saved(tmp_path / "a.jpg", picture_of("RGB"), exif=exif, xmp=content))
    assert read.size == (7, 5)
    assert read.xmp == content.replace(form, form.replace(b"6", b"1"))


def test_xmp_of_several_pictures_is_left_out(tmp_path: Path) -> None:
    first, second = PIL.Image.new("RGB", (8, 8), "red"), PIL.Image.new("RGB", (4, 4))
    one = saved(tmp_path / "a.jpg", first, xmp=b"<x/>")
    two = saved(tmp_path / "b.jpg", first, format="MPO", save_all=True, append_images=[second], xmp=b"<x/>")
    assert (read_whole(one).xmp, read_whole(two).xmp) == (b"<x/>", None)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePicture, match=r"nix\.png: No such file"):
        read_whole(tmp_path / "nix.png")
    with pytest.raises(UnreadablePicture, match="Is a directory"):
        read_whole(tmp_path)


def test_a_bomb_is_refused_by_its_header_and_the_limit_can_be_raised(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    before = PIL.Image.MAX_IMAGE_PIXELS
    with pytest.raises(UnreadablePicture, match="30000x30000 is 900 megapixels, and at most 150 are read"):
        read_whole(tmp_path / "bomb.png")
    assert before == PIL.Image.MAX_IMAGE_PIXELS
    path = saved(tmp_path / "large.png", PIL.Image.new("1", (14000, 14000)))
    with pytest.raises(UnreadablePicture, match="196 megapixels"):
        read_whole(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_whole(path, max_megapixels=200).size == (14000, 14000)
