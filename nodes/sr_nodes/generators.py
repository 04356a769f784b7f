"""The nodes that run, load and export generators."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, ValidationError, validate_call
from safetensors.torch import save
from torch import Tensor

from sr_nodes.assets import weights_file
from sr_nodes.batchnorm import synchronised
from sr_nodes.modules import CPU, check_fits, mode
from sr_nodes.published import Weights, recognise
from sr_nodes.rrdbnet import rrdbnet
from sr_nodes.srresnet import msrresnet, srresnet
from sr_nodes.types import Generator, Image
from sr_nodes.weight_files import budget_of, read_tensors
from sr_pipeline.errors import nearest, quoted
from sr_pipeline.files import written_beside
from sr_pipeline.node import node
from sr_pipeline.paths import inside
from sr_pipeline.sockets import Device, Every, InputPath, Mutates, OutputName, RunDir, Training, World
from sr_pipeline.world import ALONE

_FORMAT = "sr_pipeline.generator"
_VERSION = "1"

BUILDERS: Mapping[str, Callable[..., Generator]] = {"srresnet": srresnet, "msrresnet": msrresnet, "rrdbnet": rrdbnet}
"""Every network of ours, by the name that an export gives it."""


@node(category="generator")
def generate(generator: Generator, lr: Image, training: Training = False) -> Image:
    """Super-resolve: LR [B, 3, H, W] to SR [B, 3, scale * H, scale * W], both RGB in [0, 1].

    Where the result leads to a loss, BatchNorm uses the batch's statistics and the SR is not clamped, because a clamp
    has no gradient outside [0, 1] and such a pixel would never come back. Elsewhere BatchNorm uses its running
    statistics, and the SR is clamped. The generator's own mode is as before afterwards.

    Args:
        generator: the network.
        lr: the image to enlarge.
    """
    with mode(generator, training):
        sr: Tensor = generator(lr)
    return sr if training else sr.clamp(0, 1)


@node(category="generator")
def load_weights(generator: Mutates[Generator], weights: InputPath | None = None) -> Generator:
    """Set a generator's weights from a file that ``load_generator`` reads; without a file, leave them as they are.

    Raises a ValueError, and changes nothing, where the file is missing, damaged, or of another configuration.

    Args:
        generator: the network to start from.
        weights: the name of weights that ship (srgan_x4), or a path; empty is training from scratch.
    """
    if not weights:
        return generator
    path = weights_file(weights)
    tensors, architecture, config = _read(path)
    if architecture != generator.architecture:
        raise ValueError(f"{path} holds a {architecture!r}, and this generator is a {generator.architecture!r}")
    names = sorted(k for k in {*config, *generator.config} if config.get(k) != generator.config.get(k))
    if names:
        differences = ", ".join(f"{n} is {config.get(n)!r} instead of {generator.config.get(n)!r}" for n in names)
        raise ValueError(f"{path} is of another configuration: {differences}; set these inputs as in the file")
    check_fits(generator.state_dict(), tensors, str(path))
    generator.load_state_dict(tensors)
    return generator


@node(category="generator")
def load_generator(
    path: InputPath,
    output: Literal["auto", "none", "tanh"] = "auto",
    value_range: Literal["auto", "-1..1", "0..1"] = "auto",
    device: Device = CPU,
    world: World = ALONE,
) -> Generator:
    """Build a generator from a weights file: of ``export_generator``, or the state dict of a public code.

    These are SRResNets with the names of twtygqyy/pytorch-SRResNet, leftthomas/SRGAN, sgrvinod's tutorial,
    Lornatang/SRGAN-PyTorch or ours, BasicSR's MSRResNet, and RRDBNet as in BasicSR, Real-ESRGAN and ESRGAN. Size,
    scale, biases and PReLU are told from the shapes; the output and the ranges follow that code. What has LeakyReLU
    becomes PReLU with that slope. A torch file is read with weights_only: nothing in it runs. Raises a ValueError
    where the file is missing, damaged, refused, or of no such network; ``load_upscaler`` knows more networks. Where
    several processes train it, BatchNorm sees their joined batch.

    Args:
        path: a .safetensors, .pth, .pt, .ckpt, .tar or .bin file, or the name of weights that ship (srgan_x4).
        output: the last activation of a SRResNet; auto is as in the file, or as the code that names tensors so has it.
        value_range: what a SRResNet's last numbers are, an image in [-1, 1] or in [0, 1]; auto as above.
    """
    file = weights_file(path)
    tensors, architecture, config = _read(file)
    for name, value in (("output", output), ("value_range", value_range)):
        if value != "auto" and name not in config:
            raise ValueError(f"{file} holds a {architecture}, which has no choice of {name}; leave it at 'auto'")
        config |= {} if value == "auto" else {name: value}
    with budget_of(tensors, str(file)):
        generator = _built(architecture, config, file)
    check_fits(generator.state_dict(), tensors, str(file))
    generator.load_state_dict(tensors)
    return synchronised(generator.to(device), world)


_NOT_OF_THE_NETWORK = frozenset({"rng", "device", "world", "sync_batch_norm"})
"""Arguments of a builder that say how it is made and trained."""


def _built(architecture: str, config: dict[str, Any], file: Path) -> Generator:
    if architecture.startswith("spandrel/"):
        raise ValueError(f"{file} holds {architecture[:80]}, a network of spandrel's; load_upscaler reads it")
    if architecture not in BUILDERS:
        raise ValueError(
            f"{file} holds an unknown architecture {quoted(architecture)}; {nearest(architecture, BUILDERS)}"
        )
    build = validate_call(config=ConfigDict(arbitrary_types_allowed=True, strict=True))(BUILDERS[architecture])
    try:
        # A fixed generator, so that weights that are replaced at once draw nothing from torch's own.
        return build(**{"rng": torch.Generator(), **config})
    except ValidationError as error:
        faults = ", ".join(f"{fault['loc'][0]} ({fault['msg'].lower()})" for fault in error.errors())
        raise ValueError(
            f"{file} has options that {architecture} cannot: {faults}; export it again, or give another file"
        ) from error


def _read(path: Path) -> Weights:
    """What a weights file holds; options that an older file does not name have their defaults."""
    tensors, metadata = read_tensors(path)
    found = _exported(tensors, metadata, path) if metadata.get("format") == _FORMAT else recognise(tensors, str(path))
    if found.architecture not in BUILDERS:
        return found
    options = inspect.signature(BUILDERS[found.architecture]).parameters.values()
    defaults = {option.name: option.default for option in options if option.name not in _NOT_OF_THE_NETWORK}
    return found._replace(config={**defaults, **found.config})


def _exported(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> Weights:
    """An exported generator's tensors, architecture and options."""
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"{path} is of version {quoted(metadata.get('version', ''))} and this program reads version {_VERSION!r}; "
            "use the sr-pipeline that wrote it, or a newer one"
        )
    try:
        config = json.loads(metadata.get("config", ""))
    except json.JSONDecodeError as error:
        raise ValueError(f"the options in {path} are no JSON ({error}); export it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"the options in {path} are no JSON object; export it again")
    return Weights(tensors, metadata.get("architecture", ""), config)


@node(category="generator", output=True)
def export_generator(
    generator: Generator,
    filename: OutputName = "generator.safetensors",
    half: bool = False,
    every: Every = 0,
    run_dir: RunDir = Path(),
) -> None:
    """Write a generator's weights, with what builds it again, into the run's folder; ``load_generator`` reads it.

    A safetensors file, replaced as a whole: whoever reads it while it is written finds the previous one. Raises a
    ValueError for a name outside the run's folder, and for weights that float16 cannot hold.

    Args:
        generator: the network.
        filename: a path inside the run's folder.
        half: store float16, half the size; it is read back as float32.
        every: steps between two exports; 0 is once, after the last.
    """
    target = inside(run_dir, filename)
    tensors = {name: _stored(name, tensor, half) for name, tensor in generator.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "architecture": generator.architecture,
        "config": json.dumps(generator.config),
    }
    write_file(target, save(tensors, metadata))


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    stored = tensor.detach().cpu().contiguous()
    if half and stored.is_floating_point():
        stored = stored.half()
        if bool((stored.isinf() & tensor.cpu().isfinite()).any()):
            raise ValueError(f"{name} has values beyond float16's 65504; export with half off")
    return stored


def write_file(target: Path, content: bytes) -> None:
    """Write a whole file, in a folder that may not be there yet. Raises a ValueError where a folder has its name."""
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give a file's name in it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(target) as beside:
        beside.write_bytes(content)
