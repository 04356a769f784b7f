"""Discriminators: SRGAN's, a U-Net with spectral norm, a patch discriminator; and the node that runs one."""

from __future__ import annotations

import math
from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from sr_nodes.batchnorm import synchronised
from sr_nodes.fused import Layer, ahead, all_ahead, chain, conv_of_few, dense, few_ahead, serves
from sr_nodes.modules import CPU, mode, seeded
from sr_nodes.types import Discriminator, Image, Logits
from sr_pipeline.node import node
from sr_pipeline.sockets import Device, Rng, Training, World
from sr_pipeline.world import ALONE


class SRGANDiscriminator(Discriminator):
    """The discriminator of SRGAN (Ledig et al., CVPR 2017, section 2.1.1 and figure 4), without its last sigmoid.

    RGB [B, 3, crop, crop] in [0, 1], mapped to the paper's [-1, 1] inside, to logits [B, 1]: positive is real. Eight
    3x3 convolutions, BatchNorm after all but the first and then no bias before it, LeakyReLU 0.2; every second one
    halves the side, rounded up. The arguments are those of the node ``discriminator``.
    """

    def __init__(self, crop: int = 96, channels: int = 64, dense: int = 1024) -> None:
        super().__init__()
        if crop < 16:
            raise ValueError(f"crop is {crop}; four halvings need at least 16")
        self.crop = crop
        self.config: dict[str, Any] = {"crop": crop, "channels": channels, "dense": dense}
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.LeakyReLU(0.2)]
        inputs = channels
        for outputs, stride in [(channels, 2), *((channels * m, s) for m in (2, 4, 8) for s in (1, 2))]:
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs * math.ceil(crop / 16) ** 2, dense), nn.LeakyReLU(0.2), nn.Linear(dense, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.crop, self.crop):
            height, width = image.shape[-2:]
            raise ValueError(
                f"the image is {height} x {width}, and this discriminator takes {self.crop} x {self.crop}; "
                "give the discriminator's crop and the crops' size the same number"
            )
        x = 2 * image - 1
        logits: Tensor = self._fused(x) if serves(x) else self.classifier(self.features(x))
        return logits

    def _fused(self, x: Tensor) -> Tensor:
        """The same in few kernels."""
        conv, act, *rest = self.features
        flatten, wide, *last = self.classifier
        layers = [Layer(*rest[n : n + 3]) for n in range(0, len(rest), 3)]  # type: ignore[arg-type]
        few, rounded, weight = few_ahead(cast(nn.Conv2d, conv)), all_ahead(layers), ahead(cast(nn.Linear, wide))
        first = conv_of_few(x, cast(nn.Conv2d, conv), act, few)
        found = chain(first, layers, rounded)
        logits = dense(flatten(found), weight, cast(nn.Linear, wide))
        for layer in last:
            logits = layer(logits)
        return logits


@node(category="discriminator")
def discriminator(
    crop: Annotated[int, Field(ge=16, le=1024)] = 96,
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    dense: Annotated[int, Field(ge=1, le=65536)] = 1024,
    sync_batch_norm: bool = True,
    rng: Rng | None = None,
    device: Device = CPU,
    world: World = ALONE,
) -> Discriminator:
    """The discriminator of SRGAN (Ledig et al., CVPR 2017, figure 4), with new random weights.

    RGB [B, 3, crop, crop] in [0, 1] to logits [B, 1]. 23,563,649 parameters as given. Weights are torch's defaults.

    Args:
        crop: side of the images that it judges, in pixels; its dense layer is made for that size.
        channels: feature maps of the first layer; the last has eight times as many.
        dense: width of the dense layer.
        sync_batch_norm: where several processes train it, BatchNorm over the joined batch rather than each its own.
    """
    with seeded(rng):
        net = SRGANDiscriminator(crop, channels, dense)
    return synchronised(net.to(device), world, sync_batch_norm)


