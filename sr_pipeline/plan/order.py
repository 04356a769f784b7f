"""The order of a phase: data, then what changes in place, as a borrow checker would have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError
from itertools import pairwise
from typing import Any

from torch import nn

from sr_pipeline.check import Value, Wiring
from sr_pipeline.digraph import sorted_by_rank
from sr_pipeline.errors import Fault
from sr_pipeline.plan.gradients import Gradients
from sr_pipeline.plan.phases import Phase, file_order

_AFTER = {Phase.SETUP: 0, Phase.STEP: 1, Phase.FINISH: 2}


def mutators(wiring: Wiring, nodes: set[str]) -> dict[Value, list[str]]:
    """Each value that is changed in place, and the nodes among ``nodes`` that change it."""
    found: dict[Value, list[str]] = {}
    for id_ in wiring.types:
        for name in wiring.types[id_].mutations:
            if id_ in nodes and name in wiring.links[id_]:
                found.setdefault(wiring.links[id_][name], []).append(id_)
    return found


def readers(wiring: Wiring, nodes: set[str]) -> dict[Value, list[str]]:
    """Each value, and the nodes among ``nodes`` that a link brings it to, in the order of the file."""
    found: dict[Value, list[str]] = {}
    for id_ in wiring.types:
        if id_ in nodes:
            for value in dict.fromkeys(wiring.links[id_].values()):
                found.setdefault(value, []).append(id_)
    return found


def mutation_faults(wiring: Wiring, phase: Mapping[str, Phase], nodes: set[str]) -> list[Fault]:
    """Values changed by two nodes, or read in a later phase than the one that changed them."""
    faults = []
    changes = mutators(wiring, nodes)
    read_by = readers(wiring, nodes) if changes else {}
    for value, changed_by in changes.items():
        first, *others = changed_by
        for other in others:
            name = _mutated(wiring, other, value)
            what = f"{_label(wiring, value)} is changed twice: by {first!r} and by {other!r}"
            faults.append(Fault(wiring.where(other, name), what, f"chain them: {_changed(wiring, first, value)}"))
        for reader in read_by[value]:
            if _AFTER[phase[reader]] > _AFTER[phase[first]] and reader not in changed_by:
                runs = f"{phase[first]} runs before {phase[reader]}"
                what = f"reads {_label(wiring, value)} after {first!r} changed it ({runs})"
                fix = f"read the changed value: {_changed(wiring, first, value)}"
                faults.append(Fault(wiring.where(reader, _input(wiring, reader, value)), what, fix))
    return faults


def phase_order(
    wiring: Wiring, phase: Mapping[str, Phase], nodes: set[str], which: Phase, found: Gradients
) -> tuple[list[str], list[Fault]]:
    """The order in which the nodes of one phase run, or why there is none.

    Among orders that the edges allow it is the one nearest to the file's.
    """
    mine = {n for n in nodes if phase[n] == which}
    edges = _Edges({n: [p for p in before if p in mine] for n, before in wiring.predecessors.items() if n in mine})
    _add_mutations(edges, wiring, mine, found)
    rank = file_order(wiring)
    try:
        order = sorted_by_rank(edges.predecessors, rank)
        if _add_buffers(edges, wiring, mine, found, order):
            order = sorted_by_rank(edges.predecessors, rank)
    except CycleError as error:
        return [], [_refusal(edges, wiring, error.args[1])]
    return order, []


@dataclass(frozen=True)
class _Edges:
    """What comes before what, and for edges that are not of data alone, why."""

    predecessors: dict[str, list[str]]
    why: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, before: str, after: str, **why: Any) -> None:
        self.predecessors[after].append(before)
        self.why.setdefault((before, after), {}).update(why)


def _add_mutations(edges: _Edges, wiring: Wiring, mine: set[str], found: Gradients) -> None:
    """For a value v changed by m, and another reader r of v: r before m; and where r lies on the way from the
    parameters of another backward step to its loss, that step before m too, because its backward pass reads v."""
    changes = mutators(wiring, mine)
    read_by = readers(wiring, mine) if changes else {}
    for value, changed_by in changes.items():
        m = changed_by[0]
        for r in read_by[value]:
            if r == m:
                continue
            edges.add(r, m, reader=r, value=value, mutator=m)
            for step in found.through.get(r, ()):
                if step.node != m and step.node in mine:
                    edges.add(step.node, m, reader=r, value=value, mutator=m, backward=step.node)


def _add_buffers(edges: _Edges, wiring: Wiring, mine: set[str], found: Gradients, order: list[str]) -> bool:
    """Training passes over one model change its buffers: one after another in the file's order, then the others.

    False where there are none.
    """
    train = {n for n in mine if is_training(wiring, n, found)}
    if not train:
        return False
    position = {n: i for i, n in enumerate(order)}
    for value, nodes in readers(wiring, mine).items():
        if not wiring.value_types[value].is_a(nn.Module):
            continue
        training = sorted(train.intersection(nodes), key=position.__getitem__)
        if not training:
            continue
        others = [(training[-1], n) for n in nodes if n not in training and not _changes(wiring, n, value)]
        for before, after in (*pairwise(training), *others):
            edges.add(before, after, value=value, buffers=True)
    return True


def is_training(wiring: Wiring, id_: str, found: Gradients) -> bool:
    """Whether the node runs its modules in training mode: it asks for it, and its result leads to a loss."""
    return "training" in wiring.types[id_].injected.values() and id_ in found.leads_to_loss


def _changes(wiring: Wiring, id_: str, value: Value) -> bool:
    return bool(_mutated(wiring, id_, value))


def _refusal(edges: _Edges, wiring: Wiring, cycle: list[str]) -> Fault:
    steps = [(after, edges.why.get((before, after), {})) for before, after in pairwise(cycle)]
    for kind in ("backward", "mutator", "buffers"):
        for after, why in steps:
            if kind in why:
                return _explain(wiring, kind, after, why)
    raise AssertionError("a cycle of data alone was checked before")


def _explain(wiring: Wiring, kind: str, later: str, why: Mapping[str, Any]) -> Fault:
    value = why["value"]
    assert isinstance(value, Value)
    if kind == "buffers":
        what = f"reads {_label(wiring, value)} without training before a training pass over it that depends on it"
        return Fault(wiring.where(later), what, "read the value that the optimizer step returns")
    reader, mutator = str(why["reader"]), str(why["mutator"])
    name = _input(wiring, reader, value)
    fix = f"wire {reader}.{name} to the changed value, {_changed(wiring, mutator, value)}"
    if kind == "backward":
        what = (
            f"the backward pass of {why['backward']!r} would run after {mutator!r} changed {_label(wiring, value)}, "
            f"which it reads through {reader!r}"
        )
        return Fault(wiring.where(str(why["backward"])), what, f"{fix}, or let one step take the sum of the losses")
    what = f"reads {_label(wiring, value)}, which {mutator!r} changes, but also depends on the change"
    return Fault(wiring.where(reader, name), what, fix)


def _label(wiring: Wiring, value: Value) -> str:
    return f"{value.node}.{wiring.types[value.node].outputs[value.output].name}"


def _input(wiring: Wiring, id_: str, value: Value) -> str:
    return next((name for name in wiring.types[id_].inputs if wiring.links[id_].get(name) == value), "")


def _mutated(wiring: Wiring, id_: str, value: Value) -> str:
    return next((name for name in wiring.types[id_].mutations if wiring.links[id_].get(name) == value), "")


def _changed(wiring: Wiring, mutator: str, value: Value) -> str:
    return f'["{mutator}", {wiring.types[mutator].mutations[_mutated(wiring, mutator, value)]}]'
