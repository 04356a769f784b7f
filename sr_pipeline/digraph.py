"""What planning asks of directed graphs, which are mappings of each node to its neighbours.

networkx, which draws the graphs and words their cycles, takes longer to import than all the rest of a run's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from heapq import heappop, heappush


def reached(neighbours: Mapping[str, Iterable[str]], starts: Iterable[str]) -> set[str]:
    """``starts`` and all that a way leads to from there."""
    found = set(starts)
    waiting = list(found)
    while waiting:
        new = set(neighbours[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


def turned(neighbours: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The same graph with every edge turned round: of predecessors, the successors."""
    found: dict[str, list[str]] = {node: [] for node in neighbours}
    for node, others in neighbours.items():
        for other in others:
            found[other].append(node)
    return found


def sorted_by_rank(predecessors: Mapping[str, Iterable[str]], rank: Mapping[str, int]) -> list[str]:
    """Each node after its predecessors: of all such orders the one nearest to ``rank``.

    Raises:
        CycleError: there is none; its second argument is a cycle, from a node to itself.
    """
    sorter = TopologicalSorter(predecessors)
    sorter.prepare()
    ready: list[tuple[int, str]] = []
    order = []
    while sorter.is_active():
        for node in sorter.get_ready():
            heappush(ready, (rank[node], node))
        order.append(heappop(ready)[1])
        sorter.done(order[-1])
    return order
