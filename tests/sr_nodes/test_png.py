"""PNG of 16 bits a channel: read back by torchvision's libpng, and by Pillow where it can."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_nodes.png import decode_png16, encode_png16, png_depth, text_chunks


def levels(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed).integers(0, 65536, (channels, height, width), dtype=np.uint16)
    return torch.from_numpy(drawn)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_round_trip(channels: int, height: int, width: int, seed: int) -> None:
    given_ = levels(channels, height, width, seed)
    data = encode_png16(given_, 6)
    assert png_depth(data) == 16
    assert torch.equal(decode_png16(data), given_)


def test_more_rows_than_a_block() -> None:
    tall = levels(3, 600, 2)
    assert torch.equal(decode_png16(encode_png16(tall, 1)), tall)


def test_gray_is_what_pillow_reads() -> None:
    gray = levels(1, 5, 7)
    with PIL.Image.open(BytesIO(encode_png16(gray, 6))) as picture:
        assert picture.mode == "I;16"
        assert np.array_equal(np.array(picture), gray[0].numpy())


def test_metadata_is_pillows() -> None:
    exif = PIL.Image.Exif()
    exif[0x010F] = "maker"
    data = encode_png16(
        levels(4, 3, 2), 6, dpi=(300, 300), icc_profile=b"p" * 200, exif=exif, pnginfo=text_chunks("{}")
    )
    with PIL.Image.open(BytesIO(data)) as picture:
        picture.load()
        assert picture.size == (2, 3)
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert picture.info["icc_profile"] == b"p" * 200
        assert picture.getexif()[0x010F] == "maker"
        assert picture.info["prompt"] == "{}"


def test_depth_of_other_data() -> None:
    out = BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(out, "PNG")
    assert [png_depth(data) for data in (out.getvalue(), b"", b"\x89PNG\r\n\x1a\n", b"x" * 99)] == [8, 0, 0, 0]
