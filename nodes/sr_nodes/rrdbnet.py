"""RRDBNet, the generator of ESRGAN."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.modules import CPU, seeded
from sr_nodes.types import Generator
from sr_pipeline.node import node
from sr_pipeline.sockets import Device, Rng

_RESIDUAL = 0.2
"""The paper's beta: the share of a residual that is added."""
_INITIAL = 0.1
"""The paper's supplement: residual blocks begin with smaller weights."""


class RRDBNet(Generator):
    """The generator of ESRGAN (Wang et al., ECCV Workshops 2018, figures 3 and 4), with BasicSR's names of tensors.

    The trunk always enlarges by 4; scales 2 and 1 first fold the image's pixels into channels (pixel-unshuffle), as
    BasicSR and Real-ESRGAN do. Works on [0, 1] at both ends, not clamped. The arguments are those of the node
    ``rrdbnet``.
    """

    architecture = "rrdbnet"

    def __init__(self, scale: Literal[1, 2, 4] = 4, blocks: int = 23, channels: int = 64, growth: int = 32) -> None:
        super().__init__()
        if scale not in (1, 2, 4):
            raise ValueError(f"scale is {scale}; this network has 1, 2 and 4")
        self.scale = scale
        self.config: dict[str, Any] = {"scale": scale, "blocks": blocks, "channels": channels, "growth": growth}
        self.fold = 4 // scale
        self.conv_first = _conv(3 * self.fold**2, channels)
        self.body = nn.Sequential(*(_Block(channels, growth) for _ in range(blocks)))
        self.conv_body = _conv(channels, channels)
        self.conv_up1 = _conv(channels, channels)
        self.conv_up2 = _conv(channels, channels)
        self.conv_hr = _conv(channels, channels)
        self.conv_last = _conv(channels, 3)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        folded = F.pixel_unshuffle(pad_end(lr, -height % self.fold, -width % self.fold), self.fold)
        first = self.conv_first(folded)
        features = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            features = _lrelu(conv(F.interpolate(features, scale_factor=2, mode="nearest")))
        sr: Tensor = self.conv_last(_lrelu(self.conv_hr(features)))
        return sr[..., : height * self.scale, : width * self.scale]


class _Dense(nn.Module):
    """Five convolutions, each of which sees what all before it made; a fifth of the result is added to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _small(channels, growth)
        self.conv2 = _small(channels + growth, growth)
        self.conv3 = _small(channels + 2 * growth, growth)
        self.conv4 = _small(channels + 3 * growth, growth)
        self.conv5 = _small(channels + 4 * growth, channels)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, _lrelu(conv(seen))), dim=1)
        out: Tensor = x + _RESIDUAL * self.conv5(seen)
        return out


class _Block(nn.Module):
    """Residual in residual: three dense blocks, and a fifth of what they make is added to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _Dense(channels, growth)
        self.rdb2 = _Dense(channels, growth)
        self.rdb3 = _Dense(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + _RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))
        return out


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _small(inputs: int, outputs: int) -> nn.Conv2d:
    conv = _conv(inputs, outputs)
    nn.init.kaiming_normal_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
    with torch.no_grad():
        conv.weight *= _INITIAL
    return conv


def _lrelu(x: Tensor) -> Tensor:
    """Of what a convolution has just made, which nobody else reads: without gradients it is overwritten."""
    return F.leaky_relu(x, 0.2, inplace=not torch.is_grad_enabled())


def pad_end(image: Tensor, height: int, width: int) -> Tensor:
    """The image with rows added below and columns on the right: mirrored, then repeated where it is too small for that.

    >>> pad_end(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 1, 2)
    tensor([[[[1., 2., 3., 2., 1.],
              [1., 2., 3., 2., 1.]]]])
    """
    mirrored_rows, mirrored_columns = min(height, image.shape[-2] - 1), min(width, image.shape[-1] - 1)
    mirrored = F.pad(image, (0, mirrored_columns, 0, mirrored_rows), mode="reflect")
    return F.pad(mirrored, (0, width - mirrored_columns, 0, height - mirrored_rows), mode="replicate")


@node(category="generator")
def rrdbnet(
    scale: Literal[1, 2, 4] = 4,
    blocks: Annotated[int, Field(ge=1, le=256)] = 23,
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    growth: Annotated[int, Field(ge=1, le=1024)] = 32,
    rng: Rng | None = None,
    device: Device = CPU,
) -> Generator:
    """RRDBNet, the generator of ESRGAN (Wang et al., ECCV Workshops 2018, section 3.1), with new random weights.

    LR [B, 3, H, W] to SR [B, 3, scale * H, scale * W], both RGB in [0, 1], the convention of Real-ESRGAN's weights.
    16,697,987 parameters as given. No BatchNorm; residuals are scaled by 0.2. Convolutions of the dense blocks start
    as 0.1 times Kaiming's normal with zero biases (the paper's supplement), the others as torch's defaults.

    Args:
        scale: how many times larger the SR is; at 2 and 1 the network sees pixels folded into channels, as in BasicSR.
        blocks: residual-in-residual dense blocks; ESRGAN has 23, Real-ESRGAN's anime model 6.
        channels: feature maps between blocks.
        growth: feature maps that each convolution of a dense block adds.
    """
    with seeded(rng):
        return RRDBNet(scale, blocks, channels, growth).to(device)
