"""A small picture of a workflow: a box a node, a line a link."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import PIL.Image
from PIL import ImageDraw

WIDTH, HEIGHT, MARGIN = 400, 300, 16
GROUND, LINK, BOX, TITLE = (32, 34, 38), (96, 120, 150), (58, 62, 70), (88, 140, 190)


def draw(workflow: Mapping[str, Any]) -> bytes:
    """A WebP of 400 x 300 pixels."""
    boxes = {node["id"]: (*map(float, node["pos"]), *map(float, node["size"])) for node in workflow["nodes"]}
    left, top = (min(box[n] for box in boxes.values()) for n in (0, 1))
    right, bottom = (max(box[n] + box[n + 2] for box in boxes.values()) for n in (0, 1))
    factor = min((WIDTH - 2 * MARGIN) / max(right - left, 1), (HEIGHT - 2 * MARGIN) / max(bottom - top, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        middle = (WIDTH - factor * (right - left)) / 2, (HEIGHT - factor * (bottom - top)) / 2
        return middle[0] + factor * (x - left), middle[1] + factor * (y - top)

    picture = PIL.Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    pen = ImageDraw.Draw(picture)
    for _, source, _, target, *_ in workflow["links"]:
        (x, y, width, _), (u, v, *_) = boxes[source], boxes[target]
        pen.line((*place(x + width, y), *place(u, v)), fill=LINK)
    for x, y, width, height in boxes.values():
        pen.rectangle((*place(x, y), *place(x + width, y + height)), fill=BOX)
        pen.rectangle((*place(x, y), *place(x + width, y + min(height, 40))), fill=TITLE)
    out = BytesIO()
    picture.save(out, "WEBP", quality=85)
    return out.getvalue()
