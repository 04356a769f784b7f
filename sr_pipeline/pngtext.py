"""The text that a PNG carries, read without decoding its pixels."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MAX_CHUNKS = 1_000_000
"""Of 8 KiB, as encoders cut them, these hold 8 GiB; a file of nothing but empty ones ends here."""


def png_text(file: BinaryIO, keyword: str, limit: int) -> str | None:
    """The first text of that keyword in a PNG, or None where it has none; other chunks are passed over unread.

    Args:
        file: the PNG, from its beginning.
        keyword: as PNG's specification has it: Latin-1, 1 to 79 characters.
        limit: bytes of the text, compressed or not.

    Raises:
        ValueError: the text is longer than ``limit``, cut short or damaged.
    """
    key = keyword.encode("latin-1") + b"\0"
    file.seek(len(SIGNATURE))
    for _ in range(_MAX_CHUNKS):
        if len(header := file.read(8)) < 8:
            break
        length, kind = struct.unpack(">I4s", header)
        start = file.read(min(length, len(key))) if kind in _TEXTS else b""
        if start != key:
            file.seek(length - len(start) + 4, 1)
            continue
        if length > limit:
            raise ValueError(f"its text {keyword!r} is longer than {limit} bytes")
        body = file.read(length - len(key))
        if file.read(4) != struct.pack(">I", zlib.crc32(kind + key + body)):
            raise ValueError(f"its text {keyword!r} is cut short or damaged")
        return _text(kind, body, keyword, limit)
    return None


def _text(kind: bytes, body: bytes, keyword: str, limit: int) -> str:
    if kind == b"tEXt":
        return body.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(body[1:], keyword, limit).decode("latin-1")
    compressed, rest = body[:1] == b"\1", body[2:].split(b"\0", 2)[-1]
    return (_inflated(rest, keyword, limit) if compressed else rest).decode("utf-8")


def _inflated(data: bytes, keyword: str, limit: int) -> bytes:
    try:
        found = zlib.decompressobj().decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"its text {keyword!r} is damaged: {error}") from error
    if len(found) > limit:
        raise ValueError(f"its text {keyword!r} is longer than {limit} bytes")
    return found
