"""Any super-resolution network that spandrel knows, as a generator."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_nodes.modules import CPU, seeded
from sr_nodes.rrdbnet import pad_end
from sr_nodes.types import Generator
from sr_nodes.weight_files import budget_of, read_tensors
from sr_pipeline.node import node
from sr_pipeline.paths import resolve
from sr_pipeline.sockets import Device, InputPath

# What spandrel's loaders raise for tensors that look like an architecture's and are not.
_MISFITS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class SpandrelNet(Generator):
    """A network of spandrel's: LR in [0, 1] to SR in [0, 1], not clamped, of any size.

    An export of it keeps the tensors' names under ``model.``, from which ``load_upscaler`` builds it again.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.architecture = f"spandrel/{descriptor.architecture.id}"
        self.scale = descriptor.scale
        self.config = {}
        self.model = descriptor.model
        self.requirements = descriptor.size_requirements
        # Not descriptor(image), which clamps and runs in inference mode: nothing could be trained.
        self.call = descriptor._call_fn

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        right, bottom = self.requirements.get_padding(width, height)
        sr: Tensor = self.call(self.model, pad_end(lr, bottom, right))
        return sr[..., : height * self.scale, : width * self.scale]


@node(category="generator")
def load_upscaler(path: InputPath, device: Device = CPU) -> Generator:
    """Build any super-resolution network that spandrel knows (SwinIR, HAT, SPAN, Compact, ...) from its weights.

    The architecture and its options are told from the tensors. LR [B, 3, H, W] to SR [B, 3, scale * H, scale * W],
    both RGB in [0, 1]; sizes that the network cannot take are padded on the right and below by mirroring, and the SR
    is cropped. It can be trained, and its export is read by this node. A torch file is read with weights_only:
    nothing in it runs. Raises a ValueError where the file is missing, damaged or refused, of no architecture that
    spandrel knows, of a network for faces, restoration or inpainting, or of other than RGB images; and where
    spandrel, an optional extra, is not installed.

    Args:
        path: a .safetensors, .pth, .pt, .ckpt, .tar or .bin file, or sr_nodes:NAME for a file of the pack.
    """
    file = resolve(path)
    tensors, metadata = read_tensors(file)
    spandrel = _spandrel()
    if metadata.get("architecture", "").startswith("spandrel/"):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return SpandrelNet(_described(spandrel, tensors, file)).float().to(device)


def _described(spandrel: Any, tensors: dict[str, Tensor], file: Path) -> Any:
    """Spandrel's descriptor of the network: a model, and what it is for."""
    shown = ", ".join(f"{name} {list(t.shape)}" for name, t in list(tensors.items())[:4]) or "none"
    try:
        # Weights that are replaced at once draw nothing from torch's own generator of random numbers.
        with seeded(torch.Generator()), budget_of(tensors, str(file)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # spandrel's to mend, not the user's
            found = spandrel.ModelLoader().load_from_state_dict(tensors)
    except spandrel.UnsupportedModelError as error:
        raise ValueError(
            f"{file} holds {len(tensors)} tensors ({shown}), of no architecture that spandrel {spandrel.__version__} "
            "knows; load_generator knows SRResNets and RRDBNets, and a newer spandrel may know more"
        ) from error
    except _MISFITS as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{file} ({shown}) misleads spandrel: {why}; give a whole state dict") from error
    name = found.architecture.id
    if found.purpose != "SR":
        raise ValueError(f"{file} holds a {name} for {found.purpose}; supported are networks for super-resolution (SR)")
    inputs, outputs = found.input_channels, found.output_channels
    if (inputs, outputs) != (3, 3):
        raise ValueError(f"{file} holds a {name} of {inputs} channels to {outputs}; supported is RGB, 3 to 3")
    return found


def _spandrel() -> Any:
    try:
        return importlib.import_module("spandrel")
    except ImportError as error:
        raise ValueError(
            f"load_upscaler needs spandrel ({error}); pip install 'sr-pipeline[spandrel]', or pip install spandrel"
        ) from error
