"""Real files of every kind, made with Pillow, against what their pixels must be."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageCms, ImageOps

from sr_nodes.picture_files import read_whole
from sr_nodes.pictures import (
    UnreadablePicture,
    decoded_bytes,
    find_pictures,
    load_image,
    read_picture,
    read_pictures,
    to_image,
    to_uint8,
    write_picture,
    write_png,
)
from sr_pipeline.sockets import SILENT

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """Colours that JPEG keeps to a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 60 + 0 * x], axis=2).astype(np.uint8)


def read(path: Path) -> Pixels:
    """[H, W, 3], for comparison with numpy."""
    pixels = read_picture(path)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    return pixels.permute(1, 2, 0).numpy()


def lossless(suffix: str) -> dict[str, Any]:
    return {"lossless": True} if suffix == "webp" else {}


def stored_mode(path: Path) -> str:
    with PIL.Image.open(path) as picture:
        return picture.mode


def repeated(gray: Pixels) -> Pixels:
    return np.repeat(gray[:, :, None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_rgb_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    array = noise(11, 17)
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(array).save(path, **lossless(suffix))
    assert np.array_equal(read(path), array)


@pytest.mark.parametrize("suffix", ["jpg", "avif"])
def test_lossy_rgb_is_read_nearly_as_it_is(tmp_path: Path, suffix: str) -> None:
    array = smooth(64, 48)
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(array).save(path, quality=95)
    assert np.abs(read(path).astype(int) - array).mean() < 3


def test_one_pixel(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def test_gray_and_one_bit_are_repeated(tmp_path: Path) -> None:
    gray = noise(5, 7, 1)[:, :, 0]
    PIL.Image.fromarray(gray).save(tmp_path / "gray.png")
    PIL.Image.fromarray(gray > 127).save(tmp_path / "bit.png")
    assert stored_mode(tmp_path / "bit.png") == "1"
    assert np.array_equal(read(tmp_path / "gray.png"), repeated(gray))
    assert np.array_equal(read(tmp_path / "bit.png"), repeated(((gray > 127) * 255).astype(np.uint8)))


def test_palette(tmp_path: Path) -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "clear.png", transparency=0)
    picture.save(tmp_path / "half.png", transparency=bytes([51, 255]))
    assert read(tmp_path / "plain.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert read(tmp_path / "clear.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert read(tmp_path / "half.png").tolist() == [[[206, 208, 210], [40, 50, 60]]]  # 255 - 0.2 * (255 - value)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_put_on_white(tmp_path: Path, mode: str) -> None:
    array = noise(20, 20, len(mode))
    bands = [PIL.Image.fromarray(array[:, :, band]) for band in range(len(mode))]
    PIL.Image.merge(mode, bands).save(tmp_path / "a.png")
    alpha = array[:, :, -1:] / 255
    expected = np.broadcast_to(array[:, :, :-1] * alpha + 255 * (1 - alpha), (20, 20, 3))
    assert stored_mode(tmp_path / "a.png") == mode
    assert np.abs(read(tmp_path / "a.png") - expected).max() <= 1


def test_gray_and_rgb_with_one_clear_colour(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "gray.png", transparency=7)
    PIL.Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert read(tmp_path / "gray.png").tolist() == [[[255, 255, 255], [9, 9, 9]]]
    assert read(tmp_path / "rgb.png").tolist() == [[[255, 255, 255], [4, 5, 6]]]


# What each EXIF orientation asks to be done to the stored pixels (EXIF 2.32, 4.6.4 A), in numpy's words.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    array = noise(4, 6)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(array).save(path, exif=exif)
    assert np.array_equal(read(path), UPRIGHT[orientation](array))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_a_jpeg(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    PIL.Image.fromarray(smooth(32, 48)).save(path, exif=exif)
    with PIL.Image.open(path) as stored:
        raw = np.asarray(stored)
        assert np.array_equal(read(path), np.asarray(ImageOps.exif_transpose(stored)))
    assert np.array_equal(read(path), UPRIGHT[orientation](raw))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 128, 129, 255, 256, 257, 40000, 60000, 65406, 65407, 65535]], np.uint16)
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(levels).save(path)
    assert stored_mode(path) == "I;16"
    assert read(path)[0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 156, 233, 254, 255, 255]
    assert np.array_equal(read(path), repeated(np.round(levels / 257).astype(np.uint8)))


def test_32_bit_gray_in_the_range_of_16_is_read_and_beyond_it_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "in.tif")
    PIL.Image.fromarray(np.array([[0, 65536]], np.int32)).save(tmp_path / "out.tif")
    assert read(tmp_path / "in.tif")[0, :, 0].tolist() == [0, 255]
    with pytest.raises(UnreadablePicture, match=r"out\.tif: damaged or unsupported: 32-bit pixels from 0 to 65536"):
        read_picture(tmp_path / "out.tif")


