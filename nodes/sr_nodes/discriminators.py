"""The discriminator of SRGAN, and the node that runs one."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from sr_nodes.modules import CPU, mode, seeded
from sr_nodes.types import Discriminator, Image, Logits
from sr_pipeline.node import node
from sr_pipeline.sockets import Device, Rng, Training


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
        logits: Tensor = self.classifier(self.features(2 * image - 1))
        return logits


@node(category="discriminator")
def discriminator(
    crop: Annotated[int, Field(ge=16, le=1024)] = 96,
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    dense: Annotated[int, Field(ge=1, le=65536)] = 1024,
    rng: Rng | None = None,
    device: Device = CPU,
) -> Discriminator:
    """The discriminator of SRGAN (Ledig et al., CVPR 2017, figure 4), with new random weights.

    RGB [B, 3, crop, crop] in [0, 1] to logits [B, 1]. 23,563,649 parameters as given. Weights are torch's defaults.

    Args:
        crop: side of the images that it judges, in pixels; its dense layer is made for that size.
        channels: feature maps of the first layer; the last has eight times as many.
        dense: width of the dense layer.
    """
    with seeded(rng):
        return SRGANDiscriminator(crop, channels, dense).to(device)


@node(category="discriminator")
def discriminate(discriminator: Discriminator, image: Image, training: Training = False) -> Logits:
    """Judge images, RGB in [0, 1], [B, 3, crop, crop]: logits [B, 1], whose sigmoid is the probability of a real one.

    Where the result leads to a loss, BatchNorm uses the batch's statistics, elsewhere its running ones. The
    discriminator's own mode is as before afterwards. Raises a ValueError for images of another size than its crop.

    Args:
        discriminator: the network.
        image: real images, or a generator's.
    """
    with mode(discriminator, training):
        logits: Tensor = discriminator(image)
    return logits
