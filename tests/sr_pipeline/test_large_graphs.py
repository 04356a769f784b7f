"""Graphs of thousands of nodes: the same order, the same results, and no more work for a node than in a small one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import toys
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.plan import compile_plan
from sr_pipeline.run import run
from sr_pipeline.sockets import SILENT, Report

NODES = 10_000


@node
def one() -> int:
    return 1


@node
def plus_one(number: int) -> int:
    return number + 1


@node(output=True)
def tell(number: int, x: toys.Batch | None = None, report: Report = SILENT) -> None:
    report.scalar("", number)


@node
def item_number(x: toys.Batch) -> int:
    return int(x[0, 0])


REGISTRY = toys.REGISTRY.with_nodes([one, plus_one, tell, item_number])


def chain(nodes: int, stream: bool) -> Graph:
    """A first number, ones added to it one after the other, and the last one told; ``nodes`` in all."""
    graph = Graph()
    first = ["x", "item"] if stream else ["one"]
    last = graph.add("count", id="x", number=3) if stream else graph.add("one", id="one")
    if stream:
        last = graph.add("item_number", id="item", x=last)
    added = [f"n{i}" for i in range(nodes - len(first) - 1)]
    for id_ in added:
        last = graph.add("plus_one", id=id_, number=last)
    graph.add("tell", id="told", number=last)
    return graph


@pytest.mark.parametrize("stream", [False, True], ids=["setup", "steps"])
def test_a_chain_of_ten_thousand_nodes_runs_each_once(tmp_path: Path, stream: bool) -> None:
    graph = chain(NODES, stream)
    heard = toys.Heard()
    run(graph, registry=REGISTRY, device="cpu", run_dir=tmp_path, sinks=[heard])
    added = NODES - (3 if stream else 2)
    assert heard.scalars("told") == ({n: n + added for n in (1, 2, 3)} if stream else {0: 1 + added})


@pytest.mark.parametrize("backwards", [False, True])
def test_its_order_is_that_of_its_links(backwards: bool) -> None:
    graph = chain(NODES, stream=True)
    names = list(graph.nodes)
    if backwards:
        graph.nodes = dict(reversed(graph.nodes.items()))
    assert [op.node for op in compile_plan(graph, REGISTRY).steps] == names


def test_a_cycle_of_ten_thousand_nodes_is_refused() -> None:
    graph = chain(NODES, stream=False)
    graph.nodes["n0"].inputs["number"] = Link(f"n{NODES - 3}", 0)
    with pytest.raises(Exception, match=r"^graph: n0: a cycle: n0 -> n1 -> .* -> n9997 -> n0;"):
        compile_plan(graph, REGISTRY)


def passes(nodes: int) -> Graph:
    """Many training passes over one model, the sum of their losses, one step."""
    graph = Graph()
    x, net = graph.add("batches", id="x"), graph.add("network", id="net")
    loss = graph.add("size", x=x)
    for _ in range(nodes // 3):
        loss = graph.add("total", a=loss, b=graph.add("size", x=graph.add("forward", model=net, x=x)))
    step = graph.add("optimizer_step", loss=loss, model=net, optimizer=graph.add("adam", model=net))
    graph.add("export", model=step)
    return graph


def steps(nodes: int) -> Graph:
    """Many steps of one model, each after the last."""
    graph = Graph()
    x, net = graph.add("batches", id="x"), graph.add("network", id="net")
    model, optimizer = net[0], graph.add("adam", model=net)[0]
    for _ in range(nodes // 3):
        loss = graph.add("size", x=graph.add("forward", model=model, x=x))
        step = graph.add("optimizer_step", loss=loss, model=model, optimizer=optimizer)
        model, optimizer = step[0], step[1]
    graph.add("export", model=model)
    return graph


def calls(function: Callable[[], Any]) -> int:
    """How many functions it calls."""
    number = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return number


@pytest.mark.parametrize("shape", [lambda n: chain(n, stream=True), passes, steps], ids=["chain", "passes", "steps"])
def test_four_times_the_nodes_are_four_times_the_work(shape: Callable[[int], Graph]) -> None:
    small, large = (calls(partial(compile_plan, shape(number), REGISTRY)) for number in (500, 2000))
    assert large / small == pytest.approx(4, rel=0.1)
