"""Losses: each a scalar, a mean over the batch, times its weight. They change nothing."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.types import Image, Logits
from sr_pipeline.node import node
from sr_pipeline.sockets import Loss

Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
Reduction = Literal["mean", "sum"]
Adversary = Literal["vanilla", "least_squares", "hinge"]


def check_same_shape(sr: Tensor, hr: Tensor) -> None:
    """Raise a ValueError that names both shapes: torch would broadcast some of them into a wrong number."""
    if sr.shape != hr.shape:
        raise ValueError(
            f"sr is {list(sr.shape)} and hr is {list(hr.shape)}; degradation and generator must have one scale, and "
            "the sides of hr must be multiples of it"
        )


@node(category="loss")
def mse_loss(sr: Image, hr: Image, reduction: Reduction = "mean", weight: Weight = 1.0) -> Loss:
    """Mean squared error of two images, each RGB in [0, 1], [B, 3, H, W]: weight * mean (sr - hr)^2.

    Images that differ by 0.1 everywhere give 0.01, or with "sum" 0.03 H W. The paper's MSE (SRGAN eq. 4, on images in
    [-1, 1]) is four times as large: a graph that follows the paper gives weight 4. Raises a ValueError for images of
    different shapes.

    Args:
        sr: the generator's image.
        hr: the image it should be.
        reduction: over channels and pixels of an image, the mean or the sum; over the batch it is always the mean.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    return weight * (F.mse_loss(sr, hr, reduction="sum") / len(sr) if reduction == "sum" else F.mse_loss(sr, hr))


@node(category="loss")
def l1_loss(sr: Image, hr: Image, weight: Weight = 1.0) -> Loss:
    """Mean absolute error of two images, each RGB in [0, 1], [B, 3, H, W]: weight * mean |sr - hr|.

    Images that differ by 0.1 everywhere give 0.1. Raises a ValueError for images of different shapes.

    Args:
        sr: the generator's image.
        hr: the image it should be.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    return weight * F.l1_loss(sr, hr)


@node(category="loss")
def charbonnier_loss(sr: Image, hr: Image, eps: Annotated[float, Field(gt=0)] = 1e-3, weight: Weight = 1.0) -> Loss:
    """A smooth absolute error of images, each RGB in [0, 1], [B, 3, H, W]: weight * mean sqrt((sr - hr)^2 + eps^2).

    Lai et al., LapSRN, CVPR 2017, eq. 2, as a mean. Its least value, at equal images, is weight * eps; images that
    differ by 0.003 with eps 0.004 give 0.005. Raises a ValueError for images of different shapes.

    Args:
        sr: the generator's image.
        hr: the image it should be.
        eps: differences well below it count as squares.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    return weight * ((sr - hr).square() + eps**2).sqrt().mean()


