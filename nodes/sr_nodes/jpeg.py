"""Compression: what is left of an image after a JPEG file, or after 8 bits."""

from __future__ import annotations

from io import BytesIO
from typing import Annotated

import numpy as np
import PIL.Image
import torch
from pydantic import Field
from torch import Tensor

from sr_nodes.draws import Probability, chance, check_range, per_image
from sr_nodes.pictures import from_uint8, to_image, to_uint8
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Rng

Quality = Annotated[int, Field(ge=1, le=100)]


@node(category="degradation", differentiable=False)
def jpeg(
    image: Image,
    quality_min: Quality = 30,
    quality_max: Quality = 95,
    probability: Probability = 1.0,
    rng: Rng | None = None,
) -> Image:
    """Write each image of a batch as JPEG and read it again. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    [B, 3, H, W] to the same shape, each value k / 255. What Pillow reads of the file it wrote, in memory and so on the
    CPU, with chroma at half the size (4:2:0) and libjpeg's tables of the quality: a whole number uniform from
    ``quality_min`` to ``quality_max``, one an image.

    Args:
        image: the image to compress; rounded to 8 bits first.
        quality_min: least quality, 1 to 100.
        quality_max: greatest quality.
        probability: share of images that are compressed; the others stay as they are, not even rounded.

    Raises:
        ValueError: quality_min is above quality_max.
    """
    check_range("quality", quality_min, quality_max)
    qualities = torch.randint(quality_min, quality_max + 1, (len(image),), generator=rng).tolist()
    chosen = chance(len(image), probability, rng)
    pixels = to_uint8(image).cpu()
    for place in chosen.nonzero().flatten().tolist():
        pixels[place] = _read_back(pixels[place], qualities[place])
    return torch.where(per_image(chosen, image), to_image(pixels.to(image.device)), image.detach())


@node(category="degradation", differentiable=False)
def quantize(image: Image) -> Image:
    """Round to 8 bits, as a file of 8-bit pixels holds an image.

    [B, 3, H, W] to the same shape, each value the nearest k / 255 of [0, 1], a half to the even k.

    Args:
        image: the image to round.
    """
    return to_image(to_uint8(image))


def _read_back(pixels: Tensor, quality: int) -> Tensor:
    """8-bit pixels [3, H, W] after a JPEG file."""
    file = BytesIO()
    from_uint8(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with PIL.Image.open(file) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
