"""Generators, and the nodes that run, load and export them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import ConfigDict, Field, ValidationError, validate_call
from safetensors.torch import save
from torch import Tensor, nn

from sr_nodes.assets import resolve
from sr_nodes.modules import CPU, check_fits, mode, read_safetensors, seeded
from sr_nodes.types import Generator, Image
from sr_pipeline.errors import nearest
from sr_pipeline.node import node
from sr_pipeline.sockets import Device, Every, Mutates, Rng, RunDir, Training

_FORMAT = "sr_pipeline.generator"
_VERSION = "1"

Scale = Literal[2, 3, 4, 8]


class SRResNet(Generator):
    """The generator of SRGAN (Ledig et al., CVPR 2017, section 2.1.1 and figure 4), in plain torch initialisation.

    ``raw`` is the paper's output, an image in [-1, 1]; calling the module gives it on the wires' range,
    ``(raw + 1) / 2``, not clamped. LR goes in as [0, 1], as in the paper. The arguments are those of the node
    ``srresnet``.
    """

    architecture = "srresnet"

    def __init__(
        self,
        scale: Scale = 4,
        blocks: int = 16,
        channels: int = 64,
        batch_norm: bool = True,
        bias_before_bn: bool = True,
        prelu: Literal["layer", "channel"] = "layer",
        output: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__()
        self.scale = scale
        self.config: dict[str, Any] = {
            "scale": scale,
            "blocks": blocks,
            "channels": channels,
            "batch_norm": batch_norm,
            "bias_before_bn": bias_before_bn,
            "prelu": prelu,
            "output": output,
        }
        slopes = channels if prelu == "channel" else 1
        self.head = nn.Sequential(_conv(3, channels, 9), nn.PReLU(slopes))
        self.blocks = nn.Sequential(
            *(_Residual(channels, slopes, batch_norm, bias_before_bn) for _ in range(blocks)),
            *_conv_bn(channels, batch_norm, bias_before_bn),
        )
        self.upsample = nn.Sequential(*_upsampling(scale, channels, slopes))
        self.tail = _conv(channels, 3, 9)
        self.output = nn.Tanh() if output == "tanh" else nn.Identity()

    def raw(self, lr: Tensor) -> Tensor:
        """The paper's output: [B, 3, H, W] in [0, 1] to [B, 3, scale * H, scale * W], meant for [-1, 1]."""
        first = self.head(lr)
        image: Tensor = self.output(self.tail(self.upsample(first + self.blocks(first))))
        return image

    def forward(self, lr: Tensor) -> Tensor:
        return (self.raw(lr) + 1) / 2


