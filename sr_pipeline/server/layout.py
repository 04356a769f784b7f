"""Where a graph's nodes stand in the editor: in columns from left to right, with few crossings and no overlaps.

The classic way of layered drawing: a column is the longest way from a source; a link that passes a column has a place
of its own there; nodes move within their columns towards the middle of their neighbours, as long as links cross less.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

import networkx as nx

GAP_X, GAP_Y, LANE = 80.0, 50.0, 12.0
"""Pixels between columns, between the nodes of one, and for a link that passes."""
SWEEPS = 24


class Size(NamedTuple):
    """Of a node, in pixels."""

    width: float
    height: float


class _Lane(NamedTuple):
    """Where the link from one node to another passes a column."""

    source: str
    target: str
    column: int


_Place = str | _Lane


def positions(sizes: Mapping[str, Size], links: Iterable[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """The upper left corner of each node.

    Args:
        sizes: of all nodes; where nothing else decides, the earlier one stands higher.
        links: from node to node, without cycles.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from(links)
    columns, routed = _with_lanes(graph, _columns(graph))
    columns = _untangled(columns, routed)
    tops = _heights(columns, routed, sizes)
    found: dict[str, tuple[float, float]] = {}
    x = 0.0
    for column in columns:
        nodes = [place for place in column if isinstance(place, str)]
        found.update({node: (x, tops[node]) for node in nodes})
        x += max((sizes[node].width for node in nodes), default=0.0) + GAP_X
    return {node: found[node] for node in sizes}


def crossings(columns: list[list[_Place]], routed: nx.DiGraph[_Place]) -> int:
    """How many pairs of links cross between neighbouring columns."""
    total = 0
    for left, right in pairwise(columns):
        place = {p: n for n, p in enumerate(right)}
        ends: list[int] = []
        for p in left:
            for end in sorted(place[after] for after in routed.successors(p)):
                total += len(ends) - bisect_right(ends, end)
                insort(ends, end)
    return total


def _columns(graph: nx.DiGraph[str]) -> dict[str, int]:
    """The longest way from a source; but what has slack stands just before what reads it."""
    found = {node: n for n, nodes in enumerate(nx.topological_generations(graph)) for node in nodes}
    for node in reversed(list(nx.topological_sort(graph))):
        found[node] = min((found[after] - 1 for after in graph.successors(node)), default=found[node])
    return found


def _with_lanes(graph: nx.DiGraph[str], column: Mapping[str, int]) -> tuple[list[list[_Place]], nx.DiGraph[_Place]]:
    columns: list[list[_Place]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    routed: nx.DiGraph[_Place] = nx.DiGraph()
    for node in graph:
        columns[column[node]].append(node)
        routed.add_node(node)
    for source, target in graph.edges:
        lanes = [_Lane(source, target, n) for n in range(column[source] + 1, column[target])]
        for lane in lanes:
            columns[lane.column].append(lane)
        nx.add_path(routed, [source, *lanes, target])
    return columns, routed


def _untangled(columns: list[list[_Place]], routed: nx.DiGraph[_Place]) -> list[list[_Place]]:
    """The columns sorted by the middle of their neighbours, to and fro; the best of all sweeps."""
    best, fewest = columns, crossings(columns, routed)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        columns = _switched(_sorted_once(columns, routed, forwards=sweep % 2 == 0), routed)
        if (found := crossings(columns, routed)) < fewest:
            best, fewest = columns, found
    return best


def _sorted_once(columns: list[list[_Place]], routed: nx.DiGraph[_Place], forwards: bool) -> list[list[_Place]]:
    neighbours = routed.predecessors if forwards else routed.successors
    done: list[list[_Place]] = []
    for column in columns if forwards else reversed(columns):
        place = {p: float(n) for n, p in enumerate(done[-1])} if done else {}
        middle = {p: fmean([place[q] for q in neighbours(p)] or [float(n)]) for n, p in enumerate(column)}
        done.append(sorted(column, key=middle.__getitem__))
    return done if forwards else done[::-1]


def _switched(columns: list[list[_Place]], routed: nx.DiGraph[_Place]) -> list[list[_Place]]:
    """Neighbours in a column change places where fewer of their own links then cross."""
    place = {p: n for column in columns for n, p in enumerate(column)}

    def crossed(upper: _Place, lower: _Place) -> int:
        return sum(
            place[a] > place[b]
            for side in (routed.predecessors, routed.successors)
            for a in side(upper)
            for b in side(lower)
        )

    for column in columns:
        for n in range(len(column) - 1):
            upper, lower = column[n], column[n + 1]
            if crossed(upper, lower) > crossed(lower, upper):
                column[n], column[n + 1] = lower, upper
                place[upper], place[lower] = n + 1, n
    return columns


def _heights(columns: list[list[_Place]], routed: nx.DiGraph[_Place], sizes: Mapping[str, Size]) -> dict[_Place, float]:
    """The top of each place: as near as can be to the middle of its neighbours, in the order of its column."""
    height = {p: LANE if isinstance(p, _Lane) else sizes[p].height + GAP_Y for column in columns for p in column}
    tops: dict[_Place, float] = {}
    for column in columns:
        tops.update(_stacked(column, height, {}))
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = {}
            for p in column:
                near = [*routed.predecessors(p), *routed.successors(p)]
                if near:
                    wanted[p] = median(tops[q] + height[q] / 2 for q in near) - height[p] / 2
            tops.update(_stacked(column, height, wanted or {p: tops[p] for p in column}))
    lowest = min((top for p, top in tops.items() if isinstance(p, str)), default=0.0)
    return {p: round(top - lowest) for p, top in tops.items()}


def _stacked(
    column: list[_Place], height: Mapping[_Place, float], wanted: Mapping[_Place, float]
) -> dict[_Place, float]:
    """Tops in this order without overlap, the sum of squared distances to what is wanted the least.

    Places that would overlap are joined into a block, which stands at the mean of what its places want; blocks that
    then overlap are joined again (pool adjacent violators).
    """
    blocks: list[tuple[float, list[_Place]]] = []
    offset, start = {}, 0.0
    for p in column:
        offset[p], start = start, start + height[p]
    last = 0.0
    for p in column:
        last = wanted.get(p, last + offset[p]) - offset[p]
        block = (last, [p])
        while blocks and blocks[-1][0] > block[0]:
            mean, members = blocks.pop()
            total = mean * len(members) + block[0] * len(block[1])
            block = (total / (len(members) + len(block[1])), members + block[1])
        blocks.append(block)
    return {p: at + offset[p] for at, members in blocks for p in members}
