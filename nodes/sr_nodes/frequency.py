"""Losses on the spectra of images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sr_nodes.losses import Weight, check_same_shape
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Loss


@node(category="loss")
def frequency_loss(sr: Image, hr: Image, kind: Literal["l1", "focal"] = "l1", weight: Weight = 1.0) -> Loss:
    """The distance of two images' spectra, each image RGB in [0, 1], [B, 3, H, W].

    d = |FFT(sr) - FFT(hr)| is the modulus of the difference of their orthonormal 2-D discrete Fourier transforms, one
    for each channel; the loss is weight * mean over B, channels and frequencies of
    l1: d.
    focal: w d^2 with w = d / (the greatest d of that channel's spectrum), through which no gradient passes: the
    frequencies that are hard count most. Focal frequency loss (Jiang et al., ICCV 2021, arXiv 2012.12821), with its
    alpha 1.
    Moving both images in a circle changes nothing. With w = 1 the second is ``mse_loss`` (Parseval), so it is at most
    that, and the first at most its root. Images that differ by 0.1 everywhere give 0.1 / sqrt(H W), and 0.01; ones
    that differ by 0.1 in one pixel of each channel give 0.1 / sqrt(H W), and 0.01 / (H W). Raises a ValueError for
    images of different shapes.

    Args:
        sr: the generator's image.
        hr: the image it should be.
        kind: absolute differences, or squared ones weighted by themselves.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    difference: Tensor = torch.fft.fft2(sr - hr, norm="ortho")
    if kind == "l1":
        return weight * difference.abs().mean()  # abs has the gradient 0 at 0
    with torch.no_grad():
        modulus = difference.abs()
        # Equal images: 0 / tiny is 0, and 0 / 0 would be no number.
        share = modulus / modulus.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(modulus.dtype).tiny)
    squared = difference.real.square() + difference.imag.square()
    return weight * (share * squared).mean()
