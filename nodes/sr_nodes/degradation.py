"""From HR to LR, and back without a network: what the generator must undo, and the baseline it must beat."""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.types import Image
from sr_pipeline.node import node

Factor = Annotated[int, Field(ge=2, le=8)]
_CROP = 256
"""Pixels a side at most of an image that is shrunk by two products of matrices: few kernels, and most of them zeros."""


@node(category="degradation")
def bicubic(hr: Image, scale: Factor = 4, eight_bit: bool = False) -> Image:
    """Downscale as MATLAB's ``imresize(hr, 1 / scale, 'bicubic')``: the LR of the paper and of the public test sets.

    [B, 3, H, W] to [B, 3, ceil(H / scale), ceil(W / scale)], clamped to [0, 1]. The cubic kernel of Keys with
    a = -1/2, widened by ``scale``, over an image mirrored at its borders. Equal to that definition in float64 to
    0.0001 of a gray level, borders and odd sizes included. Differentiable, unless ``eight_bit``.

    Args:
        hr: the image to shrink, of any size.
        scale: how many times smaller.
        eight_bit: round to k / 255, as a file would hold it; no gradient passes then.
    """
    image = hr.double()  # because float32 sums are off by more than 0.0001 of a gray level
    if max(hr.shape[-2:]) <= _CROP:
        down, across = (_bicubic_matrix(side, scale, hr.device) for side in hr.shape[-2:])
        small = down @ image @ across.t()
    else:
        small = _shrunk(_shrunk(image, scale, -2), scale, -1)
    lr = small.clamp(0, 1).to(hr.dtype)
    return (lr * 255).round() / 255 if eight_bit else lr


@cache
def _bicubic_matrix(side: int, scale: int, device: torch.device) -> Tensor:
    """[ceil(side / scale), side]: what ``_shrunk`` makes of each pixel."""
    with torch.inference_mode(False):  # it is kept, for gradients too
        return _shrunk(torch.eye(side, dtype=torch.float64)[None, None], scale, -2)[0, 0].to(device)


def _shrunk(image: Tensor, scale: int, dim: Literal[-2, -1]) -> Tensor:
    """Along one side.

    Two output pixels of mirror image reach as far as the widened kernel. The far side is filled up to a whole number of
    output pixels, so that the ratio of sizes is exactly ``scale``.
    """
    size, pad = math.ceil(image.shape[dim] / scale), 2 * scale
    padded = _mirror(image, dim, pad, pad + size * scale - image.shape[dim])
    sizes = (size + 4, image.shape[-1]) if dim == -2 else (image.shape[-2], size + 4)
    return F.interpolate(padded, size=sizes, mode="bicubic", antialias=True).narrow(dim, 2, size)


@node(category="degradation")
def bicubic_upscale(lr: Image, scale: Factor = 4) -> Image:
    """Upscale as MATLAB's ``imresize(lr, scale, 'bicubic')``: the baseline of super-resolution.

    [B, 3, H, W] to [B, 3, scale * H, scale * W], clamped to [0, 1]. Equal to the definition in float64 to 0.0001 of a
    gray level. From the given LR files of Set5 at scale 4 it measures 28.43 dB (Y, 4-pixel border cut).

    Args:
        lr: the image to enlarge.
        scale: how many times larger.
    """
    # antialias=True changes nothing of an enlargement but the kernel: a = -1/2 as MATLAB's, where plain bicubic has
    # a = -3/4. In float64, because float32 coordinates are off by 0.01 of a gray level where 1 / scale is not exact.
    padded = _mirror(_mirror(lr, -2, 2, 2), -1, 2, 2).double()
    large = F.interpolate(padded, scale_factor=float(scale), mode="bicubic", antialias=True)
    cut = slice(2 * scale, -2 * scale)
    return large[..., cut, cut].clamp(0, 1).to(lr.dtype)


@node(category="degradation")
def gaussian_downsample(hr: Image, scale: Factor = 4, sigma: Annotated[float, Field(gt=0)] = 1.6) -> Image:
    """Blur with a Gaussian, then sample at the centre of each ``scale`` x ``scale`` block: nothing shifts.

    [B, 3, H, W] to [B, 3, ceil(H / scale), ceil(W / scale)]. The weights, cut at 4 sigma, sum to 1; the image is
    mirrored at its borders. An even scale samples between pixels, so its kernel has an even number of taps.
    Differentiable.

    Args:
        hr: the image to shrink, of any size.
        scale: how many times smaller.
        sigma: standard deviation of the blur, in pixels of ``hr``.
    """
    pad = max(0, math.ceil(4 * sigma - (scale - 1) / 2))
    offsets = torch.arange(scale + 2 * pad, dtype=torch.float64) - (scale - 1) / 2 - pad
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(hr.device, hr.dtype, non_blocking=True)
    height, width = hr.shape[-2:]
    padded = _mirror(_mirror(hr, -2, pad, pad + -height % scale), -1, pad, pad + -width % scale)
    rows = (padded.unfold(-2, len(kernel), scale) * kernel).sum(-1)
    return (rows.unfold(-1, len(kernel), scale) * kernel).sum(-1)


def _mirror(image: Tensor, dim: int, near: int, far: int) -> Tensor:
    """The image continued beyond two borders by its mirror image, edge pixel repeated, again and again if it is small.

    >>> _mirror(torch.arange(3.0), 0, 4, 2).tolist()
    [2.0, 2.0, 1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 1.0]
    """
    size = image.shape[dim]
    index = torch.arange(-near, size + far, device=image.device) % (2 * size)
    return image.index_select(dim, torch.where(index < size, index, 2 * size - 1 - index))
