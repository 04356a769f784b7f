"""The artefact loss of LDL: an absolute error where the generator errs unevenly, and more than its average does."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sr_nodes.losses import Weight, check_same_shape
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Loss

_WINDOW = 7


@node(category="loss")
def ldl_loss(sr: Image, hr: Image, ema_sr: Image, weight: Weight = 1.0) -> Loss:
    """LDL's loss on artefacts (Liang et al., CVPR 2022, arXiv 2203.09195), of RGB images in [0, 1].

    weight * mean of M |sr - hr|, each image [B, 3, H, W] and the map M [B, 1, H, W]. With r = |hr - sr| and r' =
    |hr - ema_sr|, each a sum over channels, M is 0 where r < r', where the average of the generators is worse, and
    elsewhere var(r)^(1/5) * the variance of r in the 7 x 7 pixels around, the image reflected at its borders; both
    variances are unbiased. M is a weight: no gradient passes through it (in public codes one does), nor to ``hr`` and
    ``ema_sr``. An error that is the same everywhere costs nothing; one k times as large, as ``ema_sr``'s, costs k^3.4
    times as much. A gray error e of one pixel far from the borders, where ``ema_sr`` has none, costs
    (9 e^2 / (H W))^(1/5) * 9 e^3 / (49 H W): 1.46e-7 for 0.1 in 16 x 16. Its authors give it weight 1, beside
    ESRGAN's losses. Raises a ValueError for images of different shapes or below 4 pixels a side.

    Args:
        sr: the generator's image.
        hr: the image it should be.
        ema_sr: the image that an average of the generator (copy_model, generate, ema) makes of the same LR.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    if ema_sr.shape != sr.shape:
        raise ValueError(
            f"ema_sr is {list(ema_sr.shape)} and sr is {list(sr.shape)}; generate both from one LR, by one architecture"
        )
    if min(sr.shape[-2:]) < 4:
        raise ValueError(
            f"the image is {sr.shape[-2]} x {sr.shape[-1]}, and LDL needs 4 pixels a side; use larger crops"
        )
    return weight * (artefact_map(sr.detach(), hr.detach(), ema_sr.detach()) * (sr - hr.detach()).abs()).mean()


def artefact_map(sr: Tensor, hr: Tensor, ema_sr: Tensor) -> Tensor:
    """M of ``ldl_loss``, [B, 1, H, W]."""
    error, ema_error = ((hr - image).abs().sum(dim=1, keepdim=True) for image in (sr, ema_sr))
    padded = F.pad(error, [_WINDOW // 2] * 4, mode="reflect")
    local = padded.unfold(2, _WINDOW, 1).unfold(3, _WINDOW, 1).var(dim=(-2, -1))
    whole = error.var(dim=(1, 2, 3), keepdim=True) ** (1 / 5)
    return (whole * local).masked_fill(error < ema_error, 0)
