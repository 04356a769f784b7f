"""What planning asks of graphs, beside networkx."""

from __future__ import annotations

from graphlib import CycleError
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_pipeline.digraph import reached, sorted_by_rank, turned

NODES = "abcdefgh"
graphs = st.fixed_dictionaries({node: st.lists(st.sampled_from(NODES), max_size=4) for node in NODES})


def library(graph: dict[str, list[str]]) -> nx.DiGraph[str]:
    found: nx.DiGraph[str] = nx.DiGraph()
    found.add_nodes_from(graph)
    found.add_edges_from((a, b) for a, others in graph.items() for b in others)
    return found


@given(graphs, st.lists(st.sampled_from(NODES)))
def test_what_is_reached(graph: dict[str, list[str]], starts: list[str]) -> None:
    after = (nx.descendants(library(graph), node) for node in starts)
    before = (nx.ancestors(library(graph), node) for node in starts)
    assert reached(graph, starts) == set(starts).union(*after)
    assert reached(turned(graph), starts) == set(starts).union(*before)


@given(graphs)
def test_turned_twice_it_has_the_same_edges(graph: dict[str, list[str]]) -> None:
    again = turned(turned(graph))
    assert {node: sorted(others) for node, others in again.items()} == {node: sorted(graph[node]) for node in NODES}


@given(graphs, st.permutations(NODES))
def test_the_order_nearest_to_the_ranks_or_a_cycle(graph: dict[str, list[str]], ranked: list[str]) -> None:
    rank = {node: n for n, node in enumerate(ranked)}
    dag = library(turned(graph))
    if nx.is_directed_acyclic_graph(dag):
        assert sorted_by_rank(graph, rank) == list(nx.lexicographical_topological_sort(dag, rank.__getitem__))
        return
    with pytest.raises(CycleError) as error:
        sorted_by_rank(graph, rank)
    cycle = error.value.args[1]
    assert cycle[0] == cycle[-1]
    assert all(before in graph[after] for before, after in pairwise(cycle))


@given(st.fixed_dictionaries({b: st.lists(st.sampled_from(NODES[:n]), max_size=4) for n, b in enumerate(NODES) if n}))
def test_the_order_of_graphs_without_cycles(later: dict[str, list[str]]) -> None:
    graph: dict[str, list[str]] = {"a": [], **later}
    rank = {node: n for n, node in enumerate(reversed(NODES))}
    dag = library(turned(graph))
    assert sorted_by_rank(graph, rank) == list(nx.lexicographical_topological_sort(dag, rank.__getitem__))
