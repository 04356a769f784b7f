"""Generators for other programs: ONNX and TorchScript files, checked after they are written."""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sr_nodes.generators import export_generator, write_file
from sr_nodes.inference import Prepared, folded
from sr_nodes.modules import CPU
from sr_nodes.receptive import receptive_field
from sr_nodes.spandrel_nets import SpandrelNet
from sr_nodes.types import Generator
from sr_pipeline.node import node
from sr_pipeline.paths import inside
from sr_pipeline.sockets import Every, OutputName, OutputPath, RunDir

_HERE = Path()
_SIZES = ((16, 16), (9, 13), (5, 7))
"""Of the pictures on which a written file is compared with the generator, in units of its grid."""
_SAME = 1e-4
_SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
_KINDS = {suffix: kind for kind, suffix in _SUFFIXES.items()} | {".pth": "torchscript"}
"""What a suffix says a file is; any other says nothing."""


@node(category="generator", output=True)
def export_onnx(
    generator: Generator, filename: OutputName = "generator.onnx", every: Every = 0, run_dir: RunDir = _HERE
) -> None:
    """Write a generator as ONNX into the run's folder: lr [B, 3, H, W] to sr, RGB float32 in [0, 1], clamped.

    Batch, height and width are dynamic; of a network that folds pixels or has windows, height and width are multiples
    of that. BatchNorm is folded. The file is compared with the generator in onnxruntime on three sizes before it takes
    its name. Raises a ValueError where the network cannot be written or not for every size, where the file's SR
    differs by more than 1e-4, and where the extra is missing.

    Args:
        generator: the network.
        filename: a path inside the run's folder.
        every: steps between two exports; 0 is once, after the last.
    """
    write_file(inside(run_dir, filename), _onnx(generator))


@node(category="generator", output=True)
def export_torchscript(
    generator: Generator, filename: OutputName = "generator.pt", every: Every = 0, run_dir: RunDir = _HERE
) -> None:
    """Write a generator as TorchScript into the run's folder: ``torch.jit.load`` runs it without this program.

    [B, 3, H, W] to SR, RGB float32 in [0, 1], clamped, of any size; of a network that folds pixels or has windows,
    height and width are multiples of that. BatchNorm is folded. The file is compared with the generator on three sizes
    before it takes its name. Raises a ValueError where the file's SR differs by more than 1e-4.

    Args:
        generator: the network.
        filename: a path inside the run's folder.
        every: steps between two exports; 0 is once, after the last.
    """
    write_file(inside(run_dir, filename), _torchscript(generator))


@node(category="generator", output=True)
def export_model(
    generator: Generator,
    to: Literal["onnx", "torchscript", "safetensors"] = "onnx",
    out: OutputPath | None = None,
    run_dir: RunDir = _HERE,
) -> str:
    """Write a generator as a file of a kind, anywhere, and say what was written: what ``sr-pipeline export`` runs.

    Raises a ValueError as ``export_onnx`` and ``export_torchscript``, for a place that is a folder or cannot be written
    to, for a suffix of another kind, and for safetensors of what has no weights.

    Args:
        generator: the network.
        to: the kind of file.
        out: the file's path, as for any program; generator.onnx, .pt or .safetensors in the run's folder if empty.
    """
    target = Path(out).expanduser() if out else run_dir / f"generator{_SUFFIXES[to]}"
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give a file's name in it")
    if _KINDS.get(target.suffix.lower(), to) != to:
        raise ValueError(f"the name {str(target)!r} and the kind {to} contradict each other; name it {_SUFFIXES[to]}")
    if to == "safetensors" and not _trainable(generator).state_dict():
        raise ValueError(f"this {generator.architecture} has no weights for safetensors; export it as torchscript")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)  # told before the work, and not after
        if to == "safetensors":
            export_generator(_trainable(generator), target.name, run_dir=target.parent)
        else:
            write_file(target, _onnx(generator) if to == "onnx" else _torchscript(generator))
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error.strerror or error}; give another path") from error
    mebibytes = target.stat().st_size / 2**20
    return f"{target}: {to}, {generator.architecture} x{generator.scale}, {mebibytes:.1f} MiB"


