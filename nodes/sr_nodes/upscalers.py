"""Upscalers by name: a file of weights, or an interpolation."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.assets import resolve
from sr_nodes.degradation import bicubic_upscale
from sr_nodes.generators import load_generator
from sr_nodes.types import Generator
from sr_pipeline.node import node
from sr_pipeline.sockets import Device

CPU = torch.device("cpu")
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


@node(category="generator")
def upscaler(model: str, scale: Annotated[int, Field(ge=2, le=8)] = 4, device: Device = CPU) -> Generator:
    """A generator by name: what ``evaluate --model`` takes.

    Args:
        model: bicubic (MATLAB's), nearest, the name of weights that the pack ships, or a file for load_generator.
        scale: of an interpolation; a file knows its own.

    Raises:
        ValueError: as load_generator; or the file's scale is another one.
    """
    if model in ("bicubic", "nearest"):
        return Interpolation("bicubic" if model == "bicubic" else "nearest", scale)
    shipped = f"sr_nodes:weights/{model}.safetensors"
    generator = load_generator(shipped if resolve(shipped).is_file() else model, device=device)
    if generator.scale != scale:
        raise ValueError(f"{model} enlarges {generator.scale} times, and {scale} is wanted; set scale, here and for LR")
    return generator
