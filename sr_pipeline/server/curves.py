"""The course of a run's numbers, as pictures. Drawn by hand: a plotting library would take a second to import."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from math import isfinite

import PIL.Image
from PIL import ImageDraw, ImageFont

MAX_POINTS = 1000
"""Of one line; where there would be more, each second point is left out, the newest never."""
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 480, 240, 76, 26, 12, 24
INK, GRID = (90, 90, 90), (225, 225, 225)
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75))


class Line:
    """One number over the steps."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def add(self, step: int, value: float) -> None:
        """The value at a step; a resumed run tells the steps after its checkpoint again."""
        while self.points and self.points[-1][0] >= step:
            self.points.pop()
        if isfinite(value):
            self.points.append((step, value))
        if len(self.points) > MAX_POINTS:
            self.points = self.points[-1::-2][::-1]


def draw(lines: dict[str, Line]) -> bytes | None:
    """A PNG of the lines over one another, or None where none has two points."""
    shown = {name: line.points for name, line in lines.items() if len(line.points) > 1}
    if not shown:
        return None
    picture = PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=12)
    first, last = _range(step for points in shown.values() for step, _ in points)
    low, high = _range(value for points in shown.values() for _, value in points)
    for part in (0, 0.5, 1):
        y = round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - part))
        pen.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        pen.text((LEFT - 6, y), f"{low * (1 - part) + high * part:.4g}", fill=INK, font=font, anchor="rm")
        step = round(first + part * (last - first))
        x, anchor = round(_place((step, low), first, last, low, high)[0]), "rm" if part == 1 else "mm"
        pen.text((WIDTH - 2 if part == 1 else x, HEIGHT - BOTTOM // 2), f"{step}", fill=INK, font=font, anchor=anchor)
    at = LEFT
    for colour, (name, points) in zip(COLOURS * len(shown), shown.items(), strict=False):
        pen.line([_place(p, first, last, low, high) for p in points], fill=colour, width=2)
        label = f"{name} {points[-1][1]:.5g}  "
        pen.text((at, TOP // 2), label, fill=colour, font=font, anchor="lm")
        at += round(pen.textlength(label, font=font))
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _place(point: tuple[int, float], first: float, last: float, low: float, high: float) -> tuple[float, float]:
    """Where a point is in the picture. The halves do not overflow where the whole may."""
    x, y = (point[0] - first) / (last - first), (point[1] / 2 - low / 2) / (high / 2 - low / 2)
    return LEFT + x * (WIDTH - LEFT - RIGHT), TOP + (1 - y) * (HEIGHT - TOP - BOTTOM)


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    room = max(0.5, abs(low) / 10)
    return (low, high) if high > low else (low - room, high + room)
