"""Upscalers by name: a file of weights, or an interpolation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.assets import shipped_weights, weights_file
from sr_nodes.degradation import Factor, bicubic_upscale
from sr_nodes.generators import load_generator
from sr_nodes.modules import CPU, nearest_file
from sr_nodes.spandrel_nets import load_upscaler
from sr_nodes.types import Generator
from sr_pipeline.errors import nearest
from sr_pipeline.node import node
from sr_pipeline.sockets import Device, InputPath

BEST = "srgan_x4"
"""The best weights that ship; what is used where none are named."""
Method = Literal["bicubic", "nearest"]


class Interpolation(Generator):
    """An enlargement without weights, so that a baseline can stand where a generator does."""

    architecture = "interpolation"

    def __init__(self, method: Method, scale: int) -> None:
        super().__init__()
        self.method, self.scale = method, scale
        self.config = {"method": method, "scale": scale}

    def forward(self, lr: Tensor) -> Tensor:
        if self.method == "nearest":
            return F.interpolate(lr, scale_factor=float(self.scale), mode="nearest-exact")
        return bicubic_upscale(lr, self.scale)


def find(path: str, device: torch.device = CPU, scale: int = 4) -> Generator:
    """A generator by the name of weights that ship, from a file that load_generator or load_upscaler reads, or an
    interpolation.

    Raises:
        ValueError: there is no such file, and its text names the ways to get one; no network is known for it; or its
            weights are not all numbers.
    """
    if path in ("bicubic", "nearest"):
        return Interpolation("bicubic" if path == "bicubic" else "nearest", scale)
    file = weights_file(path)
    if not file.exists():
        names = shipped_weights()
        hint = nearest_file(file) if file.suffix else nearest(path, [*names, "bicubic", "nearest"])
        raise ValueError(
            f"there is no model {path!r}{f'; {hint} Or' if hint.endswith('?') else ':'} "
            f"give the name of one that ships ({', '.join(names)}), bicubic or nearest, or a file: "
            "one that a training has exported (sr-pipeline run train_srgan), or any other (.safetensors, .pth; "
            "load_upscaler reads more than 40 architectures, with pip install 'sr-pipeline[spandrel]')"
        )
    generator = _loaded(str(file), device)
    for name, tensor in generator.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{path} has values in {name} that are not finite (NaN or infinity): its training diverged; "
                "give weights of an earlier step"
            )
    return generator


def _loaded(place: str, device: torch.device) -> Generator:
    try:
        return load_generator(place, device=device)
    except ValueError as error:
        try:
            return load_upscaler(place, device=device)
        except ValueError as other:
            if str(other) == str(error):
                raise error from None
            raise ValueError(f"{error}; and by load_upscaler: {other}") from error


@node(category="generator")
def upscaler(model: InputPath = BEST, scale: Factor = 4, device: Device = CPU) -> Generator:
    """A generator by name, as it was trained: what ``evaluate --model`` takes.

    It makes [B, 3, H, W] of [B, 3, h, w], where H and W are ``scale`` times h and w.

    Args:
        model: the name of shipped weights, a file that load_generator or load_upscaler reads, bicubic or nearest.
        scale: of an interpolation; a file knows its own.

    Raises:
        ValueError: there is no such model, or the file's scale is another one.
    """
    generator = find(model, device, scale)
    if generator.scale != scale:
        raise ValueError(
            f"{model} enlarges {generator.scale} times, and {scale} is wanted; set scale, "
            f"here and for LR (sr-pipeline evaluate --scale {generator.scale})"
        )
    return generator
