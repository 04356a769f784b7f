"""Figures: PSNR, the mean over a stream, and a number on the curves."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sr_nodes.pictures import to_uint8
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Every, Loss, Report


def luma(image: Tensor) -> Tensor:
    """BT.601 luma in studio range, of RGB in [0, 1]: [B, 3, H, W] to float64 [B, 1, H, W]; 16 is black, 235 white.

    Y = 16 + 65.481 R + 128.553 G + 24.966 B, MATLAB's ``rgb2ycbcr`` before it rounds.

    >>> luma(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten().tolist()
    [16.0, 235.0]
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=image.device)
    return 16 + (image.to(torch.float64) * weights.view(3, 1, 1)).sum(dim=1, keepdim=True)


@node(category="metrics")
def psnr(
    sr: Image,
    hr: Image,
    channel: Literal["y", "rgb"] = "y",
    border: Annotated[int, Field(ge=0)] = 4,
    eight_bit: bool = True,
) -> float:
    """Peak signal-to-noise ratio in dB, the mean over the batch of that of each picture; inf where one is equal.

    10 log10(255^2 / MSE) in float64, MSE the mean over pixels and channels of values in 0..255. "y" is the luma of
    BT.601 in studio range (16..235), the definition of the papers' tables; its peak is 255 all the same, so
    it reads 1.32 dB higher than luma of full range. Figures of different definitions cannot be compared: bicubic x4 of
    Set5's fifth picture measures 26.47 dB on "y", 25.15 dB on luma of full range, 25.13 dB on "rgb". Bicubic x4
    measures 28.43 dB on "y" over Set5 and 26.09 dB over Set14.

    Args:
        sr: the pictures to measure, [B, 3, H, W] in [0, 1].
        hr: the true pictures, of the same shape and range.
        channel: y is studio-range luma, rgb the three colours.
        border: pixels left out at each edge; the papers leave out as many as the scale.
        eight_bit: clamp and round both pictures to 8 bits first, as files would be.

    Raises:
        ValueError: the shapes differ, the batch is empty, a value is not finite, or the border leaves no pixel.
    """
    one, other = compared(sr, hr, channel, border, eight_bit)
    return float((10 * torch.log10(255**2 / (one - other).square().mean(dim=(1, 2, 3)))).mean())


def compared(sr: Tensor, hr: Tensor, channel: str, border: int, eight_bit: bool) -> tuple[Tensor, Tensor]:
    """Two pictures as metrics compare them: float64 values in 0..255, [B, 1 or 3, H, W], the border cut.

    Raises:
        ValueError: the shapes differ, the batch is empty, a value is not finite, or the border leaves no pixel.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"sr is {list(sr.shape)} and hr is {list(hr.shape)}; a metric needs two pictures of one shape")
    if not len(hr):
        raise ValueError("the batch is empty; a metric needs one picture or more")
    for name, image in (("sr", sr), ("hr", hr)):
        if not bool(image.isfinite().all()):  # rounding to 8 bits would hide it
            raise ValueError(f"{name} has values that are not finite (NaN or infinity); a metric needs numbers")
    height, width = hr.shape[2] - 2 * border, hr.shape[3] - 2 * border
    if height < 1 or width < 1:
        raise ValueError(f"a border of {border} leaves nothing of {hr.shape[3]}x{hr.shape[2]} pixels; make it smaller")
    inside = (..., slice(border, border + height), slice(border, border + width))
    return _levels(sr, channel, eight_bit)[inside], _levels(hr, channel, eight_bit)[inside]


def _levels(image: Tensor, channel: str, eight_bit: bool) -> Tensor:
    image = to_uint8(image).to(torch.float64) / 255 if eight_bit else image.detach().to(torch.float64)
    return luma(image) if channel == "y" else 255 * image


@node(category="metrics")
class Mean:
    """The mean of a number over the items of the stream.

    Args:
        value: one number an item.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def __call__(self, value: float) -> None:
        self._total += value
        self._count += 1

    def result(self) -> float:
        """The mean of the values so far.

        Raises:
            ValueError: there was none.
        """
        if not self._count:
            raise ValueError("mean was given no value, because the stream had no item; give the stream more steps")
        return self._total / self._count

    def state_dict(self) -> dict[str, float]:
        return {"total": self._total, "count": self._count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._total, self._count = state["total"], int(state["count"])


@node(category="metrics", output=True)
def log_scalar(value: Loss | float, every: Every = 1, report: Report = SILENT) -> None:
    """A number on the curves, under this node's id.

    Args:
        value: a loss or a number. A loss is read from the device later, with others, so that no step waits for it.
        every: log at each n-th step and after the last; 0 is after the last only.
    """
    report.scalar("", value.detach() if isinstance(value, Tensor) else value)
