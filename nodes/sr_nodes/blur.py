"""Blurs of unknown lenses and resamplers: one random kernel an image, as Real-ESRGAN draws them."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.draws import Probability, chance, check_range, choice, per_image, uniform
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Rng


def _odd(side: int) -> int:
    if side % 2 == 0:
        raise ValueError("write an odd number: a kernel has a middle")
    return side


KernelSize = Annotated[int, Field(ge=3, le=51), AfterValidator(_odd)]
Sigma = Annotated[float, Field(gt=0, le=50)]
Share = Annotated[float, Field(ge=0)]
Number = float | Tensor
"""One number, or one an image, [B]: the kernels are then [B, size, size]."""

SMALLEST = 7
"""Real-ESRGAN's smallest kernel."""
BETA_GENERALISED = (0.5, 4.0)
BETA_PLATEAU = (1.0, 2.0)
GENERALISED, PLATEAU = (2, 3), (4, 5)
"""Places among the shares of random_blur, where the odd ones are anisotropic."""


def gaussian_kernel(size: int, sigma_x: Number, sigma_y: Number, theta: Number = 0.0) -> Tensor:
    """A Gaussian, float64 [size, size], of sum 1: exp(-q / 2), where q = x^T S^-1 x.

    S has the deviations ``sigma_x`` along the rows turned by ``theta`` radians and ``sigma_y`` across.

    >>> gaussian_kernel(3, 0.85, 0.85)[1].mul(16).round()
    tensor([2., 4., 2.], dtype=torch.float64)
    """
    return _normalised(torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta)))


def generalised_gaussian_kernel(
    size: int, sigma_x: Number, sigma_y: Number, theta: Number = 0.0, beta: Number = 1.0
) -> Tensor:
    """A Gaussian with another fall, float64 [size, size], of sum 1: exp(-q^beta / 2).

    ``beta`` 1 is the Gaussian, below it is pointed with long tails, above it is a disc with soft edges.
    """
    return _normalised(torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta) ** _each(beta)))


def plateau_kernel(size: int, sigma_x: Number, sigma_y: Number, theta: Number = 0.0, beta: Number = 1.0) -> Tensor:
    """A flat top with long tails, float64 [size, size], of sum 1: 1 / (1 + q^beta)."""
    return _normalised(1 / (1 + _squared_distance(size, sigma_x, sigma_y, theta) ** _each(beta)))


def sinc_kernel(size: int, cutoff: Number) -> Tensor:
    """A low-pass filter that cuts a circle out of the spectrum and rings, float64 [size, size], of sum 1.

    c J1(c r) / (2 pi r), at the centre c^2 / (4 pi), for the ``cutoff`` c in radians a pixel, in (0, pi].
    """
    offsets = _offsets(size)
    cutoff = _each(cutoff)
    distance = torch.hypot(offsets[:, None], offsets)
    centre = size // 2
    distance[centre, centre] = 1.0
    kernel = cutoff * torch.special.bessel_j1(cutoff * distance) / (2 * math.pi * distance)
    kernel[..., centre, centre] = cutoff[..., 0, 0] ** 2 / (4 * math.pi)
    return _normalised(kernel)


