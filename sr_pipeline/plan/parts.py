"""A step's nodes in three parts, the middle one of which can be recorded and replayed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sr_pipeline.digraph import reached, turned
from sr_pipeline.errors import CaptureError
from sr_pipeline.plan.cadence import ALWAYS
from sr_pipeline.plan.compile import Op, Plan

EAGER = "its nodes run one by one"
HOST = {"step", "rng", "run_dir", "report"}
"""Who takes one of these does something on the host at each call."""


@dataclass(frozen=True)
class Parts:
    """The nodes of a step in the order in which they run, and the slots that cross from part to part."""

    before: tuple[Op, ...]
    recorded: tuple[Op, ...]
    after: tuple[Op, ...]
    fed: tuple[int, ...]
    """What the recorded part reads of the stream and of the part before."""
    kept: tuple[int, ...]
    """What it makes that is read later: by the part after, by the watch on losses, by whoever gets the outputs."""
    losses: tuple[int, ...]
    """What its backward passes begin with."""
    spent: tuple[int, ...]
    """What nobody reads once the recorded part is over."""


def parts(plan: Plan) -> Parts:
    """Divide a step's nodes.

    Raises:
        CaptureError: nothing in the step trains, or a node stands in the way.
    """
    ops = {op.node: op for op in plan.steps if op.type.kind != "stream"}
    if not plan.trains:
        raise CaptureError("--capture", "no node of a step trains anything", EAGER)
    predecessors = {n: [p for p in plan.wiring.predecessors[n] if p in ops] for n in ops}
    successors = turned(predecessors)
    trains = [n for n, op in ops.items() if op.grad or op.training or op.type.mutations]
    host = {n: why for n, op in ops.items() if (why := _on_the_host(op))}
    before = reached(predecessors, host.keys() & reached(predecessors, trains))
    after = reached(successors, host.keys() - before)
    for node in trains:
        if node in host or node in before:
            onward = reached(successors, [node])
            at = node if node in host else next(n for n in host if n in before & onward)
            raise CaptureError(plan.wiring.where(at), f"it {host[at]}, amid what trains", EAGER)
    found = _in_order(plan, before, [n for n in ops if n not in before | after], after)
    _check_state(plan, found)
    return found


def _on_the_host(op: Op) -> str:
    """Why a node cannot be recorded; empty where it can."""
    taken = sorted(HOST.intersection(op.type.injected.values()))
    if op.demand != ALWAYS:
        return "does not run at each step"
    if op.type.kind == "reducer" or op.type.is_output:
        return "is for what it does on the host"
    if op.type.options.recordable is False:
        return "is declared as not recordable"
    return f"takes {', '.join(taken)}" if taken and not op.type.options.recordable else ""


def _in_order(plan: Plan, before: Iterable[str], recorded: Iterable[str], after: Iterable[str]) -> Parts:
    """The parts, with each value dropped after its last reader in this order."""
    where = dict.fromkeys(before, 0) | dict.fromkeys(recorded, 1) | dict.fromkeys(after, 2)
    ops: tuple[list[Op], list[Op], list[Op]] = ([], [], [])
    for op in plan.steps:
        if op.type.kind != "stream":
            ops[where[op.node]].append(op)
    given = outputs(ops[0]) | outputs(op for op in plan.steps if op.type.kind == "stream")
    made, later = outputs(ops[1]), read(ops[2])
    losses = {slot for op in ops[1] for name, slot in op.links if op.type.backward and op.type.backward.name == name}
    fed, targets = given & read(ops[1]), outputs(op for op in plan.steps if op.node in plan.targets)
    spent = (fed | losses) - later - targets
    last: dict[int, str] = {}
    for op in (*ops[0], *ops[1], *ops[2]):
        last |= dict.fromkeys((*read([op]), *op.outputs), op.node)
    drops: dict[str, list[int]] = {}
    for slot in {slot for op in plan.steps for slot in op.drop} & last.keys() - spent:
        drops.setdefault(last[slot], []).append(slot)
    three = [tuple(replace(op, drop=tuple(drops.get(op.node, ()))) for op in part) for part in ops]
    kept = made & (later | losses | targets)
    numbers = [tuple(sorted(slots)) for slots in (fed, kept, losses, spent)]
    return Parts(three[0], three[1], three[2], *numbers)


def outputs(ops: Iterable[Op]) -> set[int]:
    """The slots that nodes fill."""
    return {slot for op in ops for slot in op.outputs}


def read(ops: Iterable[Op]) -> set[int]:
    """The slots that nodes read."""
    return {slot for op in ops for _, slot in op.links}


def _check_state(plan: Plan, found: Parts) -> None:
    """That no node which moved to the front or to the end meets another state there."""
    changed = {slot: op.node for op in found.recorded for name, slot in op.links if name in op.type.mutations}
    results = {op.outputs[n] for op in found.recorded for n in op.type.mutations.values()}
    state = {*plan.state.values(), *changed, *results}
    moved = [(op, state) for op in found.before] + [(op, set(changed)) for op in found.after]
    for op, slots in moved:
        for name, slot in op.links:
            if slot in slots:
                what = f"it reads what {changed.get(slot, 'a step')!r} changes, and works on the host"
                raise CaptureError(plan.wiring.where(op.node, name), what, EAGER)
