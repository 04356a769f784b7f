"""From HR to LR, and back without a network: what the generator must undo, and the baseline it must beat."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.types import Image
from sr_pipeline.node import node

Factor = Annotated[int, Field(ge=2, le=8)]


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
    # Two output pixels of mirror image reach as far as the widened kernel. The far side is filled up to a whole
    # number of output pixels, so that the ratio of sizes is exactly `scale`.
    height, width = (math.ceil(n / scale) for n in hr.shape[-2:])
    pad = 2 * scale
    # In float64, because float32 sums are off by more than 0.0001 of a gray level.
    padded = _mirror(hr, pad, (pad + height * scale - hr.shape[-2], pad + width * scale - hr.shape[-1])).double()
    small = F.interpolate(padded, size=(height + 4, width + 4), mode="bicubic", antialias=True)
    lr = small[..., 2:-2, 2:-2].clamp(0, 1).to(hr.dtype)
    return (lr * 255).round() / 255 if eight_bit else lr


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
    padded = _mirror(lr, 2, (2, 2)).double()
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
    padded = _mirror(hr, pad, (pad + -height % scale, pad + -width % scale))
    rows = (padded.unfold(-2, len(kernel), scale) * kernel).sum(-1)
    return (rows.unfold(-1, len(kernel), scale) * kernel).sum(-1)


def _mirror(image: Tensor, near: int, far: tuple[int, int]) -> Tensor:
    """The image continued beyond its borders by its mirror image, edge pixel repeated, again and again if it is small.

    >>> _mirror(torch.arange(3.0).expand(1, 1, 1, 3), 4, (0, 2))[0, 0, 0].tolist()
    [2.0, 2.0, 1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 1.0]
    """
    for dim, beyond in zip((-2, -1), far, strict=True):
        size = image.shape[dim]
        index = torch.arange(-near, size + beyond, device=image.device) % (2 * size)
        image = image.index_select(dim, torch.where(index < size, index, 2 * size - 1 - index))
    return image
