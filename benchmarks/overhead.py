"""What the engine itself costs: a node and step of a run, planning 10,000 nodes, and the start of a command.

    python benchmarks/overhead.py [--json] [--quick]

Chains of 10 to 10,000 nodes that return what they are given run through ``run``, files and events included. A step's
time is from the stream's being asked for an item to its being asked for the next; ``us_per_node_step`` is the largest
median of them by the number of nodes, and ``us_per_node_step_by_nodes`` has each. ``plan_10000_s`` is the median time
to check and plan the longest chain, ``parse_10000_s`` to read its file. ``start_s`` is what ``sr-pipeline run`` of one
node takes in a process of its own from the end of torch's import to the call of that node. It exits with 1 where a
node and step costs more than 8 us, planning more than 1 s, or the start more than 0.2 s.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

import measure
from measure import arguments, device_of, machine, publish, short, spread, tell
from sr_pipeline.graph import Graph
from sr_pipeline.node import node
from sr_pipeline.packcommands import collect_garbage
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sockets import Socket

Item = Annotated[Tensor, Socket("Item")]
SIZES = (10, 100, 1000, 10_000)
STAMPS: list[float] = []


@node
def ticks(steps: int = 1) -> Iterator[Item]:
    """The same item each step; it notes when it is asked for one."""
    item = torch.zeros(1)
    for _ in range(steps):
        STAMPS.append(measure.clock())
        yield item
    STAMPS.append(measure.clock())


@node
def passed_on(item: Item, scale: float = 1.0) -> Item:
    return item


@node(output=True)
def sink(item: Item) -> None:
    """The end of the chain."""


REGISTRY = Registry([ticks, passed_on, sink])


def chain(nodes: int, steps: int = 1) -> Graph:
    """``nodes`` nodes, one after the other."""
    graph = Graph()
    last = graph.add("ticks", id="ticks", steps=steps)
    for number in range(nodes - 2):
        last = graph.add("passed_on", id=f"n{number}", item=last, scale=2.0)
    graph.add("sink", id="sink", item=last)
    return graph


def step_seconds(nodes: int, steps: int) -> list[float]:
    """Seconds of each step but the first, which warms up."""
    STAMPS.clear()
    with tempfile.TemporaryDirectory() as folder:
        run(chain(nodes, steps), registry=REGISTRY, device="cpu", run_dir=folder)
    return [after - before for before, after in pairwise(STAMPS[1:])]


def plan_seconds(rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to plan the longest chain, and to read its file; as in the command, what torch left is no garbage."""
    collect_garbage()
    graph = chain(SIZES[-1])
    text, planned, parsed = graph.to_json(), list[float](), list[float]()
    for _ in range(rounds):
        began = measure.clock()
        compile_plan(graph, REGISTRY)
        planned.append(measure.clock() - began)
        began = measure.clock()
        Graph.parse(text)
        parsed.append(measure.clock() - began)
    return planned, parsed


FIRST_NODE = """
import time
from sr_pipeline.node import node

@node(output=True)
def first() -> None:
    import __main__
    print("START", time.CLOCK() - __main__.imported)
"""
COMMAND = """
import importlib.util, sys, time

class AfterTorch:
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        execute = spec.loader.exec_module
        def executed(module):
            global imported
            execute(module)
            imported = time.CLOCK()
        spec.loader.exec_module = executed
        return spec

sys.meta_path.insert(0, AfterTorch())
sys.argv[0] = "sr-pipeline"
from sr_pipeline.cli import main
main()
"""


def start_seconds(rounds: int) -> list[float]:
    """As a user's command: with compiled modules kept, so one round before that fills their cache."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first_node.py").write_text(FIRST_NODE.replace("CLOCK", measure.clock.__name__))
        (folder / "graph.json").write_text('{"first": {"class_type": "first", "inputs": {}}}')
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        for turn in range(rounds + 1):
            words = ["run", "graph.json", "--pack", "first_node.py", "--run-dir", f"run-{turn}"]
            command = [sys.executable, "-c", COMMAND.replace("CLOCK", measure.clock.__name__), *words]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            (line,) = (line for line in done.stdout.splitlines() if line.startswith("START"))
            found.append(float(line.split()[1]))
    return found[1:]


def main() -> int:
    options = arguments(__doc__).parse_args()
    device = device_of(options)
    by_nodes = {}
    for nodes in SIZES:
        steps = max(100_000 // nodes, 12)
        costs = [1e6 * seconds / nodes for seconds in step_seconds(nodes, steps)]
        by_nodes[nodes] = spread(costs) | {"steps": steps}
        tell(f"{nodes:>6} nodes: {statistics.median(costs):.2f} us a node and step")
    planned, parsed = plan_seconds(3 if options.quick else 9)
    start = start_seconds(2 if options.quick else 7)
    result = {
        "us_per_node_step": max(costs["median"] for costs in by_nodes.values()),
        "us_per_node_step_by_nodes": by_nodes,
        "plan_10000_s": short(statistics.median(planned)),
        "plan_10000_s_spread": spread(planned),
        "parse_10000_s": short(statistics.median(parsed)),
        "start_s": short(statistics.median(start)),
        "start_s_spread": spread(start),
        "quick": options.quick,
        "machine": machine(device),
    }
    publish("overhead", result, options)
    return 0 if result["us_per_node_step"] <= 8 and result["plan_10000_s"] <= 1 and result["start_s"] <= 0.2 else 1


if __name__ == "__main__":
    sys.exit(main())