def test_floating_point_is_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadablePicture, match=r"a\.tif: .*floating-point pixels, which have no agreed white"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["tif", "webp", "png"])
def test_the_first_of_several_frames(tmp_path: Path, suffix: str) -> None:
    frames = [PIL.Image.fromarray(noise(8, 8, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **lossless(suffix))
    with PIL.Image.open(tmp_path / f"a.{suffix}") as stored:
        assert getattr(stored, "n_frames", 1) == 3
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), np.asarray(frames[0]))


def profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A colour profile of ICC version 2, byte by byte (ICC.1:2001-04)."""
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50 in s15Fixed16
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"cprt": b"text" + bytes(4) + b"none\0",
        **tags,
    }
    table, body, offset = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    date = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    head = struct.pack(">I4sI4s4s4s", offset + len(body), bytes(4), 0x02400000, kind, space, connection) + date
    head += b"acsp" + bytes(28) + white + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


# Display P3's primaries, adapted to D50, and sRGB's.
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def p3_profile() -> bytes:
    columns = {
        name: b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in P3[:, index]))
        for index, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    gamma = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256))
    return profile(b"RGB ", b"XYZ ", b"mntr", {**columns, b"rTRC": gamma, b"gTRC": gamma, b"bTRC": gamma})


def test_a_wide_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    colours = np.array([[[128, 128, 128], [150, 100, 90], [90, 140, 110], [255, 255, 255], [0, 0, 0]]], np.uint8)
    linear = (colours / 255) ** 2.2 @ (np.linalg.inv(SRGB) @ P3).T
    linear = linear.clip(0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    PIL.Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=p3_profile())
    found = read(tmp_path / "a.png")
    assert np.abs(found - expected).max() < 2
    assert np.abs(expected - colours).max() > 5  # so that reading it unconverted would fail
    clear = np.concatenate([colours, np.full((1, 5, 1), 255, np.uint8)], axis=2)
    PIL.Image.fromarray(clear).save(tmp_path / "b.png", icc_profile=p3_profile())
    assert np.array_equal(read(tmp_path / "b.png"), found)


def neutral_press_profile() -> bytes:
    """A press on which every ink is neutral: lightness falls by the ink's share, so that a red prints gray."""
    ink = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], [0, 1], indexing="ij")).reshape(4, 16).T
    lightness = np.round(255 * (1 - ink.mean(axis=1)))
    lab = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=1).astype(np.uint8)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + lab.tobytes() + 3 * ramp
    return profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": lut})


@pytest.mark.parametrize("icc", [b"no profile", p3_profile()[:200], neutral_press_profile()])
def test_a_profile_that_is_broken_or_of_another_colour_space_changes_nothing(tmp_path: Path, icc: bytes) -> None:
    array = noise(3, 3)
    PIL.Image.fromarray(array).save(tmp_path / "a.png", icc_profile=icc)
    assert np.array_equal(read(tmp_path / "a.png"), array)


def test_a_profile_that_calls_itself_srgb_changes_no_pixel(tmp_path: Path) -> None:
    array = noise(16, 16)
    genuine = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (genuine, p3_profile().replace(b"test\0", b"sRGB\0")):
        PIL.Image.fromarray(array).save(tmp_path / "a.png", icc_profile=icc)
        assert np.array_equal(read(tmp_path / "a.png"), array)


LINEAR = b"curv" + bytes(4) + struct.pack(">IH", 1, 256)


