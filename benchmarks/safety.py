"""What does it cost that nothing is lost? Training with everything that keeps a run safe, beside the bare steps.

    python benchmarks/safety.py [--steps 40] [--rounds 5] [--full] [--json] [--quick] [--out FOLDER]

SRGAN's graph (--full: at the paper's sizes; else 4 blocks, 32 channels, crops of 48, a discriminator to match) is run
in turn, one after the other, so that what else the machine does meets all alike:

- bare: the same steps by a loop over the executor, which writes nothing and watches nothing;
- safe: ``run`` as a user calls it: folder, lock, events, watching of numbers, polling of the writer;
- saving: ``run`` with a checkpoint each eighth step.

A step's overhead is the median over the rounds of safe by bare; what a checkpoint costs, snapshot and all that its
writing slows down, is the time by which saving is longer than safe, a checkpoint. With one each five minutes, the
default, both together are the overhead; it exits with 1 where that is over 1 %. On a CPU that others use too, the
seconds of its own threads (cpu) say more than the clock's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import arguments, device_of, machine, publish, tell, wait
from sr_pipeline.allocator import kept_memory
from sr_pipeline.checkpoint import latest
from sr_pipeline.events import Channel, Event, Progress
from sr_pipeline.execute import Context, Executor
from sr_pipeline.graph import Graph
from sr_pipeline.plan import compile_plan
from sr_pipeline.precision import chosen_mode
from sr_pipeline.registry import load_packs
from sr_pipeline.run import run
from sr_pipeline.runner import SAVE_SECONDS
from sr_pipeline.shipped import find_graph

GOAL = 0.01
SAVE_EVERY = 8
WARM = 4
"""Steps before the clock starts."""


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="networks, crops and batch of the paper")
    options = parser.parse_args()
    device = device_of(options)
    steps, rounds = (WARM + 2 * SAVE_EVERY, 1) if options.quick else (options.steps, options.rounds)
    result = race(training(steps, options.full), steps, rounds, device)
    result |= {"steps": steps, "rounds": rounds, "machine": machine(device)}
    publish("safety", result, options)
    return int(result["overhead"] > GOAL and not options.quick)


def training(steps: int, full: bool) -> Graph:
    """SRGAN without what looks at it: its step and its state are all that there is."""
    graph = find_graph("train_srgan").copy()
    looks = ("preview", "validate", "export_generator")
    for name in [name for name, entry in graph.nodes.items() if entry.class_type in looks]:
        del graph.nodes[name]
    graph.nodes["hr"].inputs["steps"] = steps
    if not full:
        graph.nodes["generator"].inputs |= {"blocks": 4, "channels": 32}
        graph.nodes["discriminator"].inputs |= {"crop": 48, "channels": 16, "dense": 128}
        graph.nodes["hr"].inputs |= {"size": 48, "batch": 4}
        graph.nodes["vgg"].inputs |= {"layer": "22"}
    return graph


@dataclass(frozen=True)
class Cost:
    """Seconds a step: by the clock, and of all the process's threads."""

    clock: float
    cpu: float


class Watch:
    """Times the steps after the first few."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device, self.began = steps, device, (0.0, 0.0)

    def start(self) -> None:
        self.began = self._now()

    def cost(self) -> Cost:
        clock, cpu = (b - a for a, b in zip(self.began, self._now(), strict=True))
        return Cost(clock / (self.steps - WARM), cpu / (self.steps - WARM))

    def _now(self) -> tuple[float, float]:
        wait(self.device)
        return time.perf_counter(), time.process_time()


def bare(graph: Graph, steps: int, device: torch.device, _: Path) -> Cost:
    """Of a loop, in the mode of ``run``."""
    mode = chosen_mode("auto", "auto", device)
    executor = Executor(compile_plan(graph, load_packs()), Context(Path(), 0, device, Channel([]), mode))
    watch = Watch(steps, device)
    with torch.no_grad(), kept_memory() if device.type == "cpu" else nullcontext():
        executor.setup()
        for step, item in enumerate(executor.stream(0)):
            if step == WARM:
                watch.start()
            executor.step(item, step, step == steps - 1)
    return watch.cost()


def through_run(every: int, graph: Graph, steps: int, device: torch.device, folder: Path) -> Cost:
    """Of a run, until its last checkpoint is written where there are any but the first and the last."""
    watch, costs = Watch(steps, device), []

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.step == steps:
            costs.append(watch.cost())

    asked = iter(range(steps + 2))  # before the first step, then after each

    def stop() -> bool:
        if next(asked) == WARM:
            watch.start()
        return False

    run(graph, device=str(device), capture="off", run_dir=folder, checkpoint_every=every, sinks=[sink], stop=stop)
    return watch.cost() if every < steps else costs[0]


def race(graph: Graph, steps: int, rounds: int, device: torch.device) -> dict[str, Any]:
    runs: dict[str, Callable[[Graph, int, torch.device, Path], Cost]] = {
        "bare": bare,
        "safe": partial(through_run, 10**9),
        "saving": partial(through_run, SAVE_EVERY),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    size = 0
    for number in range(rounds):
        order = list(runs) if number % 2 == 0 else list(runs)[::-1]  # what gets slower with time meets all alike
        for name in order:
            with tempfile.TemporaryDirectory() as folder:
                costs[name].append(runs[name](graph, steps, device, Path(folder) / "run"))
                newest = latest(Path(folder) / "run" / "checkpoints")
                size = newest.stat().st_size if newest else size
            last = costs[name][-1]
            tell(f"{name}: {1000 * last.clock:.1f} ms a step, cpu {1000 * last.cpu:.1f} ms")
    by_clock = {name: [cost.clock for cost in found] for name, found in costs.items()}
    by_cpu = {name: [cost.cpu for cost in found] for name, found in costs.items()}
    return {**overheads(by_clock, steps), "cpu": overheads(by_cpu, steps), "checkpoint_bytes": size}


def overheads(seconds: dict[str, list[float]], steps: int) -> dict[str, float]:
    ratios = [safe / plain for safe, plain in zip(seconds["safe"], seconds["bare"], strict=True)]
    saves = len(range(WARM + 1, steps + 1)) / SAVE_EVERY
    more = [saving - safe for saving, safe in zip(seconds["saving"], seconds["safe"], strict=True)]
    step, checkpoint = statistics.median(ratios) - 1, statistics.median(more) * (steps - WARM) / saves
    return {
        **{f"{name}_ms": round(1000 * statistics.median(found), 2) for name, found in seconds.items()},
        "step_overhead": round(step, 4),
        "checkpoint_seconds": round(checkpoint, 4),
        "overhead": round(step + max(checkpoint, 0) / SAVE_SECONDS, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
