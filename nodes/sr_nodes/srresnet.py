"""SRResNet, the generator of SRGAN, and BasicSR's variant of it without BatchNorm."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.batchnorm import synchronised
from sr_nodes.fused import (
    Layer,
    all_ahead,
    chain,
    conv_of_few,
    conv_shuffle,
    conv_to_few,
    corners_ahead,
    few_ahead,
    rows_ahead,
    serves,
)
from sr_nodes.modules import CPU, seeded
from sr_nodes.types import Generator
from sr_pipeline.node import node
from sr_pipeline.sockets import Device, Rng, World
from sr_pipeline.world import ALONE

Scale = Literal[2, 3, 4, 8]


class SRResNet(Generator):
    """The generator of SRGAN (Ledig et al., CVPR 2017, section 2.1.1 and figure 4), in plain torch initialisation.

    ``raw`` is the paper's output, an image in [-1, 1]; calling the module gives it on the wires' range,
    ``(raw + 1) / 2``, not clamped. LR goes in as [0, 1], as in the paper. ``value_range`` and ``input_norm`` are for
    published weights that were trained otherwise. The arguments are those of the node ``srresnet``.
    """

    architecture = "srresnet"

    def __init__(
        self,
        scale: Scale = 4,
        blocks: int = 16,
        channels: int = 64,
        batch_norm: bool = True,
        bias_before_bn: bool = True,
        prelu: Literal["layer", "channel"] = "layer",
        output: Literal["none", "tanh"] = "none",
        value_range: Literal["-1..1", "0..1"] = "-1..1",
        input_norm: Literal["none", "imagenet"] = "none",
    ) -> None:
        super().__init__()
        self.scale = scale
        self.config: dict[str, Any] = {
            "scale": scale,
            "blocks": blocks,
            "channels": channels,
            "batch_norm": batch_norm,
            "bias_before_bn": bias_before_bn,
            "prelu": prelu,
            "output": output,
            "value_range": value_range,
            "input_norm": input_norm,
        }
        slopes = channels if prelu == "channel" else 1
        self.head = nn.Sequential(_conv(3, channels, 9), nn.PReLU(slopes))
        self.blocks = nn.Sequential(
            *(_Residual(channels, slopes, batch_norm, bias_before_bn) for _ in range(blocks)),
            *_conv_bn(channels, batch_norm, bias_before_bn),
        )
        self.upsample = nn.Sequential(*_upsampling(scale, channels, slopes))
        self.tail = _conv(channels, 3, 9)
        self.output = nn.Tanh() if output == "tanh" else nn.Identity()
        self.signed = value_range == "-1..1"
        self.normalise = _ImageNetNorm() if input_norm == "imagenet" else nn.Identity()

    def raw(self, lr: Tensor) -> Tensor:
        """The paper's output: [B, 3, H, W] in [0, 1] to [B, 3, scale * H, scale * W], meant for ``value_range``."""
        x = self.normalise(lr)
        if serves(x):
            image = self._fused(x)
        else:
            first = self.head(x)
            image = conv_to_few(self.upsample(first + self.blocks(first)), self.tail)
        out: Tensor = self.output(image)
        return out

    def _fused(self, x: Tensor) -> Tensor:
        """All but the output's activation, in few kernels."""
        layers = self._layers() if self.config["batch_norm"] else []
        conv, act = self.head
        few = few_ahead(cast(nn.Conv2d, conv))
        rounded = all_ahead(layers) if layers else None
        weights = [corners_ahead(*self.upsample[n : n + 2]) for n in range(0, len(self.upsample), 3)]
        last = rows_ahead(self.tail)
        first = conv_of_few(x, cast(nn.Conv2d, conv), act, few)
        features = chain(first, layers, rounded) if layers else first + self.blocks(first)
        for n, weight in enumerate(weights):
            features = conv_shuffle(features, weight, *self.upsample[3 * n : 3 * n + 3])
        return conv_to_few(features, self.tail, last)

    def _layers(self) -> list[Layer]:
        """The blocks with BatchNorm, layer by layer."""
        *blocks, conv, bn = self.blocks
        layers = list[Layer]()
        for block in blocks:
            first, first_bn, act, second, second_bn = cast(_Residual, block).body
            layers += [_layer(first, first_bn, act), _layer(second, second_bn, skip=len(layers))]
        return [*layers, _layer(conv, bn, skip=0)]

    def forward(self, lr: Tensor) -> Tensor:
        raw = self.raw(lr)
        return (raw + 1) / 2 if self.signed else raw


def _layer(conv: nn.Module, bn: nn.Module, act: nn.Module | None = None, skip: int | None = None) -> Layer:
    return Layer(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, bn), act, skip)


