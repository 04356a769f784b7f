"""Bring a run back to its last whole checkpoint, and say what of it fits the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sr_pipeline.checkpoint import Saved, checkpoints, defaults_of, read
from sr_pipeline.errors import CheckpointError, DamagedCheckpointError

CHANGED = "resume with the graph that the run's folder holds, or go on with what fits: --allow-changed"


@dataclass(frozen=True)
class Fit:
    """What of a saved state fits the objects of a graph, by name."""

    fits: list[str] = field(default_factory=list)
    differs: dict[str, str] = field(default_factory=dict)
    """Names that both have, and why one is not the other."""
    new: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    other_weights: list[str] = field(default_factory=list)
    """Models that no step changes, and that are not those of the run."""

    @property
    def whole(self) -> bool:
        return not (self.differs or self.new or self.left_over or self.other_weights)

    def __str__(self) -> str:
        lists = {
            "fits": self.fits,
            "differs": [f"{name} ({why})" for name, why in self.differs.items()],
            "new": self.new,
            "left over": self.left_over,
            "other weights": self.other_weights,
        }
        return "; ".join(f"{word}: {', '.join(names) or 'nothing'}" for word, names in lists.items() if names)


@dataclass(frozen=True)
class Restored:
    """What was loaded, what of it fitted, and what the user must know of it."""

    saved: Saved
    fit: Fit
    notes: list[str]


def restore(
    folder: Path, state: Mapping[str, Any], unchanged: Mapping[str, str], allow_changed: bool = False
) -> Restored:
    """Load the newest whole checkpoint of a folder into the objects of a graph.

    All fits, or nothing is loaded; with ``allow_changed`` what fits is. A damaged checkpoint is passed over for the one
    before, and then renamed to ``damaged-...``. An optimizer's option that the graph now gives another value has the
    new one.

    Raises:
        CheckpointError: all are damaged, or the newest whole one is of another graph.
    """
    saved, path, damaged = _newest(folder)
    fit = compare(saved, state, unchanged)
    if not fit.whole and not allow_changed:
        raise CheckpointError(str(path), f"it is of another graph: {fit}", CHANGED)
    notes = [f"{bad.name} was passed over: {error.faults[0].what}" for bad, error in damaged.items()]
    notes += [] if fit.whole else [f"the graph was changed: {fit}"]
    for name in fit.fits:
        notes += _load(path, name, state[name], saved)
    for bad in damaged:
        bad.replace(bad.with_name(f"damaged-{bad.name}"))
    return Restored(saved, fit, notes)


def _newest(folder: Path) -> tuple[Saved, Path, dict[Path, DamagedCheckpointError]]:
    damaged: dict[Path, DamagedCheckpointError] = {}
    for path in checkpoints(folder):
        try:
            return read(path), path, damaged
        except DamagedCheckpointError as error:
            damaged[path] = error
    what = "; ".join(f"{path.name}: {error.faults[0].what}" for path, error in damaged.items())
    raise CheckpointError(str(folder), f"no checkpoint is whole: {what or 'there is none'}", "start a new run")


def compare(saved: Saved, state: Mapping[str, Any], unchanged: Mapping[str, str]) -> Fit:
    """Set a saved state beside the objects of a graph. An optimizer fits only with the model that it is for."""
    differs = {n: why for n, value in state.items() if n in saved.objects and (why := _difference(saved, n, value))}
    mine = {name for name in state if name in saved.objects and name not in differs}
    known = {id(p) for name in mine if isinstance(value := state[name], nn.Module) for p in value.parameters()}
    for name in mine:
        groups = value.param_groups if isinstance(value := state[name], Optimizer) else ()
        if not known >= {id(p) for group in groups for p in group["params"]}:
            differs[name] = "its model is another"
    return Fit(
        fits=sorted(mine - differs.keys()),
        differs=dict(sorted(differs.items())),
        new=sorted(state.keys() - saved.objects.keys()),
        left_over=sorted(saved.objects.keys() - state.keys()),
        other_weights=sorted(n for n, found in saved.unchanged.items() if unchanged.get(n, found) != found),
    )


def _difference(saved: Saved, name: str, value: Any) -> str:
    """Why an object cannot take its saved state; empty where it can."""
    state = saved.objects[name]
    if isinstance(value, nn.Module):
        return _shapes(value.state_dict(), state)
    if (kind := type(value).__qualname__) != saved.kinds[name]:
        return f"{saved.kinds[name]} in the file, {kind} in the graph"
    if isinstance(value, Optimizer) and _sizes(value.state_dict()) != _sizes(state):
        return "an optimizer of other parameters"
    return ""


def _shapes(now: Mapping[str, Any], then: Any) -> str:
    then = then if isinstance(then, dict) else {}
    for name in sorted(now.keys() | then.keys()):
        ours, theirs = (getattr(tensors.get(name), "shape", None) for tensors in (now, then))
        if ours != theirs:
            shapes = ["absent" if shape is None else str(list(shape)) for shape in (theirs, ours)]
            return f"{name} is {shapes[0]} in the file, {shapes[1]} in the graph"
    return ""


def _sizes(state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]


def _load(path: Path, name: str, value: Any, saved: Saved) -> list[str]:
    """Load one object's state, and say which options of an optimizer are the graph's new ones."""
    try:
        value.load_state_dict(saved.objects[name])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(str(path), f"{name} does not take its state: {error}", CHANGED) from error
    if not isinstance(value, Optimizer):
        return []
    _lay_out(value)
    then, now = saved.defaults[name], defaults_of(value)
    changed = {option: new for option, new in now.items() if option in then and then[option] != new}
    for group in value.param_groups:
        group.update(changed)
    return [f"{name}: {option} is {new} now, and was {then[option]}" for option, new in changed.items()]


def _lay_out(optimizer: Optimizer) -> None:
    """Give what an optimizer keeps of a parameter the parameter's order in memory, in which it was made."""
    for parameter, kept in optimizer.state.items():
        for key, tensor in kept.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape and tensor.stride() != parameter.stride():
                kept[key] = torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
