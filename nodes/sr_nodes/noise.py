"""Noise of sensors: Gaussian and Poisson, coloured or gray, as Real-ESRGAN draws it.

The noise is drawn on the image's device, so one seed gives other noise on a CUDA device than on the CPU; which image
gets which kind and strength is the same on both.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sr_nodes.draws import Probability, chance, check_range, generator_on, per_image, uniform
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Rng

Level = Annotated[float, Field(ge=0, le=255)]
Strength = Annotated[float, Field(ge=0)]

LUMA = (0.299, 0.587, 0.114)
"""Gray of RGB, ITU-R BT.601."""


@node(category="degradation")
def gaussian_noise(
    image: Image,
    sigma_min: Level = 1.0,
    sigma_max: Level = 30.0,
    gray_probability: Probability = 0.4,
    probability: Probability = 1.0,
    rng: Rng | None = None,
) -> Image:
    """Add white Gaussian noise to each image of a batch. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    [B, 3, H, W] to clamp(image + sigma / 255 * n, 0, 1), with n of mean 0 and variance 1, independent at each pixel;
    sigma is uniform in [``sigma_min``, ``sigma_max``], one an image. Differentiable.

    Args:
        image: the image to add to.
        sigma_min: least standard deviation, in 8-bit levels.
        sigma_max: greatest standard deviation, in 8-bit levels.
        gray_probability: share of images whose noise is the same in the three channels; else they are independent.
        probability: share of images that get noise; the others stay as they are.

    Raises:
        ValueError: sigma_min is above sigma_max.
    """
    check_range("sigma", sigma_min, sigma_max)
    sigma = uniform(len(image), sigma_min, sigma_max, rng) / 255
    gray = per_image(chance(len(image), gray_probability, rng), image)
    sigma = sigma * chance(len(image), probability, rng)
    generator = generator_on(image.device, rng)
    noise = torch.randn(image.shape, generator=generator, dtype=image.dtype, device=image.device)
    return _added(image, torch.where(gray, noise[:, :1], noise), sigma)


@node(category="degradation", differentiable=False)
def poisson_noise(
    image: Image,
    scale_min: Strength = 0.05,
    scale_max: Strength = 3.0,
    gray_probability: Probability = 0.4,
    probability: Probability = 1.0,
    rng: Rng | None = None,
) -> Image:
    """Add the noise of counted light to each image of a batch. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    [B, 3, H, W] to clamp(image + scale * (Poisson(v x) / v - x), 0, 1), where x is the image rounded to 8 bits, and
    v = 2^ceil(log2 n) for the number n of different values in x. The noise has mean 0 and variance scale^2 x / v;
    scale is uniform in [``scale_min``, ``scale_max``], one an image. Gray noise is that of the luma (BT.601, rounded)
    in place of x.

    Args:
        image: the image to add to.
        scale_min: least strength; 1 is the noise of v photons at white.
        scale_max: greatest strength.
        gray_probability: share of images whose noise is the same in the three channels; else they are independent.
        probability: share of images that get noise; the others stay as they are.

    Raises:
        ValueError: scale_min is above scale_max.
    """
    check_range("scale", scale_min, scale_max)
    scale = uniform(len(image), scale_min, scale_max, rng)
    gray = per_image(chance(len(image), gray_probability, rng), image)
    scale = scale * chance(len(image), probability, rng)
    red, green, blue = torch.split(image, 1, dim=1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    levels = (torch.where(gray, luma, image).detach().clamp(0, 1) * 255).round()
    seen, photons = levels / 255, _photons(levels)
    noise = torch.poisson(seen * photons, generator=generator_on(image.device, rng)) / photons - seen
    return _added(image, torch.where(gray, noise[:, :1], noise), scale)


@node(category="degradation", differentiable=False)
def random_noise(
    image: Image,
    gaussian_probability: Probability = 0.5,
    sigma_min: Level = 1.0,
    sigma_max: Level = 30.0,
    scale_min: Strength = 0.05,
    scale_max: Strength = 3.0,
    gray_probability: Probability = 0.4,
    rng: Rng | None = None,
) -> Image:
    """Add Gaussian or Poisson noise to each image of a batch. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    [B, 3, H, W] to the same shape in [0, 1]: with ``gaussian_probability`` an image gets ``gaussian_noise``, else
    ``poisson_noise``. Drawn for each image, where Real-ESRGAN's code draws for the batch.

    Args:
        image: the image to add to.
        gaussian_probability: share of images with Gaussian noise.
        sigma_min: least standard deviation of Gaussian noise, in 8-bit levels.
        sigma_max: greatest standard deviation of Gaussian noise, in 8-bit levels.
        scale_min: least strength of Poisson noise.
        scale_max: greatest strength of Poisson noise.
        gray_probability: share of images whose noise is the same in the three channels.

    Raises:
        ValueError: a least value is above its greatest.
    """
    gaussian = chance(len(image), gaussian_probability, rng)
    noisy = torch.empty_like(image)
    for chosen, add, least, greatest in (
        (gaussian, gaussian_noise, sigma_min, sigma_max),
        (~gaussian, poisson_noise, scale_min, scale_max),
    ):
        where = chosen.nonzero().flatten().to(image.device, non_blocking=True)
        noisy[where] = add(image[where], least, greatest, gray_probability, rng=rng)
    return noisy


def _photons(levels: Tensor) -> Tensor:
    """2^ceil(log2 n), [B, 1, 1, 1], for the number n of different 8-bit levels in each image."""
    present = levels.new_zeros(len(levels), 256).scatter_(1, levels.flatten(1).long(), 1.0)
    return per_image(2 ** present.sum(1).log2().ceil(), levels)


def _added(image: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
    return (image + per_image(strength, image) * noise).clamp(0, 1)