class _ImageNetNorm(nn.Module):
    """RGB in [0, 1] less ImageNet's mean, over its deviation. It holds nothing that a file could."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


class _Residual(nn.Module):
    """Conv, BN, PReLU, conv, BN, and the input added."""

    def __init__(self, channels: int, slopes: int, batch_norm: bool, bias_before_bn: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_bn(channels, batch_norm, bias_before_bn),
            nn.PReLU(slopes),
            *_conv_bn(channels, batch_norm, bias_before_bn),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def _conv_bn(channels: int, batch_norm: bool, bias_before_bn: bool) -> list[nn.Module]:
    conv = _conv(channels, channels, 3, bias=bias_before_bn or not batch_norm)
    return [conv, nn.BatchNorm2d(channels)] if batch_norm else [conv]


def _upsampling(scale: int, channels: int, slopes: int) -> list[nn.Module]:
    """PixelShuffle 3 once for scale 3, else PixelShuffle 2 log2(scale) times."""
    if scale not in get_args(Scale):
        raise ValueError(f"scale is {scale}; this network has 2, 3, 4 and 8")
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    return [
        layer
        for factor in factors
        for layer in (_conv(channels, channels * factor**2, 3), nn.PixelShuffle(factor), nn.PReLU(slopes))
    ]


@node(category="generator")
def srresnet(
    scale: Scale = 4,
    blocks: Annotated[int, Field(ge=1, le=256)] = 16,
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    batch_norm: bool = True,
    bias_before_bn: bool = True,
    prelu: Literal["layer", "channel"] = "layer",
    output: Literal["none", "tanh"] = "none",
    value_range: Literal["-1..1", "0..1"] = "-1..1",
    input_norm: Literal["none", "imagenet"] = "none",
    sync_batch_norm: bool = True,
    rng: Rng | None = None,
    device: Device = CPU,
    world: World = ALONE,
) -> Generator:
    """SRResNet, the generator of SRGAN (Ledig et al., CVPR 2017, figure 4), with new random weights.

    LR [B, 3, H, W] to SR [B, 3, scale * H, scale * W], both RGB in [0, 1]. 1,549,462 parameters as given; without
    biases before BatchNorm 1,547,350, the paper's; a slope per channel adds 1,197. Weights are torch's defaults.

    Args:
        scale: how many times larger the SR is than the LR.
        blocks: residual blocks.
        channels: feature maps of every layer.
        batch_norm: BatchNorm in the blocks, as in the paper; its running statistics serve at test time.
        bias_before_bn: a bias in the convolutions before BatchNorm; BatchNorm cancels it, published models have it.
        prelu: one PReLU slope a layer, or one a channel.
        output: activation of the last layer; the paper names none.
        value_range: what the last layer's numbers are, the paper's [-1, 1] or the image itself.
        input_norm: what the first layer sees: the paper's [0, 1], or that less ImageNet's mean, over its deviation.
        sync_batch_norm: where several processes train it, BatchNorm over the joined batch rather than each its own.
    """
    with seeded(rng):
        net = SRResNet(scale, blocks, channels, batch_norm, bias_before_bn, prelu, output, value_range, input_norm)
    return synchronised(net.to(device), world, sync_batch_norm)


class MSRResNet(Generator):
    """BasicSR's SRResNet without BatchNorm, with its names of tensors: LeakyReLU 0.1, and the bilinear LR added.

    LR in [0, 1] to SR in [0, 1], not clamped. The arguments are those of the node ``msrresnet``.
    """

    architecture = "msrresnet"

    def __init__(self, scale: Literal[2, 3, 4] = 4, blocks: int = 16, channels: int = 64) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale is {scale}; this network has 2, 3 and 4")
        self.scale = scale
        self.config: dict[str, Any] = {"scale": scale, "blocks": blocks, "channels": channels}
        self.factor = 2 if scale == 4 else scale
        self.conv_first = _conv(3, channels, 3)
        self.body = nn.Sequential(*(_PlainResidual(channels) for _ in range(blocks)))
        self.upconv1 = _conv(channels, channels * self.factor**2, 3)
        self.upconv2 = _conv(channels, channels * self.factor**2, 3) if scale == 4 else None
        self.conv_hr = _conv(channels, channels, 3)
        self.conv_last = _conv(channels, 3, 3)

    def forward(self, lr: Tensor) -> Tensor:
        features = self.body(F.leaky_relu(self.conv_first(lr), 0.1))
        for conv in (self.upconv1, self.upconv2):
            if conv is not None:
                features = F.leaky_relu(F.pixel_shuffle(conv(features), self.factor), 0.1)
        detail: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.1))
        return detail + F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False)


class _PlainResidual(nn.Module):
    """Conv, ReLU, conv, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.conv2 = _conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.relu(self.conv1(x)))
        return out


@node(category="generator")
def msrresnet(
    scale: Literal[2, 3, 4] = 4,
    blocks: Annotated[int, Field(ge=1, le=256)] = 16,
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    rng: Rng | None = None,
    device: Device = CPU,
) -> Generator:
    """BasicSR's MSRResNet: SRResNet's blocks without BatchNorm, and the bilinear LR added; new random weights.

    LR [B, 3, H, W] to SR [B, 3, scale * H, scale * W], both RGB in [0, 1]. 1,517,571 parameters as given. Weights are
    torch's defaults.

    Args:
        scale: how many times larger the SR is than the LR.
        blocks: residual blocks.
        channels: feature maps of every layer.
    """
    with seeded(rng):
        return MSRResNet(scale, blocks, channels).to(device)