class _Residual(nn.Module):
    """Conv, BN, PReLU, conv, BN, and the input added."""

    def __init__(self, channels: int, slopes: int, batch_norm: bool, bias_before_bn: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_bn(channels, batch_norm, bias_before_bn),
            nn.PReLU(slopes),
            *_conv_bn(channels, batch_norm, bias_before_bn),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def _conv_bn(channels: int, batch_norm: bool, bias_before_bn: bool) -> list[nn.Module]:
    conv = _conv(channels, channels, 3, bias=bias_before_bn or not batch_norm)
    return [conv, nn.BatchNorm2d(channels)] if batch_norm else [conv]


def _upsampling(scale: int, channels: int, slopes: int) -> list[nn.Module]:
    """PixelShuffle 3 once for scale 3, else PixelShuffle 2 log2(scale) times."""
    if scale not in get_args(Scale):
        raise ValueError(f"scale is {scale}; this network has 2, 3, 4 and 8")
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    return [
        layer
        for factor in factors
        for layer in (_conv(channels, channels * factor**2, 3), nn.PixelShuffle(factor), nn.PReLU(slopes))
    ]


@node(category="generator")
def srresnet(
    scale: Scale = 4,
    blocks: Annotated[int, Field(ge=1, le=256)] = 16,
    channels: Annotated[int, Field(ge=1, le=1024)] = 64,
    batch_norm: bool = True,
    bias_before_bn: bool = True,
    prelu: Literal["layer", "channel"] = "layer",
    output: Literal["none", "tanh"] = "none",
    rng: Rng | None = None,
    device: Device = CPU,
) -> Generator:
    """SRResNet, the generator of SRGAN (Ledig et al., CVPR 2017, figure 4), with new random weights.

    LR [B, 3, H, W] to SR [B, 3, scale * H, scale * W], both RGB in [0, 1]. 1,549,462 parameters as given; without
    biases before BatchNorm 1,547,350, the paper's; a slope per channel adds 1,197. Weights are torch's defaults.

    Args:
        scale: how many times larger the SR is than the LR.
        blocks: residual blocks.
        channels: feature maps of every layer.
        batch_norm: BatchNorm in the blocks, as in the paper; its running statistics serve at test time.
        bias_before_bn: a bias in the convolutions before BatchNorm; BatchNorm cancels it, published models have it.
        prelu: one PReLU slope a layer, or one a channel.
        output: activation of the last layer, on [-1, 1]; the paper names none.
    """
    with seeded(rng):
        return SRResNet(scale, blocks, channels, batch_norm, bias_before_bn, prelu, output).to(device)


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
def load_weights(generator: Mutates[Generator], weights: str | None = None) -> Generator:
    """Set a generator's weights from a file of ``export_generator``; without a file, leave them as they are.

    Raises a ValueError, and changes nothing, where the file is missing, damaged, or of another configuration.

    Args:
        generator: the network to start from.
        weights: a path, or sr_nodes:NAME for a file of the pack; empty is training from scratch.
    """
    if not weights:
        return generator
    path = resolve(weights)
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
def load_generator(path: str, device: Device = CPU) -> Generator:
    """Build a generator from a file of ``export_generator``: its architecture and options are in the file.

    Raises a ValueError where the file is missing, damaged, or not such a file.

    Args:
        path: a .safetensors file, or sr_nodes:NAME for a file of the pack.
    """
    file = resolve(path)
    tensors, architecture, config = _read(file)
    builders = {SRResNet.architecture: srresnet}
    if architecture not in builders:
        raise ValueError(f"{file} holds an unknown architecture {architecture!r}; {nearest(architecture, builders)}")
    build = validate_call(config=ConfigDict(arbitrary_types_allowed=True, strict=True))(builders[architecture])
    try:
        # A fixed generator, so that weights that are replaced at once draw nothing from torch's own.
        generator = build(**{"rng": torch.Generator(), **config})
    except ValidationError as error:
        faults = ", ".join(f"{fault['loc'][0]} ({fault['msg'].lower()})" for fault in error.errors())
        raise ValueError(f"{file} has options that {architecture} cannot: {faults}; export it again") from error
    check_fits(generator.state_dict(), tensors, str(file))
    generator.load_state_dict(tensors)
    return generator.to(device)


def _read(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The tensors, architecture and options of an exported generator."""
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is not an exported generator; give a file that export_generator wrote")
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"{path} is of version {metadata.get('version')!r} and this program reads version {_VERSION!r}; "
            "use the sr-pipeline that wrote it, or a newer one"
        )
    try:
        config = json.loads(metadata.get("config", ""))
    except json.JSONDecodeError as error:
        raise ValueError(f"the options in {path} are no JSON ({error}); export it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"the options in {path} are no JSON object; export it again")
    return tensors, metadata.get("architecture", ""), config


@node(category="generator", output=True)
def export_generator(
    generator: Generator,
    filename: str = "generator.safetensors",
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
    target = (run_dir / filename).resolve()
    if run_dir.resolve() not in target.parents or target.is_dir():
        raise ValueError(
            f"{filename!r} is no file inside the run's folder {run_dir}; give a name such as 'a.safetensors'"
        )
    tensors = {name: _stored(name, tensor, half) for name, tensor in generator.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "architecture": generator.architecture,
        "config": json.dumps(generator.config),
    }
    _replace(target, save(tensors, metadata))


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    stored = tensor.detach().cpu().contiguous()
    if half and stored.is_floating_point():
        stored = stored.half()
        if bool((stored.isinf() & tensor.cpu().isfinite()).any()):
            raise ValueError(f"{name} has values beyond float16's 65504; export with half off")
    return stored


def _replace(target: Path, content: bytes) -> None:
    """Write beside, force to the disk, and rename: there is never half a file under the name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
