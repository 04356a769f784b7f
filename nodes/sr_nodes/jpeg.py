"""Compression: what is left of an image after a JPEG file, or after 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.draws import Probability, chance, check_range, per_image
from sr_nodes.pictures import to_image, to_uint8
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Rng

Quality = Annotated[int, Field(ge=1, le=100)]
Chroma = Literal["4:2:0", "4:4:4"]

# The tables of ITU-T T.81, annex K.1, row by row.
LUMA_TABLE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)

# libjpeg's accurate integer DCT: 8192 sqrt(2) cos((2 x + 1) k pi / 16), and 8192 for k = 0. Where the last digit is not
# the nearest, it is what the sums of Loeffler's fast algorithm come to, whose factors have 13 bits. No other will do: a
# coefficient that falls to the other side of a half changes its whole block.
_HALF_DCT = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
DCT = tuple((*row, *((-1) ** k * factor for factor in reversed(row))) for k, row in enumerate(_HALF_DCT))

# JFIF's YCbCr (BT.601, full range), times 2^16 as libjpeg rounds it.
TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
FROM_YCC = ((0, 91881), (-22554, -46802), (116130, 0))
"""What Cb - 128 and Cr - 128 add to Y."""


@node(category="degradation", differentiable=False)
def jpeg(
    image: Image,
    quality_min: Quality = 30,
    quality_max: Quality = 95,
    probability: Probability = 1.0,
    chroma: Chroma = "4:2:0",
    rng: Rng | None = None,
) -> Image:
    """Write each image of a batch as JPEG and read it again. Real-ESRGAN (Wang et al., ICCVW 2021), section 3.1.

    [B, 3, H, W] to the same shape, each value k / 255: bit for bit what libjpeg-turbo reads of the file that it wrote,
    with its tables of the quality (a whole number uniform from ``quality_min`` to ``quality_max``, one an image), its
    accurate integer DCT and its smooth enlargement of chroma. No file is made: all images are computed at once on
    their device, in whole numbers held by float64, so that every device gives the same bits.

    Args:
        image: the image to compress; rounded to 8 bits first.
        quality_min: least quality, 1 to 100.
        quality_max: greatest quality.
        probability: share of images that are compressed; the others stay as they are, not even rounded.
        chroma: 4:2:0 keeps colour at half the size, as most files have it; 4:4:4 at the full size.

    Raises:
        ValueError: quality_min is above quality_max.
    """
    check_range("quality", quality_min, quality_max)
    qualities = torch.randint(quality_min, quality_max + 1, (len(image),), generator=rng)
    chosen = chance(len(image), probability, rng)
    read = _read_back(to_uint8(image), qualities.to(image.device, non_blocking=True), chroma)
    return torch.where(per_image(chosen, image), to_image(read), image.detach())


@node(category="degradation", differentiable=False)
def quantize(image: Image) -> Image:
    """Round to 8 bits, as a file of 8-bit pixels holds an image.

    [B, 3, H, W] to the same shape, each value the nearest k / 255 of [0, 1], a half to the even k.

    Args:
        image: the image to round.
    """
    return to_image(to_uint8(image))


def _read_back(pixels: Tensor, qualities: Tensor, chroma: Chroma) -> Tensor:
    """Levels 0..255 of 8-bit pixels [B, 3, H, W], into a file and out of it: whole numbers, in float64 from here on."""
    luma, colour = torch.split(_ycc(pixels.double()), [1, 2], dim=1)
    luma_table, colour_table = _tables(qualities)
    luma = _through_blocks(luma, luma_table)
    if chroma == "4:4:4":
        return _rgb(luma, _through_blocks(colour, colour_table))
    height, width = pixels.shape[2:]
    small = _through_blocks(_halved(colour), colour_table)[..., : (width + 1) // 2]
    return _rgb(luma, _doubled(small)[..., :height, :width])


def _ycc(rgb: Tensor) -> Tensor:
    """Levels of RGB, [B, 3, H, W], as those of Y, Cb and Cr; halves go up for Y and down for the others."""
    turned = torch.einsum("dc,bchw->bdhw", _constant(TO_YCC, rgb) / 2**16, rgb)
    below = 128.5 - 2**-16
    return turned.add_(_constant((0.5, below, below), rgb).view(3, 1, 1)).floor_()


def _rgb(luma: Tensor, colour: Tensor) -> Tensor:
    """Levels of Y, [B, 1, H, W], and of Cb and Cr, [B, 2, H, W], as those of RGB."""
    turned = torch.einsum("dc,bchw->bdhw", _constant(FROM_YCC, colour) / 2**16, colour - 128)
    return _whole(turned).add_(luma).clamp_(0, 255)


def _halved(colour: Tensor) -> Tensor:
    """Means of 2x2, [B, 2, ceil(H / 2), a multiple of 8], by repeating the last column and, if H is odd, the last row.

    Halves go down in even columns and up in odd ones.
    """
    height, width = colour.shape[2:]
    padded = F.pad(colour, (0, -width % 16, 0, height % 2), mode="replicate")
    means = F.avg_pool2d(padded, 2)
    bias = 0.25 + 0.25 * (torch.arange(means.shape[3], device=means.device) % 2)
    return means.add_(bias).floor_()


def _doubled(colour: Tensor) -> Tensor:
    """Twice the size each way, by weights of 3 to 1 for the nearest two; of up to 2 columns, by repeating."""
    if colour.shape[3] <= 2:
        return colour.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    above = F.pad(colour, (0, 0, 1, 1), mode="replicate")
    rows = torch.stack([3 * colour + above[:, :, :-2], 3 * colour + above[:, :, 2:]], dim=3).flatten(2, 3)
    aside = F.pad(rows, (1, 1, 0, 0), mode="replicate")
    columns = torch.stack([3 * rows + aside[..., :-2] + 8, 3 * rows + aside[..., 2:] + 7], dim=4).flatten(3, 4)
    return columns.div_(16).floor_()


def _tables(qualities: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of luma's and of chroma's coefficients at each quality, each [B, 1, 1, 1, 8, 8]."""
    percent = torch.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities).double().view(-1, 1, 1, 1, 1, 1)

    def scaled(table: tuple[int, ...]) -> Tensor:
        return _whole(_constant(table, percent).view(8, 8) * percent / 100).clamp_(1, 255)

    return scaled(LUMA_TABLE), scaled(CHROMA_TABLE)


def _through_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Planes [B, C, H, W] after the rounding of each 8x8 block's coefficients to whole steps of the table."""
    height, width = planes.shape[2:]
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8) - 128
    dct = _constant(DCT, planes)
    # Each of the four passes ends in whole numbers: 4 times as large between two, the coefficients 8 times.
    coefficients = _whole(dct / 2**15 @ _whole(blocks @ dct.T / 2**11))
    quotients = coefficients.div_(8 * table)
    steps = _whole(quotients.abs()).copysign_(quotients)
    restored = _whole(_whole(dct.T / 2**11 @ steps.mul_(table)) @ dct / 2**18)
    levels = restored.add_(128).clamp_(0, 255).transpose(3, 4).reshape(padded.shape)
    return levels[..., :height, :width]


def _whole(values: Tensor) -> Tensor:
    """Rounded in place, halves up."""
    return values.add_(0.5).floor_()


def _constant(values: Sequence[Sequence[int]] | Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(like.device, non_blocking=True)
