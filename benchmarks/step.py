"""How long is a training step? Ours in every mode, beside a straight loop, tutorials' loop, and BasicSR's.

    python benchmarks/step.py [--data FOLDER] [--rounds 7] [--json] [--quick] [--out benchmarks/results]

SRResNet-MSE and SRGAN-VGG54 at the paper's sizes (batch 16, crop 96), ours as the engine's executor runs the shipped
graph, with its logs, against (a) a straight loop over the same nodes' modules in the same mode, (b) the loop as
popular tutorials write it, (c) BasicSR 1.4.2; see loops.py. (c) is passed over where it is not installed; a folder
made by ``pip install --target`` is found by the variable BASICSR_PATH. Each has a process of its own, and all take
their turn in each round, on synthetic batches, then those of the default mode on crops of the photographs in
``--data``. On a CPU ours and (a) keep freed memory, as ``run`` does; levers.py says what that gives.

A ratio is the median over the rounds of our time by the other's of the same round: below 1, ours is faster. ``ratio_a``
is the largest of SRGAN's modes run node by node; captured ones (one CUDA graph, compiled networks) are in
``ratio_a_by_mode`` too, beside the eager loop of the same numbers. ``ratio_b`` and ``ratio_c`` are SRGAN in the default
mode of ``run``. Peak memory is that of the process, with torch in it, or on CUDA that of its tensors, and what it
reserved, a graph's own pool with it; ``memory_a`` is ours by (a)'s in the same mode. ``wait_share`` is what of a
captured step on photographs goes away where its batches are there already, in the same rounds: a GPU that has nothing
else to do for longer is slower, so that two races tell nothing of each other. It exits with 1 where a goal is missed
(``GOALS``), and says which; --quick is SRGAN at smaller sizes, compiles nothing, and its ratios are no measure of the
paper's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loops import Size, Step, basicsr, straight, tutorial
from measure import (
    DATA,
    Seconds,
    arguments,
    device_of,
    in_turn,
    machine,
    peak_mib,
    publish,
    ratio,
    short,
    spread,
    tell,
    timed,
)
from sr_nodes.assets import graphs
from sr_nodes.data import photographs, random_crops
from sr_pipeline.allocator import kept_memory
from sr_pipeline.capture import capturing, chosen_capture
from sr_pipeline.events import Channel
from sr_pipeline.execute import Context, Executor
from sr_pipeline.graph import Graph
from sr_pipeline.plan import compile_plan
from sr_pipeline.precision import Mode, chosen_mode, is_fast_in_bf16
from sr_pipeline.recording import WARM_UP
from sr_pipeline.registry import load_packs
from sr_pipeline.run import run

QUICK = Size(batch=4, crop=48, blocks=4)
GOALS = {
    "cpu": {"ratio_a": 1.02, "ratio_b": 0.80, "ratio_c": 0.90},
    "cuda": {
        "ratio_a": 1.02,
        "ratio_b": 0.20,
        "ratio_c": 0.20,
        "srgan_ms": 4.0,
        "srresnet_ms": 1.5,
        "memory_a": 1.0,
        "wait_share": 0.03,
    },
}


def default_mode(device: torch.device) -> Mode:
    """The mode of ``run`` where no flag says otherwise."""
    given = inspect.signature(run).parameters
    mode = chosen_mode(given["precision"].default, given["memory_format"].default, device)
    plan = compile_plan(Graph.load(graphs() / "train_srgan.json"), load_packs())
    return replace(mode, capture=chosen_capture(given["capture"].default, plan, device)[0])


class Ours:
    """The engine's step over a shipped graph."""

    def __init__(self, size: Size, mode: Mode, device: torch.device, gan: bool) -> None:
        graph = Graph.load(graphs() / ("train_srgan.json" if gan else "train_srresnet.json"))
        graph.nodes["generator"].inputs |= {"blocks": size.blocks, "channels": size.channels}
        graph.nodes["hr"].inputs |= {"size": size.crop, "batch": size.batch}
        graph.nodes["preview"].inputs["every"] = 0
        if gan:
            graph.nodes["discriminator"].inputs |= {"crop": size.crop}
        nowhere = Path(tempfile.gettempdir())  # nothing is written
        context = Context(nowhere, 0, device, Channel([]), mode)
        self.mode, self.device, self.at = mode, device, 0
        self.executor = Executor(compile_plan(graph, load_packs()), context)
        with torch.no_grad():
            self.executor.setup()
        self.captured = ExitStack()
        self.captured.enter_context(capturing(self.executor))

    def __call__(self, hr: Tensor) -> None:
        with torch.no_grad(), self.mode.products(self.device):
            self.executor.step(hr, self.at, last=False)
        self.at += 1