class _Clamped(nn.Module):
    """A folded copy of the generator on the CPU, with the clamp of ``generate``."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.net = folded(_trainable(generator)).float().to(CPU).requires_grad_(False)
        self.eval()  # it itself too: torch.onnx.export gives all of it the mode that it had

    def forward(self, lr: Tensor) -> Tensor:
        sr: Tensor = self.net(lr)
        return sr.clamp(0, 1)


def _trainable(generator: Generator) -> Generator:
    """The generator that a prepared one was made of."""
    return generator.original[0] if isinstance(generator, Prepared) else generator


def _grid(generator: Generator) -> int:
    """The multiple that a picture's sides must be; what no probe can tell is taken for 1, and the check decides."""
    plain = _trainable(generator)
    wanted = plain.requirements.multiple_of if isinstance(plain, SpandrelNet) else 1
    field = receptive_field(plain)
    return math.lcm(wanted, field.grid if field else 1)


def _example(grid: int) -> Tensor:
    """Two pictures whose sides differ, so that no number in the file can be taken for another."""
    return torch.rand(2, 3, 12 * grid, 15 * grid, generator=torch.Generator().manual_seed(0))


def _onnx(generator: Generator) -> bytes:
    runtime = _extra("onnxruntime")
    _extra("onnxscript")
    net, grid = _Clamped(generator), _grid(generator)
    if isinstance(_trainable(generator), SpandrelNet):
        # A trace is right or refused by the comparison, and made in seconds. It is tried first, because torch's newer
        # exporter takes a minute for some of spandrel's networks, and crashes on SPAN.
        with suppress(ValueError):
            return _checked_onnx(_traced, net, grid, generator.architecture, runtime)
    return _checked_onnx(_captured, net, grid, generator.architecture, runtime)


def _checked_onnx(
    convert: Callable[[nn.Module, int], bytes], net: nn.Module, grid: int, architecture: str, runtime: Any
) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts, and nothing that its user could mend
        try:
            content = convert(net, grid)
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            why = " ".join(str(error.__cause__ or error).split())[:300]
            raise ValueError(f"this {architecture} cannot be written as ONNX: {why}") from error
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # its errors are told here
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    if any(isinstance(side, int) for side in shape[2:]):
        raise ValueError(f"this {architecture} can be written as ONNX for pictures of {shape} alone")

    def call(lr: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])
        except Exception as error:
            raise ValueError(
                f"this {architecture} as ONNX fails for a picture of {list(lr.shape[2:])}: {error}"
            ) from error

    _compare(net, call, grid, "ONNX")
    return content


def _captured(net: nn.Module, grid: int) -> bytes:
    """ONNX by torch.export, which knows what a network does for each size."""
    height, width = (
        grid * torch.export.Dim(f"{side}_over_{grid}") if grid > 1 else torch.export.Dim(side)
        for side in ("height", "width")
    )
    program = torch.onnx.export(
        net,
        (_example(grid),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch"), 2: height, 3: width},),
        input_names=["lr"],
        output_names=["sr"],
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _traced(net: nn.Module, grid: int) -> bytes:
    """ONNX by a trace of one size, which the comparison on others proves."""
    content: Any = io.BytesIO()  # which the exporter takes, and does not say
    sides = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        net,
        (_example(grid),),
        content,
        dynamo=False,
        dynamic_axes={"lr": sides, "sr": sides},
        input_names=["lr"],
        output_names=["sr"],
    )
    written: bytes = content.getvalue()
    return written


def _torchscript(generator: Generator) -> bytes:
    net, grid = _Clamped(generator), _grid(generator)
    with warnings.catch_warnings():
        # Tracing is deprecated, and still what other programs read; what it warns of, the comparison decides.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, _example(grid), check_trace=False)  # type: ignore[no-untyped-call]
        content = io.BytesIO()
        torch.jit.save(traced, content)
        content.seek(0)
        read = torch.jit.load(content)  # type: ignore[no-untyped-call]
    _compare(net, read, grid, "TorchScript")
    return content.getvalue()


def _compare(net: nn.Module, other: Callable[[Tensor], Tensor], grid: int, kind: str) -> None:
    """Raise a ValueError where the written network is another one."""
    for height, width in _SIZES:
        lr = torch.rand(1, 3, grid * height, grid * width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            wanted, found = net(lr), other(lr)
        size = f"{grid * width} x {grid * height}"
        if wanted.shape != found.shape:
            shapes = f"{list(found.shape)} instead of {list(wanted.shape)}"
            raise ValueError(f"the {kind} file gives {shapes} for a picture of {size}; export as safetensors instead")
        if not float((wanted - found).abs().max()) <= _SAME:
            difference = float((wanted - found).abs().max())
            raise ValueError(
                f"the {kind} file's SR of a picture of {size} differs from the generator's by {difference:.2g}, more "
                f"than {_SAME:g}; export as safetensors instead"
            )


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"an export to ONNX needs {name} ({error}); pip install 'sr-pipeline[onnx]'") from error
