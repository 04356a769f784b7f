"""A learned perceptual metric, as an optional extra."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sr_nodes.losses import check_same_shape
from sr_nodes.modules import CPU
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Device

Backbone = Literal["alex", "squeeze", "vgg"]
LEAST_SIDE = 32
"""Pixels that lpips needs a side."""
_WEIGHTS = {
    "alex": "AlexNet_Weights.IMAGENET1K_V1",
    "squeeze": "SqueezeNet1_1_Weights.IMAGENET1K_V1",
    "vgg": "VGG16_Weights.IMAGENET1K_V1",
}


class LpipsNet(nn.Module):
    """Two batches of RGB in [0, 1] to the mean distance."""

    def __init__(self, metric: nn.Module) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        distance: Tensor = self.metric(one, other)
        return distance


@node(category="metrics")
def lpips_net(backbone: Backbone = "alex", device: Device = CPU) -> LpipsNet:
    """The network of LPIPS 0.1 with its linear layers (Zhang et al., CVPR 2018), as TorchMetrics has it.

    Its weights: those of the linear layers are inside that package (extra ``lpips``); those of the backbone are
    torchvision's ImageNet training, which torch fetches from download.pytorch.org at the first use (alex 233 MB,
    squeeze 5 MB, vgg 528 MB) and keeps in its hub folder. No other node fetches them.

    Args:
        backbone: alex is the usual choice for figures.

    Raises:
        ValueError: TorchMetrics is missing, or the weights cannot be fetched.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError:
        raise ValueError("LPIPS needs TorchMetrics: pip install 'sr-pipeline[lpips]'") from None
    try:
        with redirect_stdout(sys.stderr):  # torch tells there what it fetches, and --json prints nothing else
            metric = LearnedPerceptualImagePatchSimilarity(net_type=backbone, normalize=True)
    except OSError as error:
        from torchvision.models import get_weight  # here, because it takes seconds to load

        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"LPIPS measures with torchvision's ImageNet weights of {backbone}, which cannot be fetched ({error}); "
            f"put {get_weight(_WEIGHTS[backbone]).url} into {folder}"
        ) from error
    return LpipsNet(metric).to(device).eval()


@node(category="metrics")
def lpips(net: LpipsNet, sr: Image, hr: Image, border: Annotated[int, Field(ge=0)] = 4) -> float:
    """Learned perceptual image patch similarity, the mean over the batch: 0 for equal pictures, larger is farther.

    Args:
        net: what lpips_net gives.
        sr: the pictures to measure, [B, 3, H, W] in [0, 1]; they are clamped.
        hr: the true pictures, of the same shape and range.
        border: pixels left out at each edge.

    Raises:
        ValueError: the shapes differ, or less than 32 pixels are left of a side.
    """
    check_same_shape(sr, hr)
    height, width = hr.shape[2] - 2 * border, hr.shape[3] - 2 * border
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"{width}x{height} pixels are left, and lpips needs {LEAST_SIDE} a side; use larger pictures")
    inside = (..., slice(border, border + height), slice(border, border + width))
    with torch.no_grad():
        return float(net(sr.clamp(0, 1)[inside], hr.clamp(0, 1)[inside]))
