"""Figures beside PSNR and SSIM, for an evaluation that asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from sr_nodes.lpips import LEAST_SIDE as LPIPS_SIDE
from sr_nodes.lpips import lpips, lpips_net
from sr_nodes.modules import CPU
from sr_nodes.similarity import MS_SSIM_SIDE, WINDOW, ms_ssim
from sr_nodes.types import Image, Metrics
from sr_pipeline.node import node
from sr_pipeline.sockets import Device

FurtherMetric = Literal["ms_ssim", "lpips"]


class Measures(dict[str, Callable[..., float]]):
    """Metrics by name, each called with sr, hr and border."""


class FurtherMetrics(NamedTuple):
    """The metrics, and the least side in pixels of what the border leaves of a picture, for SSIM and for these."""

    measures: Measures
    least: int


@node(category="evaluation")
def further_metrics(names: tuple[FurtherMetric, ...] = (), device: Device = CPU) -> FurtherMetrics:
    """Metrics beside PSNR and SSIM, made ready once: what ``evaluate --also`` names.

    ``ms_ssim`` is on luma; ``lpips`` is on RGB, by AlexNet, whose weights ``lpips_net`` fetches at the first use.

    Args:
        names: which; none is loaded that is not named.

    Raises:
        ValueError: LPIPS is named, and TorchMetrics or the weights are missing.
    """
    measures, least = Measures(), WINDOW
    if "ms_ssim" in names:
        measures["ms_ssim"], least = ms_ssim, max(least, MS_SSIM_SIDE)
    if "lpips" in names:
        measures["lpips"], least = partial(lpips, lpips_net("alex", device)), max(least, LPIPS_SIDE)
    return FurtherMetrics(measures, least)


@node(category="evaluation")
def further_figures(measures: Measures, sr: Image, hr: Image, border: Annotated[int, Field(ge=0)] = 4) -> Metrics:
    """What the further metrics say of one picture, by name; none where there are none.

    Args:
        measures: what further_metrics gives.
        sr: the picture to measure, [B, 3, H, W] in [0, 1].
        hr: the true picture, of the same shape and range.
        border: pixels left out at each edge.
    """
    return {name: measure(sr=sr, hr=hr, border=border) for name, measure in measures.items()}
