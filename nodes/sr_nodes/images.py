"""Pictures that a run writes: previews, results, and a sheet that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import PIL.Image
import torch
from PIL import ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.metrics import psnr
from sr_nodes.pictures import from_uint8, saved_as, to_uint8, write_picture, write_png
from sr_nodes.png import prompt_of, run_graph
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.paths import inside
from sr_pipeline.sockets import SILENT, Every, OutputName, Report, RunDir, Step

HERE = Path()
GAP = 4
"""White pixels between the pictures of a preview."""


@node(category="images", output=True)
def preview(
    lr: Image,
    sr: Image,
    hr: Image,
    name: OutputName = "previews",
    every: Every = 500,
    max_images: Annotated[int, Field(ge=1)] = 4,
    run_dir: RunDir = HERE,
    step: Step = 0,
    report: Report = SILENT,
) -> None:
    """A PNG of the first images of this step, a row each: LR enlarged by nearest, SR, HR, with gaps of 4 white pixels.

    It is NAME/SSSSSSSS.png in the run's folder, where SSSSSSSS is the number of steps done, this one included.

    Args:
        lr: what the generator was given, [B, 3, h, w] in [0, 1].
        sr: what it made of it, [B, 3, H, W], where H and W are the same multiple of h and w.
        hr: what it should have made, of SR's shape.
        name: the folder in the run's folder; two previews in one graph need two names.
        every: write at each n-th step and after the last; 0 is after the last only.
        max_images: rows at most.

    Raises:
        ValueError: the name leads out of the run's folder, or the three batches do not belong together.
    """
    folder = inside(run_dir, name)
    _check_shapes(lr, hr, sr=sr)
    lr, sr, hr = (image[:max_images].detach().float() for image in (lr, sr, hr))
    enlarged = F.interpolate(lr, size=hr.shape[2:], mode="nearest-exact")
    rows = [_beside(list(row)) for row in zip(enlarged, sr, hr, strict=True)]
    path = folder / f"{step + 1:08d}.png"
    write_png(path, to_uint8(_beside([row.transpose(1, 2) for row in rows]).transpose(1, 2)))
    report.image(path)


def _check_shapes(lr: Tensor, hr: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.shape != hr.shape or len(lr) != len(hr):
            raise ValueError(
                f"lr is {list(lr.shape)}, {name} {list(other.shape)} and hr {list(hr.shape)}; "
                f"{name} and hr need one shape, and all three the same number of images"
            )


def _beside(images: list[Tensor]) -> Tensor:
    """Images [3, H, W] of one height side by side, with gaps."""
    gap = images[0].new_ones(3, images[0].shape[1], GAP)
    return torch.cat([part for image in images for part in (gap, image)][1:], dim=2)


@node(category="images", output=True)
def save_image(
    image: Image, filename: OutputName = "image.png", run_dir: RunDir | None = None, report: Report = SILENT
) -> None:
    """Write an image to the run's folder: PNG, JPEG (quality 95, 4:4:4) or WebP (lossless), by the suffix.

    Values are clamped to [0, 1] and rounded to 8 bits. A batch of one has the file name given; the images of a larger
    one are numbered: image-0001.png, image-0002.png and so on. A PNG carries the run's graph, as in ``save_picture``.

    Args:
        image: what to write, [B, 3, H, W].
        filename: a path in the run's folder, ending in .png, .jpg, .jpeg or .webp.

    Raises:
        ValueError: another suffix, or a path that leads out of the run's folder.
    """
    path, prompt = _inside(run_dir or HERE, filename), prompt_of(run_graph(run_dir))
    for number, pixels in enumerate(to_uint8(image), start=1):
        numbered = path if len(image) == 1 else path.with_stem(f"{path.stem}-{number:04d}")
        write_picture(numbered, from_uint8(pixels), prompt)
        report.image(numbered)


def _inside(run_dir: Path, filename: str) -> Path:
    path = inside(run_dir, filename)
    saved_as(path)
    return path


class Window(NamedTuple):
    """A square of an image: its top left corner and its side, in pixels."""

    top: int
    left: int
    side: int

    def cut(self, image: Tensor) -> Tensor:
        return image[:, :, self.top : self.top + self.side, self.left : self.left + self.side]

    def divided(self, scale: int) -> Window:
        return Window(self.top // scale, self.left // scale, self.side // scale)


PANEL = 320
"""About the side of a panel of the sheet, in pixels."""
LABEL = 34
"""Height of the line of text under a panel."""
MARGIN = 16
INK, MARK = (40, 40, 40), (230, 57, 70)


@node(category="images", output=True)
def comparison(
    lr: Image,
    baseline: Image,
    sr: Image,
    hr: Image,
    filename: OutputName = "comparison.png",
    run_dir: RunDir = HERE,
    report: Report = SILENT,
) -> None:
    """A sheet to look at: the whole HR, and beside it four magnified views of where SR and baseline differ most.

    The views are a square of a sixth of HR's short side, at least 48 pixels, on the grid of LR's pixels: the one with
    the largest sum of squared differences of SR and baseline, or of SR and HR where SR is the baseline. They are
    magnified by a whole number, without smoothing.
    Under baseline and SR stands the PSNR of the whole picture (Y, 8 bits, border cut by the scale).

    Args:
        lr: one image, [1, 3, h, w] in [0, 1].
        baseline: the enlargement to compare with, as bicubic_upscale makes it, [1, 3, H, W].
        sr: the generator's, of the same shape.
        hr: the true picture, of the same shape.
        filename: a path in the run's folder, ending in .png, .jpg, .jpeg or .webp.

    Raises:
        ValueError: a batch of more than one, shapes that do not belong together, another suffix, or a path that leads
            out of the run's folder.
    """
    path = _inside(run_dir, filename)
    _check_shapes(lr, hr, baseline=baseline, sr=sr)
    scale = hr.shape[2] // lr.shape[2]
    if len(hr) != 1 or hr.shape[2:] != (scale * lr.shape[2], scale * lr.shape[3]):
        raise ValueError(f"lr is {list(lr.shape)} and hr {list(hr.shape)}; give one image and its LR")
    window = busiest_window(sr, hr if torch.equal(sr, baseline) else baseline, scale)
    panels = [
        ("LR", window.divided(scale).cut(lr)),
        (f"bicubic  {psnr(baseline, hr, border=scale):.2f} dB", window.cut(baseline)),
        (f"SR  {psnr(sr, hr, border=scale):.2f} dB", window.cut(sr)),
        ("HR", window.cut(hr)),
    ]
    write_picture(path, _sheet(hr, window, panels))
    report.image(path)


def busiest_window(sr: Tensor, baseline: Tensor, scale: int) -> Window:
    """Where two images [1, 3, H, W] differ most, on a grid of ``scale`` pixels."""
    short = min(sr.shape[2:]) // scale * scale
    side = min(short, -(-max(48, short // 6) // scale) * scale)
    difference = (sr.detach() - baseline.detach()).double().square().sum(dim=1, keepdim=True)
    sums = F.avg_pool2d(difference, side, stride=scale)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return Window(row * scale, column * scale, side)


def _sheet(hr: Tensor, window: Window, panels: list[tuple[str, Tensor]]) -> PIL.Image.Image:
    factor = max(1, round(PANEL / window.side))
    side = factor * window.side
    height = 2 * (side + LABEL) + MARGIN
    overview = _overview(hr, window, height - LABEL)
    width = overview.width + 2 * side + 4 * MARGIN
    sheet = PIL.Image.new("RGB", (width, height + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=20)
    sheet.paste(overview, (MARGIN, MARGIN))
    for index, (label, view) in enumerate(panels):
        row, column = divmod(index, 2)
        left = overview.width + 2 * MARGIN + column * (side + MARGIN)
        top = MARGIN + row * (side + LABEL + MARGIN)
        magnified = from_uint8(to_uint8(view)[0]).resize((side, side), PIL.Image.Resampling.NEAREST)
        sheet.paste(magnified, (left, top))
        draw.text((left + side // 2, top + side + LABEL // 2), label, fill=INK, font=font, anchor="mm")
    draw.text(
        (MARGIN + overview.width // 2, MARGIN + height - LABEL // 2), "HR, whole", fill=INK, font=font, anchor="mm"
    )
    return sheet


def _overview(hr: Tensor, window: Window, height: int) -> PIL.Image.Image:
    """The whole picture at a height, with the window drawn on it."""
    whole = from_uint8(to_uint8(hr)[0])
    ratio = height / whole.height
    small = whole.resize((max(1, round(whole.width * ratio)), height), PIL.Image.Resampling.LANCZOS)
    top, left = round(window.top * ratio), round(window.left * ratio)
    side = round(window.side * ratio)
    ImageDraw.Draw(small).rectangle((left, top, left + side - 1, top + side - 1), outline=MARK, width=3)
    return small
