"""The whole state of a run in one file: safetensors for tensors, its metadata for the rest, a digest over every byte.

The metadata is ``format`` (with its version), ``content`` (JSON: the step, and what is no tensor) and ``digest``, a
hash of the whole file in which the digest's own place counts as zeros. So no flipped or missing byte goes unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from sr_pipeline.errors import CheckpointError, DamagedCheckpointError
from sr_pipeline.files import written_beside

FORMAT = "sr_pipeline.checkpoint/2"
MAX_HEADER = 100_000_000
"""Bytes; safetensors' own bound."""
_BLANK = "0" * 32
_DIGEST = re.compile(rb'"digest":"([0-9a-f]{32})"')


@dataclass(frozen=True)
class Snapshot:
    """A state as it was after ``step`` steps: copies on the devices where the tensors were."""

    step: int
    content: str
    tensors: dict[str, Tensor]
    numbers: dict[str, bool]
    """The tensors that must be numbers: weights and optimizers (True: finite), buffers (False: not NaN)."""
    ready: tuple[torch.cuda.Event, ...] = ()
    """When the copies are made."""


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    step: int
    objects: dict[str, Any]
    """The ``state_dict`` of each object."""
    kinds: dict[str, str]
    """The class of each object."""
    defaults: dict[str, dict[str, Any]]
    """What each optimizer was made with."""
    unchanged: dict[str, str]
    """The digests of the models that no step changes."""
    best: dict[str, Any] | None
    """The best step by a metric, as ``saver.Best`` keeps it."""


def snapshot(
    step: int, state: Mapping[str, Any], unchanged: Mapping[str, str], best: Mapping[str, Any] | None = None
) -> Snapshot:
    """Copy the ``state_dict`` of each object of ``state`` after ``step`` steps.

    On a GPU the copies stay there, because that takes a millisecond and the way to the host takes a hundred; where
    there is no room for them they go to the host at once. ``unchanged`` are digests of the weights that no step
    changes.

    Raises:
        CheckpointError: a state that is neither tensors nor JSON, or there is no memory for the copies.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, bool] = {}
    objects = {}
    for name, value in state.items():
        before = set(tensors)
        objects[name] = {
            "kind": type(value).__qualname__,
            "state": _flatten(value.state_dict(), name, tensors),
            "defaults": _flatten(defaults_of(value), name, tensors),
        }
        weights = {f"{name}.{n}" for n, _ in value.named_parameters()} if isinstance(value, nn.Module) else None
        if isinstance(value, (nn.Module, Optimizer)):
            numbers |= {n: weights is None or n in weights for n in tensors.keys() - before}
    content = {"step": step, "objects": objects, "unchanged": dict(unchanged), "best": best and dict(best)}
    try:
        copies = {name: _copy(tensor) for name, tensor in tensors.items()}
        devices = {tensor.device for tensor in copies.values() if tensor.is_cuda}
        ready = tuple(torch.cuda.current_stream(device).record_event() for device in devices)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(f"step {step}", f"the state cannot be copied: {error}", "free memory") from error
    return Snapshot(step, json.dumps(content), copies, numbers, ready)


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    try:
        return tensor.clone(memory_format=torch.contiguous_format)
    except torch.OutOfMemoryError:
        return tensor.to("cpu", memory_format=torch.contiguous_format)


def defaults_of(value: Any) -> dict[str, Any]:
    """What an optimizer was made with, as far as JSON can say it; steps do not change it."""
    found = value.defaults if isinstance(value, Optimizer) else {}
    return {k: v for k, v in found.items() if isinstance(v, (bool, int, float, str, tuple, type(None)))}


def write(path: Path, taken: Snapshot) -> None:
    """Write a snapshot beside its place, sync it, and rename it, so that a file of the final name is always whole.

    May be called in another thread than the one that took the snapshot.

    Raises:
        CheckpointError: it cannot be written, or it holds what is no number: then nothing is written.
    """
    metadata = {"format": FORMAT, "content": taken.content, "digest": _BLANK}
    try:
        tensors = _on_host(taken)
        _refuse_no_numbers(taken, tensors)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as beside:
            safetensors.torch.save_file(tensors, beside, metadata)
            with beside.open("rb+") as file:
                place, digest = _digest_of(file)
                file.seek(place)
                file.write(digest.encode())
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        fix = "make room or mend the folder, then --resume: the checkpoint before is whole"
        raise CheckpointError(str(path), f"the state cannot be saved: {error}", fix) from error


def _on_host(taken: Snapshot) -> dict[str, Tensor]:
    """The tensors in the host's memory; those of a GPU come over a stream of its own, which no step waits for."""
    if not taken.ready:
        return taken.tensors
    device = next(tensor.device for tensor in taken.tensors.values() if tensor.is_cuda)
    with torch.cuda.stream(_stream(device)):
        for event in taken.ready:
            event.wait()
        return {name: tensor.cpu() for name, tensor in taken.tensors.items()}


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _refuse_no_numbers(taken: Snapshot, tensors: Mapping[str, Tensor]) -> None:
    """A state with NaN in it is no state to go back to."""
    for name, finite in taken.numbers.items():
        if found := _no_number(tensors[name], finite):
            fix = "the checkpoint before is sound; look at what leads to it (learning rate, precision, data)"
            raise CheckpointError(f"step {taken.step}", f"{name} holds {found}: this state is not saved", fix)