def test_linear_light_is_converted_whatever_its_profile_is_called(tmp_path: Path) -> None:
    """GIMP's is "GIMP built-in Linear sRGB"; a gray one fits gray alone."""
    columns = {
        name: b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in SRGB[:, index]))
        for index, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), LINEAR)
    named = b"desc" + bytes(4) + struct.pack(">I", 12) + b"Linear sRGB\0" + bytes(78)
    rgb = profile(b"RGB ", b"XYZ ", b"mntr", {**columns, **curves, b"desc": named})
    gray = profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": LINEAR})
    for mode, icc in (("RGB", rgb), ("L", gray)):
        PIL.Image.new(mode, (4, 4), (55,) * 3 if mode == "RGB" else 55).save(tmp_path / "a.png", icc_profile=icc)
        assert np.abs(read(tmp_path / "a.png").astype(int) - 128).max() <= 1


def test_a_negative_tiff_of_16_bits_is_made_positive(tmp_path: Path) -> None:
    levels = np.array([[0, 257 * 100, 65535]], np.uint16)
    PIL.Image.fromarray(levels).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.array_equal(read(tmp_path / "a.tif"), repeated(np.array([[255, 155, 0]], np.uint8)))
    assert torch.equal(
        read_whole(tmp_path / "a.tif").pixels[0].to(torch.int32), 65535 - torch.tensor(levels.astype(int))
    )


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_picture_with_damaged_exif_is_read_without_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(smooth(16, 16)).save(path, exif=b"Exif\0\0garbage", **lossless(suffix))
    assert read(path).shape == (16, 16, 3)
    assert read_whole(path).exif is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_is_no_picture_of_a_folder(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def test_cmyk_without_a_profile(tmp_path: Path) -> None:
    picture = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for suffix in ("jpg", "tif"):
        picture.save(tmp_path / f"a.{suffix}")
        assert np.abs(read(tmp_path / f"a.{suffix}") - np.array([255.0, 0, 0])).max() <= 3


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(path, icc_profile=neutral_press_profile())
    found = read(path)[0, 0].astype(int)
    assert np.abs(found - 119).max() <= 3  # L* 50 is 119 in sRGB
    kept = read_whole(path)  # as `upscale` reads it
    assert (torch.equal(kept.pixels, read_picture(path)), kept.icc) == (True, None)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    PIL.Image.fromarray(noise(64, 64)).save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UnreadablePicture, match=rf"cut\.{suffix}: (damaged|not a picture)"):
        read_picture(cut)


def test_no_picture_at_all(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, reason in [
        ("text", "not a picture, or of a kind unknown to Pillow"),
        ("empty", "the file is empty"),
        ("folder", "Is a directory"),
        ("missing", "No such file or directory"),
    ]:
        with pytest.raises(UnreadablePicture, match=rf"{name}\.png: {reason}"):
            read_picture(tmp_path / f"{name}.png")
        assert decoded_bytes(tmp_path / f"{name}.png") == 0


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UnreadablePicture, match=r"bomb\.png: too large: .*900000000 pixels"):
        read_picture(tmp_path / "bomb.png")
    assert decoded_bytes(tmp_path / "bomb.png") == 0


def test_pillows_warnings_do_not_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)  # 16 pixels: beyond the warning, short of the refusal
    with pytest.warns(PIL.Image.DecompressionBombWarning), PIL.Image.open(tmp_path / "a.png"):
        pass
    assert read_picture(tmp_path / "a.png").shape == (3, 4, 4)
    assert read_pictures([tmp_path / "a.png"], lambda p: p.shape[1], SILENT.progress) == [4]
    assert decoded_bytes(tmp_path / "a.png") == 48


def encoded(kind: str) -> bytes:
    file = BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(smooth(24, 24)).save(file, kind, exif=exif)
    return file.getvalue()


ENCODED = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")}


@given(st.sampled_from(sorted(ENCODED)), st.data())
def test_damage_anywhere_gives_pixels_or_unreadable_picture(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = bytearray(ENCODED[kind])
    places = data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8))
    for place, value in places:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    (result,) = read_pictures([path], lambda pixels: (pixels.dtype, pixels.shape[0]), SILENT.progress)
    assert result == (torch.uint8, 3) or str(result).startswith(f"{path}: ")


