"""Which of two ways an image went: the order of degradations that nobody wrote down."""

from __future__ import annotations

from sr_nodes.draws import Probability, chance
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Rng


@node(category="degradation")
def random_choice(first: Image, second: Image, probability: Probability = 0.5, rng: Rng | None = None) -> Image:
    """One of two batches, whole: by one draw a step. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.2.

    Both are computed at each step. Real-ESRGAN draws so between its two last orders: resize and ringing before JPEG,
    or after it. The gradient goes to the one that is given.

    Args:
        first: an image, [B, 3, H, W].
        second: another; it may have another shape.
        probability: of ``first``.
    """
    return first if bool(chance(1, probability, rng)) else second
