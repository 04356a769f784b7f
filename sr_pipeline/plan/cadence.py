"""On which steps a node runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sr_pipeline.check import Wiring
from sr_pipeline.plan.phases import Phase

Gates = frozenset[int]
"""Cadences that must all fire; empty: every step."""
Demand = frozenset[Gates]
"""The node runs when any of these fires."""
ALWAYS: Demand = frozenset({frozenset()})


def demands(wiring: Wiring, phase: Mapping[str, Phase], order: Iterable[str], targets: set[str]) -> dict[str, Demand]:
    """When each step node runs: with its own cadence and those it reads from, and only when somebody needs it.

    A node that changes something is needed on each step that its cadence allows.
    """
    order = [n for n in order if phase[n] == Phase.STEP]
    gates: dict[str, Gates] = {}
    for id_ in order:
        cadence = wiring.types[id_].cadence
        own = frozenset({int(wiring.setting(id_, cadence))} - {1}) if cadence else frozenset()
        gates[id_] = own.union(*(gates[v.node] for v in wiring.links[id_].values() if v.node in gates))
    found: dict[str, Demand] = {n: frozenset() for n in order}
    for id_ in reversed(order):
        made = wiring.types[id_]
        if id_ in targets or made.mutations or made.kind == "reducer":
            found[id_] |= {gates[id_]}
        for value in wiring.links[id_].values():
            if value.node in found:
                found[value.node] |= found[id_]
    return {n: ALWAYS if frozenset() in d else d for n, d in found.items()}


def fires(demand: Demand, step: int, last: bool) -> bool:
    """Whether a node runs on a step (counted from 0): each n-th, and after the last.

    >>> [fires(frozenset({frozenset({2})}), step, step == 4) for step in range(5)]
    [False, True, False, True, True]
    """
    if last:
        return bool(demand)
    return any(all(n > 0 and (step + 1) % n == 0 for n in gates) for gates in demand)
