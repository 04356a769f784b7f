"""Validation inside training: the figures of the generator as it is now."""

from __future__ import annotations

import torch

from sr_nodes.generators import generate
from sr_nodes.metrics import psnr
from sr_nodes.modules import device_of
from sr_nodes.pairs import Pairs
from sr_nodes.similarity import ssim
from sr_nodes.types import Generator, Metrics
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Every, Report


@node(category="metrics", output=True)
def validate(generator: Generator, pairs: Pairs, every: Every = 5000, report: Report = SILENT) -> Metrics:
    """The generator's figures over a test set: psnr_y and psnr_rgb in dB, and ssim_y, each the mean over the pairs.

    They are what ``psnr`` and ``ssim`` give with a border of the generator's scale. The generator runs in eval mode
    without gradients, one whole picture at a time; its weights, running statistics and mode are left as they were.

    Args:
        generator: the model to measure.
        pairs: the test set, from image_pairs.
        every: measure at each n-th step and after the last; 0 is after the last only.

    Raises:
        ValueError: an SR and its HR differ in size, because the pairs are of another scale than the generator, or less
            than 11x11 pixels of a picture are left inside the border.
    """
    totals = {"psnr_y": 0.0, "psnr_rgb": 0.0, "ssim_y": 0.0}
    device = device_of(generator)
    for pair in pairs:
        hr = pair.hr.to(device)
        with torch.no_grad():
            sr = generate(generator, pair.lr.to(device))
        totals["psnr_y"] += psnr(sr, hr, "y", border=generator.scale)
        totals["psnr_rgb"] += psnr(sr, hr, "rgb", border=generator.scale)
        totals["ssim_y"] += ssim(sr, hr, "y", border=generator.scale)
    means = {name: total / len(pairs) for name, total in totals.items()}
    for name, value in means.items():
        report.scalar(name, value)
    return means
