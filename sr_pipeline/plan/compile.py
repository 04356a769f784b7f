"""Compile a graph to a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sr_pipeline.check import Value, Wiring, check
from sr_pipeline.errors import Fault, GraphError
from sr_pipeline.graph import Graph
from sr_pipeline.node import NodeType
from sr_pipeline.plan.cadence import ALWAYS, Demand, demands
from sr_pipeline.plan.gradients import Gradients, gradient_faults, gradients
from sr_pipeline.plan.order import is_training, mutation_faults, mutators, phase_order
from sr_pipeline.plan.phases import Phase, needed_nodes, phases, roots, stream_of
from sr_pipeline.registry import Registry


@dataclass(frozen=True, slots=True)
class Op:
    """One node as the run executes it. Values live in numbered slots."""

    node: str
    type: NodeType
    literals: dict[str, Any]
    links: tuple[tuple[str, int], ...]
    outputs: tuple[int, ...]
    drop: tuple[int, ...]
    """Slots that nobody reads after it."""
    demand: Demand = ALWAYS
    grad: bool = False
    training: bool = False
    retain_graph: bool = False
    frozen: tuple[str, ...] = ()
    """Model inputs that a backward pass only crosses: called without gradients for their parameters."""
    detached: tuple[str, ...] = ()
    """Tensor inputs that no backward pass goes on to: called without their autograd graph."""


@dataclass(frozen=True)
class Plan:
    """What a graph compiles to."""

    wiring: Wiring
    setup: tuple[Op, ...]
    steps: tuple[Op, ...]
    finish: tuple[Op, ...]
    slots: dict[Value, int]
    stream: str | None
    targets: frozenset[str]
    state: dict[str, int]
    """What the steps change, by the name of what made it: the slot of the object."""
    reducers: tuple[str, ...]
    unchanged: dict[str, int]
    """Models that the steps read and no step changes."""
    untrained: tuple[str, ...]
    """Of state and unchanged: the models that no backward step is for, so that they want no gradients."""
    warnings: tuple[Fault, ...]

    @property
    def ops(self) -> tuple[Op, ...]:
        return self.setup + self.steps + self.finish

    @property
    def trains(self) -> bool:
        """Whether a step runs a backward pass."""
        return any(op.type.backward is not None for op in self.steps)


def compile_plan(graph: Graph, registry: Registry, only: str | Collection[str] | None = None) -> Plan:
    """Check a graph and plan its run: all of it, or up to a node or nodes ``only``.

    Raises:
        GraphError: with every fault found.
        UsageError: one of ``only`` is no node of the graph.
    """
    return _Compiler(check(graph, registry), [only] if isinstance(only, str) else only or ()).compile()


class _Compiler:
    def __init__(self, wiring: Wiring, only: Collection[str]) -> None:
        self.wiring = wiring
        self.phase = phases(wiring)
        self.root = roots(wiring)
        self.gradients, self.order = self._sound(set(wiring.types))
        self.targets, self.needed = needed_nodes(wiring, self.phase, self.root, only)
        if self.needed != set(wiring.types):
            self.gradients = gradients(wiring, self.needed, self.root)
            self.order = self._order(self.needed, self.gradients)
        self.slots = {v: n for n, v in enumerate(v for v in self.root if v.node in self.needed)}
        self.state, self.unchanged = self._state()
        self.dropped = self._dropped()

    def _sound(self, nodes: set[str]) -> tuple[Gradients, dict[Phase, list[str]]]:
        """The gradients and orders of the whole graph, which must be sound, whatever part of it is needed."""
        found = gradients(self.wiring, nodes, self.root)
        faults = self._cadence_faults() + mutation_faults(self.wiring, self.phase, nodes)
        faults += gradient_faults(self.wiring, found, self.root)
        if faults:
            raise GraphError(faults)
        return found, self._order(nodes, found)

    def _cadence_faults(self) -> list[Fault]:
        return [
            Fault(self.wiring.where(id_, made.cadence.name), "a cadence cannot be a link", "give the number of steps")
            for id_, made in self.wiring.types.items()
            if made.cadence and made.cadence.name in self.wiring.links[id_]
        ]

    def _order(self, nodes: set[str], found: Gradients) -> dict[Phase, list[str]]:
        orders = {which: phase_order(self.wiring, self.phase, nodes, which, found) for which in Phase}
        if faults := [fault for _, refused in orders.values() for fault in refused]:
            raise GraphError(faults)
        return {which: order for which, (order, _) in orders.items()}

    def compile(self) -> Plan:
        stepped = {step.model for step in self.gradients.steps.values()}
        trained = {self.slots[model] for model in stepped if model in self.slots}
        models = {
            self.state_name(v): self.slots[v]
            for v in (*self.state, *self.unchanged)
            if self.wiring.value_types[v].is_a(nn.Module)
        }
        return Plan(
            wiring=self.wiring,
            setup=self._ops(Phase.SETUP),
            steps=self._ops(Phase.STEP),
            finish=self._ops(Phase.FINISH),
            slots=self.slots,
            stream=stream_of(self.wiring) if stream_of(self.wiring) in self.needed else None,
            targets=frozenset(self.targets),
            state={self.state_name(v): self.slots[v] for v in self.state},
            reducers=tuple(n for n in self.order[Phase.STEP] if self.wiring.types[n].kind == "reducer"),
            unchanged={self.state_name(v): self.slots[v] for v in self.unchanged},
            untrained=tuple(name for name, slot in models.items() if slot not in trained),
            warnings=tuple(self._warnings(set(self.state))),
        )

    def _state(self) -> tuple[list[Value], list[Value]]:
        """The objects that steps change (by Mutates or by buffers), and the models that they only read."""
        changed = {
            self.root[v]
            for v, nodes in mutators(self.wiring, self.needed).items()
            if any(self.phase[n] == Phase.STEP for n in nodes)
        }
        read = set()
        for id_ in self.order[Phase.STEP]:
            for value in self.wiring.links[id_].values():
                if self.wiring.value_types[value].is_a(nn.Module):
                    read.add(self.root[value])
                    if is_training(self.wiring, id_, self.gradients):
                        changed.add(self.root[value])
        in_setup = [v for v in self.slots if self.phase[v.node] == Phase.SETUP]
        return [v for v in in_setup if v in changed], [v for v in in_setup if v in read - changed]

    def state_name(self, value: Value) -> str:
        made = self.wiring.types[value.node]
        return value.node if len(made.outputs) == 1 else f"{value.node}.{made.outputs[value.output].name}"

    def _ops(self, which: Phase) -> tuple[Op, ...]:
        order = self.order[which]
        demand = demands(self.wiring, self.phase, order, self.targets)
        retained = self.gradients.retained(order)
        return tuple(
            Op(
                node=n,
                type=self.wiring.types[n],
                literals=self.wiring.literals[n],
                links=tuple((name, self.slots[v]) for name, v in self.wiring.links[n].items()),
                outputs=tuple(self.slots[Value(n, i)] for i in range(len(self.wiring.types[n].outputs))),
                drop=self.dropped[which].get(n, ()),
                demand=demand.get(n, ALWAYS),
                grad=n in self.gradients.through,
                training=is_training(self.wiring, n, self.gradients),
                retain_graph=n in retained,
                frozen=self.gradients.crossed_only(n, self.wiring, self.root),
                detached=self.gradients.detached(n, self.wiring),
            )
            for n in order
        )

    def _dropped(self) -> dict[Phase, dict[str, tuple[int, ...]]]:
        """Each node of each phase, and the slots that die with it: a value dies in the last phase that reads it."""
        order = {id_: (number, at) for number, p in enumerate(Phase) for at, id_ in enumerate(self.order[p])}
        last = {v: (order[v.node], v.node) for v in self.slots}
        for id_ in order:
            for v in self.wiring.links[id_].values():
                last[v] = max(last[v], (order[id_], id_))
        found: dict[Phase, dict[str, tuple[int, ...]]] = {which: {} for which in Phase}
        kept = {*self.state, *self.unchanged}
        for v, (_, id_) in last.items():
            which = self.phase[id_]
            lives_on = which == Phase.STEP and self.phase[v.node] != which
            if not lives_on and v not in kept and v.node not in self.targets:
                found[which][id_] = (*found[which].get(id_, ()), self.slots[v])
        return found

    def _warnings(self, state: set[Value]) -> Iterable[Fault]:
        for id_ in self.order[Phase.SETUP]:
            for name, value in self.wiring.links[id_].items():
                if self.wiring.types[id_].is_output and self.root[value] in state:
                    what = f"reads {value.node!r} before the first step, though the steps change it"
                    yield Fault(self.wiring.where(id_, name), what, "wire it to the changed value, if that is meant")
        writers: dict[str, str] = {}
        for id_ in (n for order in self.order.values() for n in order):
            for input_ in self.wiring.types[id_].inputs.values():
                name = self.wiring.setting(id_, input_)
                if input_.type.path == "name" and isinstance(name, str) and writers.setdefault(name, id_) != id_:
                    what = f"{writers[name]!r} writes {name!r} too, so that one replaces what the other wrote"
                    yield Fault(self.wiring.where(id_, input_.name), what, "give each a name of its own")