@node(category="loss")
def phase_loss(sr: Image, hr: Image, period: Annotated[int, Field(ge=1)] = 4, weight: Weight = 1.0) -> Loss:
    """How much SR's mean colours differ from HR's, phase by phase: what holds colours, and no checkerboard.

    A generator that enlarges by 4 makes each pixel of a 4 x 4 block in its own way. A checkerboard, or a shift of all
    colours, is a difference of the means over all pixels of one place in the block; true detail has none. The loss is
    weight * mean of |mean(sr) - mean(hr)| over images, channels and the period^2 places. Feature and adversarial
    losses do not do it: a faint checkerboard makes the distance of VGG54 smaller. Images that differ by 0.1 everywhere
    give 0.1. Raises a ValueError for images of different shapes, or with sides that are no multiples of the period.

    Args:
        sr: the generator's image, RGB in [0, 1], [B, 3, H, W].
        hr: the image it should be.
        period: of the pattern in pixels; the scale.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    height, width = sr.shape[-2:]
    if height % period or width % period:
        raise ValueError(f"the images are {height} x {width}; give sides that are multiples of the period {period}")
    blocks = (sr - hr).reshape(*sr.shape[:2], height // period, period, width // period, period)
    return weight * blocks.mean((2, 4)).abs().mean()


@node(category="loss")
def total_variation_loss(image: Image, weight: Weight = 1.0) -> Loss:
    """How much an image [B, 3, H, W] varies: weight * mean over pixels of the length of its gradient.

    A pixel's gradient is its forward differences to the right and downwards in all channels, 0 beyond the border, and
    its length the root of their squared sum. SRGAN, first version (arXiv 1609.04802v1), section 2.2.3, there with
    weight 2e-8 and for SRResNet-VGG22 alone. A gray image that grows by 0.1 from column to column gives
    0.1 sqrt(3) (W - 1) / W; a constant one gives exactly 0, with gradient 0.

    Args:
        image: the generator's image.
        weight: factor of the loss.
    """
    right = image.diff(dim=-1, append=image[..., -1:])
    down = image.diff(dim=-2, append=image[..., -1:, :])
    # vector_norm, unlike sqrt, has the gradient 0 at 0, and flat areas are common.
    lengths: Tensor = torch.linalg.vector_norm(torch.cat([right, down], dim=1), dim=1)
    return weight * lengths.mean()


@node(category="loss")
def adversarial_loss(logits: Logits, kind: Adversary = "vanilla", weight: Weight = 1.0) -> Loss:
    """The generator's adversarial loss, from the discriminator's logits for its images; weight * a mean over them.

    vanilla: -log sigmoid(logits), SRGAN eq. 6 with a mean over the batch where the paper has a sum; log 2 at logits 0.
    least_squares: (logits - 1)^2, LSGAN (Mao et al., ICCV 2017, eq. 9) without its 1/2; 1 at 0.
    hinge: -logits (Lim and Ye, Geometric GAN, 2017); 0 at 0.

    Args:
        logits: the discriminator's verdict on the generator's images, [B, 1] or [B, 1, h, w].
        kind: the same as in discriminator_loss.
        weight: factor of the loss; the paper's is 1e-3.
    """
    if kind == "vanilla":
        return weight * F.softplus(-logits).mean()
    if kind == "least_squares":
        return weight * (logits - 1).square().mean()
    return weight * -logits.mean()


@node(category="loss")
def discriminator_loss(real: Logits, fake: Logits, kind: Adversary = "vanilla", weight: Weight = 1.0) -> Loss:
    """The discriminator's loss: low where real images get high logits, and the generator's low ones.

    weight * (a mean over ``real`` + a mean over ``fake``) of
    vanilla: -log sigmoid(real) and -log(1 - sigmoid(fake)), binary cross-entropy, SRGAN eq. 2; 2 log 2 at logits 0.
    least_squares: (real - 1)^2 and fake^2, LSGAN (Mao et al., ICCV 2017, eq. 9) without its 1/2; 1 at 0.
    hinge: max(0, 1 - real) and max(0, 1 + fake) (Lim and Ye, Geometric GAN, 2017); 2 at 0.

    Args:
        real: logits of photographs, [B, 1] or [B, 1, h, w].
        fake: logits of the generator's images, of the same shape.
        kind: the same as in adversarial_loss.
        weight: factor of the loss.
    """
    if kind == "vanilla":
        return weight * (F.softplus(-real).mean() + F.softplus(fake).mean())
    if kind == "least_squares":
        return weight * ((real - 1).square().mean() + fake.square().mean())
    return weight * ((1 - real).relu().mean() + (1 + fake).relu().mean())


@node(category="loss")
def relativistic_loss(real: Logits, fake: Logits, kind: Adversary = "vanilla", weight: Weight = 1.0) -> Loss:
    """The generator's relativistic average loss: its images should look more real than the mean photograph.

    relativistic_discriminator_loss with real and fake exchanged; 2 log 2 at equal logits. ESRGAN (Wang et al., ECCVW
    2018, section 3.2, the equation of L_G^Ra), whose public code halves it; Jolicoeur-Martineau 2018 (arXiv
    1807.00734), section 4. Its gradient reaches the generator through ``fake``.

    Args:
        real: the discriminator's logits for photographs, [B, 1] or [B, 1, h, w].
        fake: its logits for the generator's images, of the same shape.
        kind: the same as in relativistic_discriminator_loss.
        weight: factor of the loss; ESRGAN's is 5e-3.
    """
    return weight * _relativistic(fake, real, kind)


@node(category="loss")
def relativistic_discriminator_loss(
    real: Logits, fake: Logits, kind: Adversary = "vanilla", weight: Weight = 1.0
) -> Loss:
    """The discriminator's relativistic average loss: photographs should look more real than the mean generated image.

    With r = real - mean(fake) and f = fake - mean(real), the means over all logits of the batch, it is weight * (a
    mean over r + a mean over f) of
    vanilla: -log sigmoid(r) and -log(1 - sigmoid(f)), ESRGAN (Wang et al., ECCVW 2018, section 3.2, the equation of
    L_D^Ra), whose public code halves it; 2 log 2 at equal logits.
    least_squares: (r - 1)^2 and (f + 1)^2; 2 at equal logits.
    hinge: max(0, 1 - r) and max(0, 1 + f); 2 at equal logits.
    All three are of Jolicoeur-Martineau 2018 (arXiv 1807.00734), RaSGAN, RaLSGAN and RaHingeGAN. A constant added to
    all logits changes nothing.

    Args:
        real: logits of photographs, [B, 1] or [B, 1, h, w].
        fake: logits of the generator's images, of the same shape.
        kind: the same as in relativistic_loss.
        weight: factor of the loss.
    """
    return weight * _relativistic(real, fake, kind)


def _relativistic(high: Tensor, low: Tensor, kind: Adversary) -> Tensor:
    """Least where ``high`` is far above the mean of ``low``, and ``low`` far below the mean of ``high``."""
    above, below = high - low.mean(), low - high.mean()
    if kind == "vanilla":
        return F.softplus(-above).mean() + F.softplus(below).mean()
    if kind == "least_squares":
        return (above - 1).square().mean() + (below + 1).square().mean()
    return (1 - above).relu().mean() + (1 + below).relu().mean()


@node(category="loss")
def weighted_sum(
    loss_1: Loss,
    loss_2: Loss | None = None,
    loss_3: Loss | None = None,
    loss_4: Loss | None = None,
    weight_1: Share = 1.0,
    weight_2: Share = 1.0,
    weight_3: Share = 1.0,
    weight_4: Share = 1.0,
) -> Loss:
    """Up to four losses as one: weight_1 * loss_1 + weight_2 * loss_2 + ...; SRGAN eq. 3 has 1 and 1e-3.

    >>> weighted_sum(torch.tensor(2.0), torch.tensor(3.0), weight_2=0.5)
    tensor(3.5000)

    Args:
        loss_1: the first loss.
        loss_2: the second, if there is one.
        loss_3: the third, if there is one.
        loss_4: the fourth, if there is one.
        weight_1: factor of the first.
        weight_2: factor of the second.
        weight_3: factor of the third.
        weight_4: factor of the fourth.
    """
    total = weight_1 * loss_1
    for loss, weight in ((loss_2, weight_2), (loss_3, weight_3), (loss_4, weight_4)):
        if loss is not None:
            total = total + weight * loss
    return total
