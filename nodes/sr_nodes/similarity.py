"""Structural similarity, at one scale and at five."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.metrics import compared
from sr_nodes.types import Image
from sr_pipeline.node import node

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)
"""Pixels that ms_ssim needs a side: the window at the last scale."""

Channel = Literal["y", "rgb"]
Border = Annotated[int, Field(ge=0)]


@node(category="metrics")
def ssim(sr: Image, hr: Image, channel: Channel = "y", border: Border = 4, eight_bit: bool = True) -> float:
    """Structural similarity, the mean over the batch; 1 for equal pictures (Wang et al., IEEE TIP 2004).

    (2 m1 m2 + C1) (2 c + C2) / ((m1^2 + m2^2 + C1) (v1 + v2 + C2)) with means, variances and covariance under a
    Gaussian window of 11x11 and sigma 1.5, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2, in float64 on values in 0..255;
    the mean over all places where the window lies inside the picture, and over channels. MATLAB's ``ssim_index`` on
    luma, and scikit-image's with gaussian_weights and without sample covariance. The SRGAN paper's figures are daala's,
    another definition: bicubic x4 measures 0.8113 on "y" over Set5 here (0.8102 on luma rounded to 8 bits, as MATLAB
    codes have it), 0.8211 there.

    Args:
        sr: the pictures to measure, [B, 3, H, W] in [0, 1].
        hr: the true pictures, of the same shape and range.
        channel: y is BT.601 studio-range luma, rgb the three colours.
        border: pixels left out at each edge.
        eight_bit: clamp and round both pictures to 8 bits first, as files would be.

    Raises:
        ValueError: the shapes differ, the batch is empty, a value is not finite, or less than 11x11 pixels are left.
    """
    one, other = compared(sr, hr, channel, border, eight_bit)
    _check_sides(one, WINDOW, "ssim")
    luminance, contrast = _ssim_maps(one, other)
    return float((luminance * contrast).mean())


@node(category="metrics")
def ms_ssim(sr: Image, hr: Image, channel: Channel = "y", border: Border = 4, eight_bit: bool = True) -> float:
    """Multi-scale structural similarity, the mean over the batch; 1 for equal pictures (Wang et al., Asilomar 2003).

    The product over five scales, each half the one before by 2x2 means, of the mean contrast-structure term, and of
    the mean SSIM at the last, to the powers 0.0448, 0.2856, 0.3001, 0.2363, 0.1333; per channel, then the mean. A
    negative mean counts as 0, because a power of it would be none.

    Args:
        sr: the pictures to measure, [B, 3, H, W] in [0, 1].
        hr: the true pictures, of the same shape and range.
        channel: y is BT.601 studio-range luma, rgb the three colours.
        border: pixels left out at each edge.
        eight_bit: clamp and round both pictures to 8 bits first, as files would be.

    Raises:
        ValueError: the shapes differ, the batch is empty, a value is not finite, or a side is less than 176 pixels
            after the border is cut.
    """
    one, other = compared(sr, hr, channel, border, eight_bit)
    _check_sides(one, MS_SSIM_SIDE, "ms_ssim")
    product = torch.ones(one.shape[:2], dtype=one.dtype, device=one.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        luminance, contrast = _ssim_maps(one, other)
        term = luminance * contrast if scale == len(SCALE_WEIGHTS) - 1 else contrast
        product = product * term.mean(dim=(2, 3)).clamp(min=0) ** weight
        one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
    return float(product.mean())


def _check_sides(image: Tensor, least: int, name: str) -> None:
    height, width = image.shape[2:]
    if min(height, width) < least:
        raise ValueError(f"{width}x{height} pixels are left, and {name} needs {least} a side; use larger pictures")


def _ssim_maps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term and the contrast-structure term at each place of the window."""
    count = len(one)
    moments = _blur(torch.cat([one, other, one * one, other * other, one * other]))
    mean1, mean2, square1, square2, product = torch.split(moments, count)
    variance1, variance2, covariance = square1 - mean1**2, square2 - mean2**2, product - mean1 * mean2
    luminance = (2 * mean1 * mean2 + C1) / (mean1**2 + mean2**2 + C1)
    return luminance, (2 * covariance + C2) / (variance1 + variance2 + C2)


def _blur(images: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(images.shape[1], 1, -1)
    across = F.conv2d(images, weights.unsqueeze(2), groups=images.shape[1])
    return F.conv2d(across, weights.unsqueeze(3), groups=images.shape[1])
