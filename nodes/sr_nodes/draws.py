"""Random draws of the degradations, from the node's own generator. No nodes.

What is one number an image is drawn on the CPU: a seed gives the same recipe on every device, and no draw waits for
one. What is one number a pixel is drawn on the image's device, by the generator that ``generator_on`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

Probability = Annotated[float, Field(ge=0, le=1)]


def check_range(what: str, least: float, greatest: float) -> None:
    """Raise a ValueError that names both ends of a range that is turned round."""
    if least > greatest:
        raise ValueError(f"{what}_min is {least} and {what}_max {greatest}; give {what}_min the smaller number")


def uniform(count: int, least: float, greatest: float, rng: torch.Generator | None) -> Tensor:
    """``count`` numbers, float64, uniform in [least, greatest)."""
    return least + (greatest - least) * torch.rand(count, generator=rng, dtype=torch.float64)


def chance(count: int, probability: float, rng: torch.Generator | None) -> Tensor:
    """``count`` booleans, each true with ``probability``.

    >>> chance(2, 1.0, None), chance(2, 0.0, None)
    (tensor([True, True]), tensor([False, False]))
    """
    return uniform(count, 0, 1, rng) < probability


def choice(count: int, shares: Sequence[float], rng: torch.Generator | None) -> Tensor:
    """``count`` indices into ``shares``, each drawn in proportion to its share; some share must be above 0.

    >>> choice(3, [0.0, 0.2, 0.0], None)
    tensor([1, 1, 1])
    """
    return torch.multinomial(torch.tensor(shares, dtype=torch.float64), count, replacement=True, generator=rng)


def generator_on(device: torch.device, rng: torch.Generator | None) -> torch.Generator | None:
    """A generator of a device, for numbers by the pixel, seeded by a draw of ``rng``; without it None: torch's own.

    One seed gives other numbers on another kind of device.
    """
    if rng is None:
        return None
    return torch.Generator(device).manual_seed(int(torch.randint(2**63 - 1, (), generator=rng)))


def per_image(values: Tensor, image: Tensor) -> Tensor:
    """Values [B] as [B, 1, 1, 1] on the image's device; numbers in its dtype, booleans as they are."""
    kind = values.dtype if values.dtype == torch.bool else image.dtype
    return values.to(image.device, kind, non_blocking=True).view(-1, 1, 1, 1)