def _no_number(tensor: Tensor, finite: bool) -> str:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return ""
    known = tensor.dtype in (torch.float32, torch.float64, torch.float16)
    array = (tensor if known else tensor.float()).numpy()
    ends = array.min(), array.max()  # one that is NaN makes both so; no copy is made, and one thread works
    if np.isnan(ends[0]):
        return "NaN"
    return "infinity" if finite and not np.isfinite(ends).all() else ""


def read(path: Path) -> Saved:
    """The content of a checkpoint. Nothing of it is looked at before its digest is found right.

    Raises:
        DamagedCheckpointError: it cannot be read, or some byte of it is not as it was written.
        CheckpointError: it is of another format.
    """
    fix = "remove it to use the one before"
    try:
        with path.open("rb") as file:
            place, digest = _digest_of(file)
            file.seek(place)
            if file.read(len(digest)) != digest.encode():
                raise DamagedCheckpointError(str(path), "it is damaged: its digest is another", fix)
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata()
            if metadata["format"] != FORMAT:
                found = f"its format is {metadata['format']!r}, wanted {FORMAT!r}"
                raise CheckpointError(str(path), found, "use the version of sr-pipeline that wrote it")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        return _saved(json.loads(metadata["content"]), tensors)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(str(path), f"it cannot be read: {error}", fix) from error


def _saved(content: dict[str, Any], tensors: Mapping[str, Tensor]) -> Saved:
    objects = content["objects"]
    return Saved(
        step=int(content["step"]),
        objects={name: _unflatten(entry["state"], tensors) for name, entry in objects.items()},
        kinds={name: entry["kind"] for name, entry in objects.items()},
        defaults={name: _unflatten(entry["defaults"], tensors) for name, entry in objects.items()},
        unchanged=content["unchanged"],
        best=content["best"],
    )


def _digest_of(file: BinaryIO) -> tuple[int, str]:
    """Where a file's digest stands, and what it should be.

    Raises:
        ValueError: the header is no header, or has no digest.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, MAX_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = bytearray(file.read(length))
    match = _DIGEST.search(header)
    if match is None:
        raise ValueError("there is no digest in it")
    header[slice(*match.span(1))] = _BLANK.encode()
    found = hashlib.blake2b(length.to_bytes(8, "little") + header, digest_size=16)
    while part := file.read(1 << 20):
        found.update(part)
    return 8 + match.start(1), found.hexdigest()


def checkpoints(folder: Path) -> Iterator[Path]:
    """The checkpoints of a folder, the newest first; of one step, the newest's before the best's."""
    digits = "[0-9]" * 9
    files = [p for name in ("best", "step") for p in folder.glob(f"{name}-{digits}.safetensors")]
    return iter(sorted(files, key=lambda path: (step_of(path), path.name), reverse=True))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder."""
    return next(checkpoints(folder), None)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.stem.rpartition("-")[2])


def digest(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a state dict: tensors go to ``tensors``; dicts become lists of pairs, so that keys keep types."""
    if isinstance(value, Tensor):
        while name in tensors:  # the keys 1 and "1", or "a.b" and "a" of "b"
            name += "'"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_scalar(k, name), _flatten(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(v, f"{name}.{n}", tensors) for n, v in enumerate(value)]}
    return {"value": _scalar(value, name)}


def _scalar(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(name, f"a state of type {type(value).__name__} cannot be saved", "make it a tensor or JSON")


def _unflatten(tree: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    (kind, content), *_ = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _unflatten(v, tensors) for k, v in content}
    if kind in ("list", "tuple"):
        return (tuple if kind == "tuple" else list)(_unflatten(v, tensors) for v in content)
    return content