def filter_each(image: Image, kernels: Tensor) -> Image:
    """Each image filtered by its own kernel, [B, K, K] with K odd, mirrored at its borders about the edge pixel.

    Clamped to [0, 1]: a sinc overshoots. The kernels here look the same from either end, so correlation is convolution.
    """
    batch, channels = image.shape[:2]
    padded = _reflected(image, kernels.shape[-1] // 2)
    weight = kernels.to(image.device, image.dtype, non_blocking=True).repeat_interleave(channels, dim=0).unsqueeze(1)
    filtered = F.conv2d(padded.reshape(1, -1, *padded.shape[2:]), weight, groups=batch * channels)
    return filtered.view(image.shape).clamp(0, 1)


@node(category="degradation")
def random_blur(
    image: Image,
    kernel_size: KernelSize = 21,
    sigma_min: Sigma = 0.2,
    sigma_max: Sigma = 3.0,
    isotropic: Share = 0.45,
    anisotropic: Share = 0.25,
    generalised_isotropic: Share = 0.12,
    generalised_anisotropic: Share = 0.03,
    plateau_isotropic: Share = 0.12,
    plateau_anisotropic: Share = 0.03,
    sinc_probability: Probability = 0.1,
    probability: Probability = 1.0,
    rng: Rng | None = None,
) -> Image:
    """Blur each image of a batch by a random kernel of its own. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    [B, 3, H, W] to the same shape, clamped to [0, 1]; mirrored at the borders. Each kernel has the sum 1, an odd side
    drawn from 7 to ``kernel_size``, and with ``sinc_probability`` is a sinc filter with a cutoff uniform in
    [pi / 3, pi] (from side 13 on [pi / 5, pi]). Else its kind is drawn by the six shares, its deviations uniform in
    [``sigma_min``, ``sigma_max``], an anisotropic one's angle in [-pi, pi], and with q = x^T S^-1 x it is
    exp(-q / 2), generalised exp(-q^b / 2) with b in [0.5, 4], or a plateau 1 / (1 + q^b) with b in [1, 2]; half of
    the b are below 1, or for plateaus equal to 1. Differentiable.

    Args:
        image: the image to blur, of any size.
        kernel_size: the largest side of a kernel in pixels, odd; one of less than 7 is the side of all.
        sigma_min: least standard deviation, in pixels.
        sigma_max: greatest standard deviation, in pixels.
        isotropic: share of round Gaussians; the six shares need not sum to 1.
        anisotropic: share of long Gaussians.
        generalised_isotropic: share of round generalised Gaussians.
        generalised_anisotropic: share of long generalised Gaussians.
        plateau_isotropic: share of round plateaus.
        plateau_anisotropic: share of long plateaus.
        sinc_probability: share of sinc filters among all kernels.
        probability: share of images that are blurred; the others stay as they are.

    Raises:
        ValueError: sigma_min is above sigma_max, or all six shares are 0.
    """
    check_range("sigma", sigma_min, sigma_max)
    shares = (
        *(isotropic, anisotropic),
        *(generalised_isotropic, generalised_anisotropic),
        *(plateau_isotropic, plateau_anisotropic),
    )
    if not any(shares):
        raise ValueError("the six shares of kinds of kernel are all 0; give at least one kind a share above 0")
    kinds = choice(len(image), shares, rng)
    smooth = _random_smooth_kernels(kinds, kernel_size, sigma_min, sigma_max, rng)
    sides = _random_sides(len(image), kernel_size, rng)
    lowest = torch.where(sides < 13, math.pi / 3, math.pi / 5)
    ringing = sinc_kernel(kernel_size, lowest + (math.pi - lowest) * uniform(len(image), 0, 1, rng))
    kernels = torch.where(chance(len(image), sinc_probability, rng)[:, None, None], ringing, smooth)
    return _filter_some(image, _cut(kernels, sides), probability, rng)


@node(category="degradation")
def sinc_filter(
    image: Image, kernel_size: KernelSize = 21, probability: Probability = 0.8, rng: Rng | None = None
) -> Image:
    """Give each image of a batch the ringing of a sharp low-pass filter. Real-ESRGAN (Wang et al., 2021), section 3.2.

    [B, 3, H, W] to the same shape, clamped to [0, 1]; mirrored at the borders. The filter is c J1(c r) / (2 pi r),
    cut to an odd side drawn from 7 to ``kernel_size``, scaled to the sum 1, with the cutoff c uniform in [pi / 3, pi].
    Differentiable.

    Args:
        image: the image to filter, of any size.
        kernel_size: the largest side of a kernel in pixels, odd; one of less than 7 is the side of all.
        probability: share of images that are filtered; the others stay as they are.
    """
    sides = _random_sides(len(image), kernel_size, rng)
    kernels = sinc_kernel(kernel_size, uniform(len(image), math.pi / 3, math.pi, rng))
    return _filter_some(image, _cut(kernels, sides), probability, rng)


def _random_smooth_kernels(
    kinds: Tensor, size: int, sigma_min: float, sigma_max: float, rng: torch.Generator | None
) -> Tensor:
    count = len(kinds)
    sigma_x, sigma_y = (uniform(count, sigma_min, sigma_max, rng) for _ in range(2))
    theta = uniform(count, -math.pi, math.pi, rng)
    low_half, place = chance(count, 0.5, rng), uniform(count, 0, 1, rng)
    sigma_y = torch.where(kinds % 2 == 1, sigma_y, sigma_x)

    def beta(least: float, greatest: float) -> Tensor:
        return torch.where(low_half, least + (1 - least) * place, 1 + (greatest - 1) * place)

    generalised = torch.isin(kinds, torch.tensor(GENERALISED))
    falling = generalised_gaussian_kernel(
        size, sigma_x, sigma_y, theta, torch.where(generalised, beta(*BETA_GENERALISED), 1.0)
    )
    flat = plateau_kernel(size, sigma_x, sigma_y, theta, beta(*BETA_PLATEAU))
    return torch.where(torch.isin(kinds, torch.tensor(PLATEAU))[:, None, None], flat, falling)


def _random_sides(count: int, largest: int, rng: torch.Generator | None) -> Tensor:
    smallest = min(SMALLEST, largest)
    return smallest + 2 * torch.randint((largest - smallest) // 2 + 1, (count,), generator=rng)


def _cut(kernels: Tensor, sides: Tensor) -> Tensor:
    """Kernels [B, K, K] with zeros outside of their sides [B], of sum 1 again."""
    inside = _offsets(kernels.shape[-1]).abs() <= sides[:, None] // 2
    return _normalised(kernels * inside[:, :, None] * inside[:, None, :])


def _filter_some(image: Tensor, kernels: Tensor, probability: float, rng: torch.Generator | None) -> Tensor:
    filtered = filter_each(image, kernels)
    return torch.where(per_image(chance(len(image), probability, rng), image), filtered, image)


def _squared_distance(size: int, sigma_x: Number, sigma_y: Number, theta: Number) -> Tensor:
    """q = x^T S^-1 x of each place in a kernel."""
    x, y = _offsets(size), _offsets(size)[:, None]
    cosine, sine = torch.cos(_each(theta)), torch.sin(_each(theta))
    along, across = cosine * x + sine * y, cosine * y - sine * x
    return (along / _each(sigma_x)) ** 2 + (across / _each(sigma_y)) ** 2


def _offsets(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


def _each(values: Number) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)[..., None, None]


def _normalised(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum((-2, -1), keepdim=True)


def _reflected(image: Tensor, pad: int) -> Tensor:
    """The image continued by its mirror image, edge pixel not repeated, again and again if it is small.

    >>> _reflected(torch.arange(3.0).expand(1, 1, 3, 3), 3)[0, 0, 0].tolist()
    [1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0]
    """
    for dim in (-2, -1):
        size = image.shape[dim]
        period = max(1, 2 * size - 2)
        index = torch.arange(-pad, size + pad, device=image.device) % period
        image = image.index_select(dim, torch.minimum(index, period - index))
    return image