def modes(device: torch.device) -> dict[str, Mode]:
    """Every mode of numbers that the device computes as such."""
    found = [Mode("fp32"), Mode("fp32", "channels_last")]
    found += [Mode("bf16", "channels_last")] if is_fast_in_bf16(device) else []
    found += [Mode("tf32", "channels_last")] if device.type == "cuda" else []
    return {str(mode): mode for mode in found}


def captures(device: torch.device) -> dict[str, Mode]:
    """Every way to capture, in those modes where the device has it; its counterpart is the eager loop of the mode."""
    cuda = device.type == "cuda"
    found = [replace(mode, capture="graph") for mode in modes(device).values() if cuda]
    found += [Mode("bf16" if cuda else "fp32", "channels_last", "compile")]
    return {str(mode): mode for mode in found}


def contestants(size: Size, device: torch.device, gan: bool) -> dict[str, Callable[[], Step]]:
    """What builds each, by name."""
    made: dict[str, Callable[[], Step]] = {}
    for name, mode in (modes(device) | captures(device)).items():
        made[f"ours, {name}"] = partial(Ours, size, mode, device, gan)
        if mode.capture == "off":
            made[f"a, {name}"] = partial(straight, size, mode, device, gan)
    return made | {"b": partial(tutorial, size, device, gan)} | ({"c": partial(basicsr, size, device)} if gan else {})


def synthetic(size: Size, device: torch.device) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return cycle([torch.rand(size.batch, 3, size.crop, size.crop, generator=rng).to(device) for _ in range(4)])


def real(size: Size, device: torch.device, folder: Path) -> Iterator[Tensor]:
    return random_crops(photographs(str(folder)), size.crop, size.batch, device=device)


def figures(seconds: Seconds, device: torch.device) -> dict[str, Any]:
    """Milliseconds of each, and our ratios to a in each mode, to b and to c."""
    made: dict[str, Any] = {"ms": {name: spread([1000 * s for s in took]) for name, took in seconds.items()}}
    made["ratio_a_by_mode"] = {
        name: ratio(seconds, f"ours, {name}", f"a, {replace(mode, capture='off')}")
        for name, mode in (modes(device) | captures(device)).items()
        if f"ours, {name}" in seconds and f"a, {replace(mode, capture='off')}" in seconds
    }
    by_mode = made["ratio_a_by_mode"]
    if eager := [by_mode[name]["median"] for name in modes(device) if name in by_mode]:
        made["ratio_a"] = max(eager)
    default = f"ours, {default_mode(device)}"
    for name in ("b", "c"):
        if name in seconds:
            found = ratio(seconds, default, name)
            made |= {f"ratio_{name}": found["median"], f"ratio_{name}_spread": found}
    return made


class Contestant:
    """A process that does steps of one kind when told, and nothing else, as a training does.

    Raises:
        ImportError: what it measures is not installed.
    """

    def __init__(self, name: str, options: argparse.Namespace, gan: bool) -> None:
        command = [sys.executable, __file__, "--one", name, "--data", str(options.data)]
        command += ["--network", "srgan" if gan else "srresnet", "--device", options.device]
        command += ["--threads", str(options.threads)]
        command += [flag for flag in ("--quick", "--cpu-time") if getattr(options, flag[2:].replace("-", "_"))]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, times: int) -> float:
        """Seconds of so many steps."""
        seconds: float = self.ask(str(times))
        return seconds

    def still(self, times: int) -> float:
        """The same on batches that are there already."""
        seconds: float = self.ask(f"still {times}")
        return seconds

    def ask(self, what: str) -> Any:
        if self.process.stdin:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        self.process.communicate()


@contextmanager
def started(names: Iterable[str], options: argparse.Namespace, gan: bool) -> Iterator[dict[str, Contestant]]:
    """The contestants that can be measured here; they are built side by side."""
    with ExitStack() as stack:
        made = {name: Contestant(name, options, gan) for name in names}
        for contestant in made.values():
            stack.callback(contestant.end)
        missing = {name: found for name, contestant in made.items() if (found := contestant.answer())}
        for name, reason in missing.items():
            mend = "; pip install --target FOLDER basicsr==1.4.2, BASICSR_PATH=FOLDER" if name == "c" else ""
            tell(f"{name} is not measured: {reason}{mend}")
        yield {name: contestant for name, contestant in made.items() if name not in missing}


