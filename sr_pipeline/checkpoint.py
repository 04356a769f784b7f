"""The whole state of a run in one file: safetensors for tensors, its metadata for the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from sr_pipeline.errors import CheckpointError
from sr_pipeline.files import written_beside

FORMAT = "sr_pipeline.checkpoint/1"
KEEP = 3


def save(folder: Path, step: int, state: Mapping[str, Any], unchanged: Mapping[str, str]) -> Path:
    """Write the ``state_dict`` of each object of ``state`` after ``step`` steps, and drop all but the newest files.

    ``unchanged`` are the hashes of the weights that no step changes. The file is written beside, synced and renamed,
    so that a file of the final name is always whole.
    """
    tensors: dict[str, Tensor] = {}
    tree = {name: _flatten(value.state_dict(), name, tensors) for name, value in state.items()}
    copies = {n: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for n, t in tensors.items()}
    content = json.dumps({"step": step, "state": tree, "unchanged": dict(unchanged)})
    path = folder / f"step-{step:09d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safely(path, copies, {"format": FORMAT, "content": content, "digest": _digest(copies, content)})
        for old in _files(folder)[:-KEEP]:
            old.unlink()
    except (SafetensorError, OSError) as error:
        fix = "make room or mend the folder, then --resume: the checkpoint before is whole"
        raise CheckpointError(str(path), f"the state cannot be saved: {error}", fix) from error
    return path


def write_safely(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file written beside, synced and renamed."""
    with written_beside(path) as beside:
        safetensors.torch.save_file(dict(tensors), beside, metadata)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder."""
    return next(reversed(_files(folder)), None)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.stem.removeprefix("step-"))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step-{'[0-9]' * 9}.safetensors"))


def restore(path: Path, state: Mapping[str, Any], unchanged: Mapping[str, str]) -> int:
    """Load each object's state from a file, and return the number of steps done. All fits, or nothing is loaded.

    Raises:
        CheckpointError: the file is damaged, of another graph, or other unchanged weights were in use.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(str(path), f"its format is {metadata.get('format')!r}", f"wanted {FORMAT!r}")
        if metadata["digest"] != _digest(tensors, metadata["content"]):
            raise CheckpointError(str(path), "it is damaged: its digest is another", "remove it to use the one before")
        content = json.loads(metadata["content"])
        saved = {name: _unflatten(tree, tensors) for name, tree in content["state"].items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(str(path), f"it cannot be read: {error}", "remove it to use the one before") from error
    _check_fits(path, state, saved, unchanged, content["unchanged"])
    for name, value in state.items():
        value.load_state_dict(saved[name])
    return int(content["step"])


def _check_fits(
    path: Path, state: Mapping[str, Any], saved: Mapping[str, Any], now: Mapping[str, str], then: Mapping[str, str]
) -> None:
    fix = "resume with the graph that the run's folder holds, or start a new run"
    missing, extra = sorted(state.keys() - saved.keys()), sorted(saved.keys() - state.keys())
    if missing or extra:
        lists = (", ".join(names) or "nothing" for names in (missing, extra))
        what = "it is of another graph: not in it: {}; left over: {}".format(*lists)
        raise CheckpointError(str(path), what, fix)
    for name, value in state.items():
        if isinstance(value, nn.Module) and (differing := _differing(value.state_dict(), saved[name])):
            raise CheckpointError(str(path), f"{name!r} has another shape: {differing}", fix)
        if isinstance(value, Optimizer) and _parameters(value.state_dict()) != _parameters(saved[name]):
            raise CheckpointError(str(path), f"{name!r} is an optimizer of other parameters", fix)
    for name, found in then.items():
        if name in now and now[name] != found:
            raise CheckpointError(str(path), f"the weights of {name!r} are not those of the run", fix)


def _differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    for name in sorted(now.keys() | then.keys()):
        ours, theirs = (getattr(tensors.get(name), "shape", None) for tensors in (now, then))
        if ours != theirs:
            shapes = ["absent" if shape is None else str(list(shape)) for shape in (theirs, ours)]
            return f"{name} is {shapes[0]} in the file, {shapes[1]} in the graph"
    return ""


def _parameters(state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state.get("param_groups", ())]


def digest(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers."""
    return _digest(module.state_dict())


def _digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
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
