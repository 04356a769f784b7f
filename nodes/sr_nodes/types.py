"""The socket types of this pack. Model, Optimizer and Loss are the engine's."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from sr_pipeline.sockets import Socket

Image = Annotated[Tensor, Socket("Image")]
"""RGB, float32 in [0, 1], [B, 3, H, W], on the run's device."""
Logits = Annotated[Tensor, Socket("Logits")]
"""A discriminator's verdict before the sigmoid, [B, 1] or [B, 1, H, W]: positive is real."""
Metrics = Annotated[dict[str, float], Socket("Metrics")]
"""Named figures of one evaluation."""


class Generator(nn.Module):
    """LR to SR: [B, 3, H, W] to [B, 3, scale * H, scale * W], both RGB in [0, 1].

    ``config`` holds the arguments that build it again: an export writes them beside the weights.
    """

    architecture: str
    scale: int
    config: dict[str, Any]


class Discriminator(nn.Module):
    """An RGB image in [0, 1] to logits, [B, 1] or [B, 1, h, w]."""


class FeatureNet(nn.Module):
    """An RGB image in [0, 1] to a feature map [B, C, h, w]."""