def test_many_are_read_in_order_with_the_unreadable_in_place(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        PIL.Image.new("RGB", (number + 1, 2)).save(path)
    paths[5].write_text("no picture")
    told: list[tuple[int, int]] = []
    results = read_pictures(paths, lambda pixels: pixels.shape[2], lambda done, total: told.append((done, total)))
    assert isinstance(results[5], UnreadablePicture)
    assert [r for r in results if isinstance(r, int)] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert told == [(number, 12) for number in range(1, 13)]


def test_decoded_bytes_is_what_the_pixels_take(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(5, 9, 1)[:, :, 0]).save(tmp_path / "a.png")
    assert decoded_bytes(tmp_path / "a.png") == read_picture(tmp_path / "a.png").nbytes == 135


def test_find_pictures(tmp_path: Path) -> None:
    for name in ["b.PNG", "a.jpeg", "sub/c.webp", "été 図.tif", ".hidden.png", ".git/d.png", "e.gif", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_pictures(tmp_path)]
    assert found == ["a.jpeg", "b.PNG", "e.gif", "sub/c.webp", "été 図.tif"]


def test_find_pictures_below_a_hidden_folder_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/a.png").touch()
    assert find_pictures(tmp_path / ".cache") == [tmp_path / ".cache/a.png"]


def test_find_pictures_without_any(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds no picture \(\.avif \.bmp \.gif \.jpeg"):
        find_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere' does not exist; give a folder of pictures"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"notes\.txt' is a file; give a folder of pictures"):
        find_pictures(tmp_path / "notes.txt")


def test_every_level_survives_the_way_to_an_image_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    image = to_image(levels)
    assert image.shape == (1, 3, 1, 256)
    assert image.dtype == torch.float32
    assert torch.equal(image.double(), (levels.double() / 255).float().double()[None])
    assert torch.equal(to_uint8(image)[0], levels)
    assert to_image(image.to(torch.uint8)).shape == (1, 3, 1, 256)


@given(st.floats(-3, 3, width=32))
def test_to_uint8_clamps_and_rounds_to_the_nearest(value: float) -> None:
    level = int(to_uint8(torch.tensor(value)))
    assert abs(level - 255 * min(1.0, max(0.0, value))) <= 0.5 + 1e-5


def test_write_png_is_lossless_and_leaves_no_other_file(tmp_path: Path) -> None:
    pixels = torch.from_numpy(noise(6, 5)).permute(2, 0, 1)
    write_png(tmp_path / "new/图 é.png", pixels)
    write_png(tmp_path / "new/图 é.png", pixels.flip(2))
    assert torch.equal(read_picture(tmp_path / "new/图 é.png"), pixels.flip(2))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["图 é.png"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, torch.zeros(3, 2, 2, dtype=torch.uint8))
    before = path.read_bytes()
    with pytest.raises(OSError, match="cannot write mode F as PNG"):
        write_picture(path, PIL.Image.new("F", (2, 2)))
    assert path.read_bytes() == before
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_picture(tmp_path / "folder.png", PIL.Image.new("RGB", (2, 2)))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "folder.png"]


def test_write_picture_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a\.gif' has the suffix '\.gif'; write one of \.png \.jpg \.jpeg \.webp"):
        write_picture(tmp_path / "a.gif", PIL.Image.new("RGB", (2, 2)))


def test_load_image(tmp_path: Path) -> None:
    array = noise(4, 6)
    PIL.Image.fromarray(array).save(tmp_path / "a.png")
    image = load_image(str(tmp_path / "a.png"))
    assert image.shape == (1, 3, 4, 6)
    assert np.array_equal(image[0].permute(1, 2, 0).numpy(), (array / np.float32(255)).astype(np.float32))
    assert load_image("sr_nodes:samples/test/picosdeeuropa.jpg").shape == (1, 3, 768, 1024)
    with pytest.raises(ValueError, match=r"missing\.png: No such file"):
        load_image(str(tmp_path / "missing.png"))


def test_a_program_is_no_picture(tmp_path: Path) -> None:
    """PostScript, for which Pillow would start Ghostscript, under a picture's name."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nquit\n")
    with PIL.Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "EPS"
    with pytest.raises(UnreadablePicture, match=r"a\.png: not a picture, or of a kind unknown to Pillow"):
        read_picture(tmp_path / "a.png")
    assert decoded_bytes(tmp_path / "a.png") == 0