def measured(options: argparse.Namespace, size: Size, device: torch.device, gan: bool) -> dict[str, Any]:
    least = 0.5 if device.type == "cuda" else 0.0
    # to compile takes a minute
    without = options.quick or options.without_compile
    names = [name for name in contestants(size, device, gan) if not (without and name.endswith("compile"))]
    with started(names, options, gan) as processes:
        made = {"synthetic": figures(in_turn(processes, options.rounds, least), device)}
        peaks = {name: process.ask("peak") for name, process in processes.items()}
        for key in next(iter(peaks.values())):
            made[key] = {name: peak[key] for name, peak in peaks.items()}
        if options.data.is_dir() and not options.quick:
            default = default_mode(device)
            names = [f"ours, {default}", f"a, {replace(default, capture='off')}", "b", "c"]
            among = {name: processes[name] for name in names if name in processes}
            for process in among.values():
                process.ask("photographs")
            ours, still = f"ours, {default}", f"ours, {default}, batches that are there"
            race: dict[str, Callable[[int], float]] = {**among, **({still: among[ours].still} if ours in among else {})}
            seconds = in_turn(race, options.rounds, least)
            made["real"] = figures(seconds, device)
            if still in seconds:
                made["waiting"] = spread([1 - a / b for a, b in zip(seconds[still], seconds[ours], strict=True)])
    return made


def one(options: argparse.Namespace, size: Size, device: torch.device, gan: bool) -> None:
    """What a contestant's process does: it says that it is ready, or what is missing; then answers each line."""
    mode = (modes(device) | captures(device)).get(options.one.partition(", ")[2])
    answers = sys.stdout
    with redirect_stdout(sys.stderr), ExitStack() as stack:
        if mode and device.type == "cpu":  # a part of the mode, as `run` sets it
            stack.enter_context(kept_memory())
        there = batches = synthetic(size, device)
        try:
            step = contestants(size, device, gan)[options.one]()
            if device.type == "cuda":
                timed(partial(_fed, step, there), untimed(mode), device)
        except (ImportError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            print(json.dumps(str(error)), file=answers)
            return
        print("null", file=answers, flush=True)
        for line in sys.stdin:
            found: Any = None
            if (asked := line.strip()) == "peak":
                found = peaks_of(device)
            elif asked == "photographs":
                batches = real(size, device, options.data)
            else:
                still, _, times = asked.rpartition(" ")
                found = timed(partial(_fed, step, there if still else batches), int(times), device)
            print(json.dumps(found), file=answers, flush=True)


def untimed(mode: Mode | None) -> int:
    """Steps that are not timed: what precedes a recording's first replay is no step's time."""
    return 1 if mode is None or mode.capture == "off" else WARM_UP + 2


def _fed(step: Step, batches: Iterator[Tensor]) -> None:
    step(next(batches))


def peaks_of(device: torch.device) -> dict[str, int]:
    """The most memory so far, in MiB; what is reserved on CUDA counts what a graph keeps for itself."""
    found = {"peak_mib": round(peak_mib(device))}
    if device.type == "cuda":
        found["peak_reserved_mib"] = round(torch.cuda.max_memory_reserved(device) / 2**20)
    return found


def summary(by_network: dict[str, Any], default: Mode) -> dict[str, float]:
    """The figures that have goals: ratios of SRGAN, milliseconds of the default mode, on photographs where there are
    some, and our peak memory by (a)'s in the mode where it is largest."""
    made, by_a = dict[str, float](), list[float]()
    for net, found in by_network.items():
        made[f"{net}_ms"] = found.get("real", found["synthetic"])["ms"][f"ours, {default}"]["median"]
        peaks = found["peak_mib"]
        by_a += [mib / peaks[f"a, {n[6:]}"] for n, mib in peaks.items() if n[:6] == "ours, " and f"a, {n[6:]}" in peaks]
    srgan = by_network.get("srgan", {}).get("synthetic", {})
    made |= {name: srgan[name] for name in ("ratio_a", "ratio_b", "ratio_c") if name in srgan}
    waiting = [of["waiting"]["median"] for of in by_network.values() if "waiting" in of]
    if waiting and default.capture == "graph":  # of eager steps data.py says how long they wait
        made["wait_share"] = max(0.0, *waiting)
    return made | {"memory_a": short(max(by_a))}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, default=DATA / "photos", help="photographs for the second race")
    parser.add_argument("--network", choices=["srresnet", "srgan"], help="this one alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--without-compile", action="store_true", help="without the modes that torch compiles")
    options = parser.parse_args()
    device, size = device_of(options), QUICK if options.quick else Size()
    options.rounds = min(options.rounds, 3) if options.quick else options.rounds
    if options.one:
        one(options, size, device, options.network == "srgan")
        return 0
    nets = [options.network] if options.network else ["srgan"] if options.quick else ["srgan", "srresnet"]
    by_network = {net: measured(options, size, device, net == "srgan") for net in nets}
    result = summary(by_network, default_mode(device)) | {
        "default_mode": str(default_mode(device)),
        "networks": by_network,
        "size": vars(size) | {"paper": size == Size()},
        "rounds": options.rounds,
        "machine": machine(device),
    }
    publish("step", result, options)
    missed = [name for name, goal in GOALS[device.type].items() if name in result and result[name] > goal]
    for name in missed if not options.quick else ():
        tell(f"{name} is {result[name]}; the goal is {GOALS[device.type][name]}")
    return int(bool(missed) and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