class UNetDiscriminator(Discriminator):
    """A U-Net with spectral norm: Real-ESRGAN's discriminator (Wang et al., ICCVW 2021, section 3.4).

    RGB [B, 3, H, W] in [0, 1], not mapped to another range, to logits [B, 1, H, W]: a verdict for each pixel. A 3x3
    convolution; three of 4x4 that halve the sides, rounded down; three times bilinear to the size before the halving
    and a 3x3 convolution; two more of 3x3, and one to the logits. Spectral norm (Miyato et al., ICLR 2018) and no bias
    on all but the first and the last; LeakyReLU 0.2. The arguments are those of the node ``unet_discriminator``.
    """

    def __init__(self, channels: int = 64, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList(_spectral(channels * m, channels * m * 2, 4, stride=2) for m in (1, 2, 4))
        self.up = nn.ModuleList(_spectral(channels * m * 2, channels * m, 3) for m in (4, 2, 1))
        self.tail = nn.Sequential(
            _spectral(channels, channels, 3),
            nn.LeakyReLU(0.2),
            _spectral(channels, channels, 3),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 1, 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        _check_side(image, 8)
        maps = [F.leaky_relu(self.head(image), 0.2)]
        for down in self.down:
            maps.append(F.leaky_relu(down(maps[-1]), 0.2))
        x = maps.pop()
        for up, before in zip(self.up, reversed(maps), strict=True):
            x = F.interpolate(x, size=before.shape[-2:], mode="bilinear", align_corners=False)
            x = F.leaky_relu(up(x), 0.2)
            x = x + before if self.skip else x
        logits: Tensor = self.tail(x)
        return logits


def _spectral(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False))


def _check_side(image: Tensor, least: int) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise ValueError(
            f"the image is {height} x {width}, and this discriminator needs {least} pixels a side; use larger crops"
        )


@node(category="discriminator")
def unet_discriminator(
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    skip: bool = True,
    rng: Rng | None = None,
    device: Device = CPU,
) -> Discriminator:
    """Real-ESRGAN's discriminator (Wang et al., ICCVW 2021, section 3.4), a U-Net, with new random weights.

    RGB [B, 3, H, W] in [0, 1], of any size from 8 x 8, to logits [B, 1, H, W], one for each pixel. 4,376,897
    parameters as given, those of the authors' code. Each convolution but the first and the last is divided by its
    spectral norm, estimated by one more power iteration in each pass that leads to a loss. Weights are torch's
    defaults.

    Args:
        channels: feature maps of the first layer; the deepest has eight times as many.
        skip: add each map before a halving to the one of its size after it.
    """
    with seeded(rng):
        return UNetDiscriminator(channels, skip).to(device)


class PatchDiscriminator(Discriminator):
    """PatchGAN (Isola et al., pix2pix, CVPR 2017, appendix 6.1.2): each logit judges a patch of 70 x 70.

    RGB [B, 3, H, W] in [0, 1], mapped to the paper's [-1, 1] inside, to logits [B, 1, h, w], h and w an eighth of the
    sides, rounded down, less 2. C64-C128-C256-C512 and one to the logits, all 4x4, the first three halving the sides;
    BatchNorm on all but the first and the last and then no bias before it; LeakyReLU 0.2. The argument is that of the
    node ``patch_discriminator``.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for m, stride in ((1, 2), (2, 2), (4, 1)):
            layers += [
                nn.Conv2d(channels * m, channels * m * 2, 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(channels * m * 2),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels * 8, 1, 4, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        _check_side(image, 24)
        logits: Tensor = self.layers(2 * image - 1)
        return logits


@node(category="discriminator")
def patch_discriminator(
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    sync_batch_norm: bool = True,
    rng: Rng | None = None,
    device: Device = CPU,
    world: World = ALONE,
) -> Discriminator:
    """PatchGAN 70x70 (Isola et al., pix2pix, CVPR 2017, appendix 6.1.2), with new random weights.

    RGB [B, 3, H, W] in [0, 1], of any size from 24 x 24, to logits [B, 1, H // 8 - 2, W // 8 - 2], each for a patch
    of 70 x 70 pixels. 2,765,633 parameters as given. Weights are torch's defaults.

    Args:
        channels: feature maps of the first layer; the last has eight times as many.
        sync_batch_norm: where several processes train it, BatchNorm over the joined batch rather than each its own.
    """
    with seeded(rng):
        net = PatchDiscriminator(channels)
    return synchronised(net.to(device), world, sync_batch_norm)


@node(category="discriminator")
def discriminate(discriminator: Discriminator, image: Image, training: Training = False) -> Logits:
    """Judge images, RGB in [0, 1], [B, 3, H, W]: logits, whose sigmoid is the probability of a real one.

    One logit an image, [B, 1], or a map of them, [B, 1, h, w], as the discriminator gives. Where the result leads to a
    loss, BatchNorm uses the batch's statistics, elsewhere its running ones; spectral norm moves its estimate there and
    keeps it elsewhere. The discriminator's own mode is as before afterwards. Raises a ValueError for images of a size
    that the discriminator does not take.

    Args:
        discriminator: the network.
        image: real images, or a generator's.
    """
    with mode(discriminator, training):
        logits: Tensor = discriminator(image)
    return logits
