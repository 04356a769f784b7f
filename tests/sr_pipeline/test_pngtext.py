"""Texts of PNGs made chunk by chunk, and of one that Pillow wrote."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from sr_pipeline import pngtext
from sr_pipeline.pngtext import SIGNATURE, png_text


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def read(data: bytes, limit: int = 100) -> str | None:
    return png_text(BytesIO(data), "prompt", limit)


TEXTS = {
    "plain": (b"tEXt", b"prompt\0caf\xe9"),
    "compressed": (b"zTXt", b"prompt\0\0" + zlib.compress(b"caf\xe9")),
    "international": (b"iTXt", b"prompt\0\0\0en\0prompt\0" + "caf\u00e9".encode()),
    "international, compressed": (b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress("caf\u00e9".encode())),
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_kind_of_text(name: str) -> None:
    others = (b"tEXt", b"prompter\0no"), (b"IDAT", b"prompt\0no" * 99)
    assert read(png(*others, TEXTS[name], (b"tEXt", b"prompt\0second"))) == "caf\u00e9"


@pytest.mark.parametrize("zipped", [False, True])
def test_pillows(zipped: bool) -> None:
    info = PngInfo()
    info.add_text("workflow", "no")
    info.add_text("prompt", '{"a": 1}', zip=zipped)
    out = BytesIO()
    PIL.Image.new("L", (9, 9)).save(out, "PNG", pnginfo=info)
    assert read(out.getvalue()) == '{"a": 1}'


def test_none_where_there_is_none() -> None:
    assert read(png((b"tEXt", b"workflow\0x"), (b"tEXt", b"a"))) is None
    assert read(SIGNATURE) is None
    assert read(png((b"IDAT", b"x" * 99))[:-50]) is None


def test_too_long_is_refused_before_it_is_read_or_inflated() -> None:
    assert read(png((b"tEXt", b"prompt\0" + b"x" * 93))) == "x" * 93
    with pytest.raises(ValueError, match="text 'prompt' is longer than 100 bytes"):
        read(png((b"tEXt", b"prompt\0" + b"x" * 94)))
    bomb = zlib.compress(b"x" * 10**6)
    with pytest.raises(ValueError, match="text 'prompt' is longer than 2000 bytes"):
        read(png((b"zTXt", b"prompt\0\0" + bomb)), limit=2000)


def test_damage_is_refused() -> None:
    whole = png(TEXTS["plain"])
    with pytest.raises(ValueError, match="text 'prompt' is cut short or damaged"):
        read(whole[:-1])
    with pytest.raises(ValueError, match="text 'prompt' is cut short or damaged"):
        read(whole.replace(b"caf", b"cap"))
    with pytest.raises(ValueError, match="text 'prompt' is damaged: Error -3"):
        read(png((b"zTXt", b"prompt\0\0no stream")))
    with pytest.raises(ValueError, match="utf-8"):
        read(png((b"iTXt", b"prompt\0\0\0\0\0\xff")))


def test_a_file_of_empty_chunks_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pngtext, "_MAX_CHUNKS", 1000)
    empty, text = [(b"IDAT", b"")], (b"tEXt", b"prompt\0x")
    assert read(png(*empty * 999, text)) == "x"
    assert read(png(*empty * 1000, text)) is None
