"""Which nodes run once before the steps, once a step, and once after; and which must run at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum

from sr_pipeline.check import Value, Wiring
from sr_pipeline.errors import Fault, GraphError, UsageError, nearest


class Phase(StrEnum):
    SETUP = "setup"
    STEP = "step"
    FINISH = "finish"


def stream_of(wiring: Wiring) -> str | None:
    return next((id_ for id_, made in wiring.types.items() if made.kind == "stream"), None)


def phases(wiring: Wiring) -> dict[str, Phase]:
    """The phase of each node, in a topological order.

    Without a stream every node is setup: each runs once.

    Raises:
        GraphError: a node needs both a value of each step and one that exists only after the last.
    """
    if stream_of(wiring) is None:
        return dict.fromkeys(wiring.types, Phase.SETUP)
    found: dict[str, Phase] = {}
    faults: dict[str, Fault] = {}
    for id_ in wiring.order:
        made = wiring.types[id_]
        sources = {name: _phase_of_value(wiring, value, found) for name, value in wiring.links[id_].items()}
        if Phase.FINISH in sources.values():
            found[id_] = Phase.FINISH
            late = [name for name, phase in sources.items() if phase == Phase.STEP]
            if late or made.kind == "reducer":
                each = ", ".join(late) or "it is a reducer"
                what = f"needs a value of each step ({each}) and one that a reducer gives after the last"
                faults[id_] = Fault(wiring.where(id_), what, "put a reducer between")
        elif made.kind != "function" or Phase.STEP in sources.values() or "step" in made.injected.values():
            found[id_] = Phase.STEP
        else:
            found[id_] = Phase.SETUP
    if faults:
        raise GraphError(faults[id_] for id_ in wiring.types if id_ in faults)
    return found


def _phase_of_value(wiring: Wiring, value: Value, found: dict[str, Phase]) -> Phase:
    return Phase.FINISH if wiring.types[value.node].kind == "reducer" else found[value.node]


def file_order(wiring: Wiring) -> dict[str, int]:
    return {id_: n for n, id_ in enumerate(wiring.graph.nodes)}


def roots(wiring: Wiring) -> dict[Value, Value]:
    """Each value that is a changed one, to the value that it was when its object was made; others to themselves."""
    found: dict[Value, Value] = {}
    for id_ in wiring.order:
        made = wiring.types[id_]
        for n in range(len(made.outputs)):
            value = Value(id_, n)
            found[value] = value
        for name, output in made.mutations.items():
            if name in wiring.links[id_]:
                found[Value(id_, output)] = found[wiring.links[id_][name]]
    return found


def needed_nodes(
    wiring: Wiring, phase: dict[str, Phase], root: dict[Value, Value], only: Collection[str]
) -> tuple[set[str], set[str]]:
    """The targets (``only``, or else the output nodes) and all that must run for them.

    A mutator of the step is needed as soon as a needed step node reads what it changes: the next step sees the change.
    A node of the step needs the stream, whether it reads it or not.

    Raises:
        GraphError: the graph has no output node.
        UsageError: one of ``only`` is no node of it.
    """
    for id_ in only:
        if id_ not in wiring.types:
            raise UsageError(f"--only {id_}", "there is no such node", nearest(id_, wiring.types))
    targets = set(only) or {id_ for id_, made in wiring.types.items() if made.is_output}
    if not targets:
        fix = "add one (a node that writes or reports), or run one node with --only"
        raise GraphError([Fault(wiring.graph.source, "nothing to do: no node of the graph is an output", fix)])
    mutators: dict[Value, list[str]] = {}
    for id_, made in wiring.types.items():
        for name in made.mutations:
            if phase[id_] == Phase.STEP and name in wiring.links[id_]:
                mutators.setdefault(root[wiring.links[id_][name]], []).append(id_)
    stream = [id_ for id_, made in wiring.types.items() if made.kind == "stream"]
    needed: set[str] = set()
    waiting = list(targets)
    while waiting:
        id_ = waiting.pop()
        if id_ in needed:
            continue
        needed.add(id_)
        waiting += wiring.predecessors[id_]
        if phase[id_] == Phase.STEP:
            waiting += [*stream, *_mutators_read(id_, wiring, root, mutators)]
    return targets, needed


def _mutators_read(
    id_: str, wiring: Wiring, root: dict[Value, Value], mutators: dict[Value, list[str]]
) -> Iterable[str]:
    """The mutators of what a node reads; taken out of ``mutators``, because once is enough."""
    return [m for value in wiring.links[id_].values() for m in mutators.pop(root[value], ())]
