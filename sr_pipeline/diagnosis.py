"""In which node it began: one step with a check on each value that crosses a wire, and on each gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from sr_pipeline.errors import NotFiniteError
from sr_pipeline.execute import brief
from sr_pipeline.plan import Op, Plan
from sr_pipeline.plan.gradients import gradients
from sr_pipeline.plan.phases import roots

FORWARD = "lower the learning rate, clip gradients, or compute in a higher precision"
BACKWARD = "keep roots and quotients away from 0, lower the learning rate, or compute in a higher precision"
SOURCE = "look at what it reads, or leave such steps out with --on-nan skip"


def parts(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The numbers that a value holds and that should be finite, by name; those of models and optimizers too.

    A buffer may hold an infinity that is meant, in a mask for one: in its place is a 0.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value.detach()
    elif isinstance(value, float):
        yield name, torch.tensor(value)
    elif isinstance(value, nn.Module):
        weights = {n for n, _ in value.named_parameters()}
        for n, tensor in parts(name, value.state_dict()):
            masked = n.removeprefix(f"{name}.") not in weights
            yield n, tensor.nan_to_num(nan=math.nan, posinf=0, neginf=0) if masked else tensor
    elif isinstance(value, Optimizer):
        yield from parts(name, value.state_dict())
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from parts(f"{name}.{key}", entry)
    elif isinstance(value, (list, tuple)):
        fields = getattr(value, "_fields", None) or map(str, range(len(value)))
        for field, entry in zip(fields, value, strict=True):
            yield from parts(f"{name}.{field}", entry)


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no number in any of them is NaN or infinite. Waits once for each device."""
    devices = {t.device for t in tensors}
    norms = [get_total_norm([t for t in tensors if t.device == device]) for device in devices]
    if all(math.isfinite(norm.item()) for norm in norms):  # faster than isfinite of each, and one number a device
        return True
    return all(bool(t.isfinite().all()) for t in tensors)  # the square of a finite number may be infinite


def unsound(name: str, value: Any) -> str:
    """Of the first part that is not finite: how many numbers of how many; empty where there is none."""
    named = list(parts(name, value))
    if all_finite([tensor for _, tensor in named]):
        return ""
    part, tensor = next((n, t) for n, t in named if not t.isfinite().all())
    found = {"NaN": int(tensor.isnan().sum()), "Inf": int(tensor.isinf().sum())}
    counts = " and ".join(f"{number} {what}" for what, number in found.items() if number)
    return f"{counts} of {tensor.numel()} value{'s' * (tensor.numel() > 1)} of {part} {brief(tensor)}"


@dataclass(frozen=True)
class Call:
    """A call that gradients flow back through, with tensors of its own for what it was given."""

    op: Op
    arguments: dict[str, Any]
    inputs: list[tuple[str, Tensor]]
    results: list[Tensor]


