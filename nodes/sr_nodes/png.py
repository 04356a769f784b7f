"""PNG files of 16 bits a channel, which Pillow neither reads nor writes in colour, and the graph that a PNG carries."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sr_pipeline.graph import Graph
from sr_pipeline.pngtext import SIGNATURE

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type of so many channels: gray, gray and alpha, RGB, RGBA."""
_ROWS = 256
"""Rows compressed at once, so that no second picture is held."""


def png_depth(data: bytes) -> int:
    """Bits a channel that a PNG's header says; 0 for other data."""
    return data[24] if data.startswith(SIGNATURE) and len(data) > 24 else 0


def decode_png16(data: bytes) -> Tensor:
    """A PNG of 16 bits a channel, uint16 [C, H, W] with 1 to 4 channels; raises what Pillow raises for damaged data."""
    kind = data[25]  # the header's colour type
    if kind == _COLOUR_TYPES[1]:
        high_low = _bytes(data, "I;16B").byteswap().view(np.uint8)
    elif kind == _COLOUR_TYPES[2]:
        high_low = _bytes(data, "RGBA")  # the four bytes of a pixel, as those of one of 8 bits
    else:
        # As big-endian, Pillow keeps the first byte of each two; told that it is little-endian, the second.
        name = "RGB" if kind == _COLOUR_TYPES[3] else "RGBA"
        high_low = np.stack([_bytes(data, f"{name};16{order}") for order in "BL"], axis=3)
    levels = high_low.reshape(*high_low.shape[:2], -1).view(">u2").astype(np.uint16)
    return torch.from_numpy(levels).permute(2, 0, 1)


def deep_channels(data: bytes, key: int | tuple[int, ...] | None) -> Tensor:
    """As ``decode_png16``, and alpha where the file names a gray or a colour, ``key``, that is transparent."""
    levels = decode_png16(data)
    if key is None or len(levels) not in (1, 3):
        return levels
    wide = levels.to(torch.int32)
    clear = (wide == torch.tensor(key).view(-1, 1, 1)).all(dim=0, keepdim=True)
    return torch.cat([wide, 65535 * (~clear).to(torch.int32)]).to(torch.uint16)


def rounded_to_8(levels: Tensor) -> Tensor:
    """Levels from 0 to 65535 as uint8: divided by 257, and rounded.

    >>> rounded_to_8(torch.tensor([128, 129, 65535]))
    tensor([  0,   1, 255], dtype=torch.uint8)
    """
    return ((levels.to(torch.int32) + 128) // 257).to(torch.uint8)


def _bytes(data: bytes, rawmode: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The pixels as Pillow unpacks them in a mode of its decoder."""
    with PIL.Image.open(BytesIO(data), formats=("PNG",)) as picture:
        picture.tile = [tile._replace(args=rawmode) for tile in picture.tile]
        picture.load()
        array = np.array(picture)
    return array if array.ndim == 3 else array[:, :, None]


def run_graph(run_dir: Path | None) -> Graph | None:
    path = run_dir and run_dir / "graph.json"
    return Graph.load(path) if path and path.is_file() else None


def prompt_of(graph: Graph | None) -> str | None:
    """A graph as ComfyUI writes it into a PNG: JSON on one line, in ASCII."""
    return None if graph is None else json.dumps(json.loads(graph.to_json()))


def text_chunks(prompt: str | None = None, xmp: bytes | None = None) -> PngInfo:
    """The text chunks of a graph, as ComfyUI writes it, and of XMP."""
    info = PngInfo()
    if prompt is not None:
        info.add_text("prompt", prompt)
    if xmp is not None:
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    return info


def encode_png16(levels: Tensor, compression: int, **metadata: Any) -> bytes:
    """uint16 [C, H, W] as a PNG, with the metadata that Pillow's own writer takes.

    >>> levels = torch.tensor([[[0, 513, 65535]]] * 3).to(torch.uint16)
    >>> torch.equal(decode_png16(encode_png16(levels, 6)), levels)
    True
    """
    channels, height, width = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    model = BytesIO()  # of one pixel: its chunks are what Pillow makes of the metadata
    PIL.Image.new("RGB" if channels > 2 else "L", (1, 1)).save(model, "PNG", **metadata)
    out = BytesIO()
    out.write(SIGNATURE)
    for kind, content in _chunks(model.getvalue()):
        bodies = {b"IHDR": iter((header,)), b"IDAT": _compressed(levels, compression)}.get(kind, iter((content,)))
        for body in bodies:
            out.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return out.getvalue()


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length


def _compressed(levels: Tensor, compression: int) -> Iterator[bytes]:
    """The scan lines, each with its difference to the line above (filter 2), compressed by blocks of rows."""
    deflate = zlib.compressobj(compression)
    above = np.zeros((1, levels.shape[2] * levels.shape[0] * 2), np.uint8)
    for start in range(0, levels.shape[1], _ROWS):
        block = levels[:, start : start + _ROWS].permute(1, 2, 0).contiguous().numpy()
        rows = block.astype(">u2").view(np.uint8).reshape(len(block), -1)
        lines = np.full((len(rows), rows.shape[1] + 1), 2, np.uint8)
        lines[:, 1:] = rows - np.concatenate([above, rows[:-1]])
        above = rows[-1:]
        if compressed := deflate.compress(lines.tobytes()):
            yield compressed
    yield deflate.flush()
