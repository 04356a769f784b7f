"""Where gradients flow: from the parameters of each backward step to its loss, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.optim import Optimizer

from sr_pipeline.check import Value, Wiring
from sr_pipeline.digraph import reached, turned
from sr_pipeline.errors import Fault


@dataclass(frozen=True)
class BackwardStep:
    """A node that runs a backward pass: its model's object, and the nodes between the parameters and the loss."""

    node: str
    model: Value
    path: frozenset[str]


@dataclass(frozen=True)
class Gradients:
    """The backward steps among some nodes, and what leads to a loss."""

    steps: dict[str, BackwardStep]
    leads_to_loss: frozenset[str]

    @cached_property
    def through(self) -> dict[str, list[BackwardStep]]:
        """The nodes that must build an autograd graph, each with the backward steps that pass it."""
        found: dict[str, list[BackwardStep]] = {}
        for step in self.steps.values():
            for id_ in step.path:
                found.setdefault(id_, []).append(step)
        return found

    @cached_property
    def changed(self) -> set[Value]:
        """The models that a backward step is for."""
        return {step.model for step in self.steps.values()}

    def crossed_only(self, id_: str, wiring: Wiring, root: dict[Value, Value]) -> tuple[str, ...]:
        """The model inputs of a node whose parameters no backward pass through it wants."""
        if id_ not in self.through:
            return ()
        wanted = {step.model for step in self.through[id_]}
        return tuple(
            name
            for name, value in wiring.links[id_].items()
            if root[value] in self.changed and root[value] not in wanted and wiring.value_types[value].is_a(nn.Module)
        )

    def detached(self, id_: str, wiring: Wiring) -> tuple[str, ...]:
        """The inputs of a node that carry an autograd graph into which no backward pass through the node goes on."""
        if id_ not in self.through:
            return ()
        onward = frozenset[str]().union(*(step.path for step in self.through[id_]))
        return tuple(n for n, v in wiring.links[id_].items() if v.node in self.through and v.node not in onward)

    def retained(self, order: Iterable[str]) -> set[str]:
        """The backward steps that another one, later in ``order``, follows over a node of the same forward pass."""
        later: set[str] = set()
        kept = set()
        for id_ in reversed([n for n in order if n in self.steps]):
            if later & self.steps[id_].path:
                kept.add(id_)
            later |= self.steps[id_].path
        return kept


def gradients(wiring: Wiring, nodes: set[str], root: dict[Value, Value]) -> Gradients:
    """Find the backward steps among ``nodes`` and their paths."""
    flow = _flow(wiring, nodes)
    onward = turned(flow)
    steps, leading = {}, set()
    for id_ in (n for n, made in wiring.types.items() if n in nodes and made.backward):
        links = wiring.links[id_]
        loss, model = links.get(_name(wiring, id_)), links.get(model_input(wiring, id_) or "")
        if loss is None or model is None:
            continue
        before_loss = reached(flow, [loss.node]) if loss.node in flow else set()
        leading |= before_loss
        sources = {n for n in before_loss if any(root[v] == root[model] for v in wiring.links[n].values())}
        steps[id_] = BackwardStep(id_, root[model], frozenset(reached(onward, sources) & before_loss))
    return Gradients(steps, frozenset(leading))


def _flow(wiring: Wiring, nodes: set[str]) -> dict[str, set[str]]:
    """The nodes among ``nodes`` that a gradient can pass, and those that it goes on to from each."""
    able = {n for n in nodes if wiring.types[n].options.differentiable}
    return {
        n: {v.node for v in wiring.links[n].values() if v.node in able and wiring.value_types[v].differentiable}
        for n in able
    }


def _name(wiring: Wiring, id_: str) -> str:
    backward = wiring.types[id_].backward
    return backward.name if backward else ""


def model_input(wiring: Wiring, id_: str) -> str | None:
    return _mutated(wiring, id_, nn.Module)


def _mutated(wiring: Wiring, id_: str, python: type) -> str | None:
    inputs = wiring.types[id_].inputs.values()
    return next((i.name for i in inputs if i.mutates and i.type.is_a(python)), None)


def gradient_faults(wiring: Wiring, found: Gradients, root: dict[Value, Value]) -> list[Fault]:
    """Losses that no parameter reaches, and optimizers that were made for another model."""
    faults = []
    for step in found.steps.values():
        if not step.path:
            what = f"the loss has no differentiable way from the parameters of {step.model.node!r}"
            fix = f"compute it from what {step.model.node!r} makes, or step the model that it depends on"
            faults.append(Fault(wiring.where(step.node, _name(wiring, step.node)), what, fix))
        name = _mutated(wiring, step.node, Optimizer)
        value = wiring.links[step.node].get(name or "")
        if name is None or value is None:
            continue
        maker = root[value].node
        made_for = [root[v] for v in wiring.links[maker].values() if wiring.value_types[v].is_a(nn.Module)]
        if made_for and step.model not in made_for:
            what = f"{maker!r} was made from {made_for[0].node!r}, but the step changes {step.model.node!r}"
            fix = f"wire an optimizer made from {step.model.node!r}"
            faults.append(Fault(wiring.where(step.node, name), what, fix))
    return faults
