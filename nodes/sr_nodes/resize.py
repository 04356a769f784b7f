"""Random resizing: the scale and the resampling filter that nobody wrote down."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.degradation import Factor
from sr_nodes.draws import Probability, choice, uniform
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Rng

Resampling = Literal["area", "bilinear", "bicubic"]
RESAMPLINGS: tuple[Resampling, ...] = ("area", "bilinear", "bicubic")


@node(category="degradation")
def random_resize(
    image: Image,
    up: Probability = 0.2,
    down: Probability = 0.7,
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.15,
    max_scale: Annotated[float, Field(ge=1, le=8)] = 1.5,
    like: Image | None = None,
    divisor: Annotated[int, Field(ge=1, le=8)] = 1,
    antialias: bool = True,
    rng: Rng | None = None,
) -> Image:
    """Resize a batch by a random factor and a random filter. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    [B, 3, H, W] to [B, 3, floor(f H), floor(f W)], at least 1 pixel, clamped to [0, 1]. The factor f, one for the
    batch so that it stays one tensor, is with probability ``up`` uniform in [1, ``max_scale``], with ``down`` uniform
    in [``min_scale``, 1], and else 1; the filter is area, bilinear or bicubic, with probability 1/3 each.
    Differentiable.

    Args:
        image: the image to resize.
        up: probability that it grows.
        down: probability that it shrinks.
        min_scale: the least factor.
        max_scale: the greatest factor.
        like: if linked, the factor is of this image's size over ``divisor``, not of the size of ``image``: the
            second resize of Real-ESRGAN is relative to HR's size over 4, whatever the first did.
        divisor: what the size is divided by before the factor.
        antialias: widen the bilinear and bicubic filters where they shrink, as Pillow does; false, as Real-ESRGAN,
            lets them alias.

    Raises:
        ValueError: up and down sum to more than 1.
    """
    if up + down > 1:
        raise ValueError(f"up is {up} and down {down}, together more than 1; what they leave of 1 keeps the size")
    way = int(choice(1, [up, down, max(0.0, 1 - up - down)], rng))
    least, greatest = ((1.0, max_scale), (min_scale, 1.0), (1.0, 1.0))[way]
    factor = float(uniform(1, least, greatest, rng))
    of = image if like is None else like
    height, width = (max(1, int(side / divisor * factor)) for side in of.shape[-2:])
    return _resized(image, height, width, antialias, rng)


@node(category="degradation")
def resize_to_scale(
    image: Image, hr: Image, scale: Factor = 4, antialias: bool = True, rng: Rng | None = None
) -> Image:
    """Resize a batch of any size to HR's size over ``scale`` by a random filter: what a generator of that scale takes.

    [B, 3, h, w] and [B, 3, H, W] to [B, 3, H / scale, W / scale], clamped to [0, 1]; the filter is area, bilinear or
    bicubic, with probability 1/3 each. Differentiable. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    Args:
        image: the degraded image.
        hr: the image it was made from.
        scale: HR's size over the result's.
        antialias: widen the bilinear and bicubic filters where they shrink, as Pillow does; false, as Real-ESRGAN,
            lets them alias.

    Raises:
        ValueError: a side of hr is no multiple of scale.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"hr is {width}x{height}, no multiple of the scale {scale}; crop hr to a multiple of it")
    return _resized(image, height // scale, width // scale, antialias, rng)


def _resized(image: Tensor, height: int, width: int, antialias: bool, rng: torch.Generator | None) -> Tensor:
    mode = RESAMPLINGS[int(choice(1, [1.0] * len(RESAMPLINGS), rng))]
    if (height, width) == image.shape[-2:]:
        return image  # which every filter would give
    # Where it enlarges, antialias would widen nothing and change the kernel of bicubic.
    shrinks = height < image.shape[-2] or width < image.shape[-1]
    widened = antialias and shrinks and mode != "area"  # area averages all that it covers anyway
    return F.interpolate(image, size=(height, width), mode=mode, antialias=widened).clamp(0, 1)