class Diagnosis:
    """Stands around each node of one step, and raises the error that names the first one at fault."""

    def __init__(self, plan: Plan, step: int) -> None:
        self.wiring, self.stream, self.step = plan.wiring, plan.stream, step
        steps = gradients(plan.wiring, {op.node for op in plan.ops}, roots(plan.wiring)).steps
        self.paths = {node: step.path for node, step in steps.items()}
        self.calls: list[Call] = []

    def check_item(self, item: Any) -> None:
        """Of the stream."""
        assert self.stream is not None
        if found := unsound(self.wiring.types[self.stream].outputs[0].name, item):
            raise self.error(self.stream, f"gave {found}", SOURCE)

    def __call__(self, op: Op, arguments: dict[str, Any], call: Callable[[dict[str, Any]], Any]) -> Any:
        wires = self.wiring.links[op.node]
        for name, value in wires.items():
            if found := unsound(name, arguments[name]):  # every step node's result was checked: this is setup's
                raise self.error(value.node, f"gave {found}", SOURCE)
        if op.type.backward:
            self._check_gradients(op, arguments)
        given = dict(arguments)
        if op.grad:
            given |= {name: tree_map(_own, arguments[name]) for name in wires}
        result = call(given)
        changed = {name: arguments[name] for name in wires if isinstance(arguments[name], nn.Module)}
        if found := unsound(op.type.outputs[0].name, result) or unsound(op.node, changed):
            raise self.error(op.node, f"made {found}", FORWARD, arguments)
        if op.grad:
            path = [(n, t) for n in wires for t in _differentiable(given[n])]
            self.calls.append(Call(op, arguments, path, _differentiable(result)))
        return result

    def error(self, node: str, what: str, mend: str, arguments: Mapping[str, Any] | None = None) -> NotFiniteError:
        wires = self.wiring.links[node] if arguments else {}
        shown = ", ".join(f"{name}={_told((arguments or {})[name])}" for name in wires)
        text = f"{self.wiring.types[node].name} {what}, at step {self.step + 1}"
        return NotFiniteError(self.wiring.where(node), text, f"its inputs: {shown}; {mend}" if shown else mend)

    def _check_gradients(self, op: Op, arguments: Mapping[str, Any]) -> None:
        """The node to whose results finite gradients came, and that passes on others, to its inputs or its weights."""
        loss = arguments[op.type.backward.name if op.type.backward else ""]
        models = {name: arguments[name] for name in op.type.mutations if isinstance(arguments[name], nn.Module)}
        weights = {f"{n}.{k}": p for n, m in models.items() for k, p in m.named_parameters() if p.requires_grad}
        if not loss.requires_grad or not _first_unsound(_gradients([loss], weights.values()), weights):
            return
        path = self.paths[op.node]
        calls = [call for call in self.calls if call.op.node in path]
        ends = [t for call in calls for t in (*call.results, *(t for _, t in call.inputs))]
        came = dict(zip(map(id, ends), _gradients([loss], ends), strict=True))
        sound = [call for call in calls if all_finite([g for t in call.results if (g := came[id(t)]) is not None])]
        for call in reversed(sound):
            wired = [(n, t) for n, t in call.inputs if self.wiring.links[call.op.node][n].node in path]
            self._blame(call, _first_unsound((came[id(t)] for _, t in wired), (n for n, _ in wired)))
        for call in sound:  # in this order: what a later call counts with its own, an earlier one's, is sound then
            if any(value is model for value in call.arguments.values() for model in models.values()):
                reached = [t for t in call.results if came[id(t)] is not None]
                own = _gradients(reached, weights.values(), [came[id(t)] for t in reached])
                self._blame(call, _first_unsound(own, weights))
        raise self.error(op.node, "got gradients whose sum is not finite", BACKWARD, arguments)

    def _blame(self, call: Call, found: str) -> None:
        if found:
            raise self.error(call.op.node, f"has a gradient of {found}", BACKWARD, call.arguments)


Gradient = Tensor | None
"""None where nothing came back."""


def _gradients(
    results: Sequence[Tensor], of: Iterable[Tensor], came: Sequence[Gradient] | None = None
) -> list[Gradient]:
    tensors = list(of)
    if not results or not tensors:
        return [None] * len(tensors)
    return list(torch.autograd.grad(results, tensors, came, retain_graph=True, allow_unused=True))


def _first_unsound(gradients: Iterable[Gradient], names: Iterable[str]) -> str:
    return next((found for g, name in zip(gradients, names, strict=True) if (found := unsound(name, g))), "")


def _own(value: Any) -> Any:
    """The same tensor by a name of its own, so that what one reader adds to its gradient can be told."""
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value


def _differentiable(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.requires_grad]


def _told(value: Any) -> str:
    """A value in brief, with the range of its numbers."""
    numbers = [t for _, t in parts("", value) if not isinstance(value, (float, Optimizer))]
    if not numbers:
        return brief(value)
    low, high = min(t.min().item() for t in numbers), max(t.max().item() for t in numbers)
    return f"{brief(value)} in [{low:.4g}, {high:.4g}]"
