"""What goes over the web socket: JSON messages, and ComfyUI's binary frames."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

TEXT, PREVIEW = 3, 4


@dataclass(frozen=True)
class Frame:
    """One message, encoded once for all sockets."""

    data: str | bytes
    key: str = ""
    """A newer frame of the same key takes the place of one that waits; with none, each is sent."""
    told_features: bool = False
    """Only for clients that told their features: others cannot read it."""

    @cached_property
    def wire(self) -> bytes:
        """As it goes over a web socket: a server masks nothing, so that it is the same for each."""
        data = self.data
        sent = WireFrame(Opcode.TEXT, data.encode()) if isinstance(data, str) else WireFrame(Opcode.BINARY, data)
        return sent.serialize(mask=False)


def message(kind: str, data: dict[str, Any], key: str = "") -> Frame:
    return Frame(json.dumps({"type": kind, "data": data}, allow_nan=False), key)


def text_frame(node: str, text: str) -> Frame:
    """A text that the front end shows in a node while the run goes on."""
    name = node.encode()
    return Frame(struct.pack(">II", TEXT, len(name)) + name + text.encode(), f"text {node}", told_features=True)


def preview_frame(node: str, prompt_id: str, picture: bytes, image_type: str = "image/png") -> Frame:
    """A picture that the front end shows in a node while the run goes on."""
    about = {
        "node_id": node,
        "display_node_id": node,
        "parent_node_id": None,
        "real_node_id": node,
        "prompt_id": prompt_id,
        "image_type": image_type,
    }
    head = json.dumps(about).encode()
    return Frame(struct.pack(">II", PREVIEW, len(head)) + head + picture, f"preview {node}", told_features=True)
