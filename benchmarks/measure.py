"""What the benchmarks share: contestants in turn, medians and ratios, the machine, peak memory, one JSON object."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
Seconds = dict[str, list[float]]
clock = time.perf_counter


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the result as JSON, nothing else")
    parser.add_argument("--quick", action="store_true", help="smaller sizes; ends within a minute on 2 cores")
    parser.add_argument("--threads", type=int, default=0, help="of torch; as many as the machine has by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds: for a busy machine, no GPU")
    parser.add_argument("--out", type=Path, help="write <name>.<machine>.json into this folder too")
    parser.add_argument("--name", help="of that file, in place of the benchmark's own")
    return parser


def device_of(options: argparse.Namespace) -> torch.device:
    """The device, after setting the number of threads and the clock."""
    global clock
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.cpu_time:
        clock = time.process_time
    return torch.device(options.device)


def race(
    calls: Mapping[str, Callable[[], Any]], rounds: int, least: float = 0.0, device: torch.device | None = None
) -> Seconds:
    """Seconds a call, by contestant and round: ``in_turn`` for calls of this process."""
    return in_turn({name: partial(timed, call, device=device) for name, call in calls.items()}, rounds, least)


def in_turn(contestants: Mapping[str, Callable[[int], float]], rounds: int, least: float = 0.0) -> Seconds:
    """Seconds a call, by contestant and round, each after one call that is not counted.

    A contestant is what makes as many calls as told and says how many seconds they took. In every round each has its
    turn, starting with another one, so that what else the machine does meets all alike. A turn is as many calls as last
    ``least`` seconds: long enough that its beginning, for which a device waits, is a small part of it.
    """
    seconds = {name: list[float]() for name in contestants}
    for take in contestants.values():
        take(1)
    repeats = dict.fromkeys(contestants, 1)
    if least:
        repeats = {name: _repeats(take, least) for name, take in contestants.items()}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = contestants[name](repeats[name]) / repeats[name]
            seconds[name].append(took)
            tell(f"round {turn + 1}: {name:<34} {1000 * took:10.2f} ms")
    return seconds


def _repeats(take: Callable[[int], float], least: float) -> int:
    """How many calls in a row last so many seconds."""
    calls = 1
    while (took := take(calls)) < least / 4:
        calls *= 2
    return math.ceil(calls * least / took)


def timed(call: Callable[[], Any], times: int, device: torch.device | None = None) -> float:
    """Seconds of so many calls, until the device has done all their work."""
    wait(device)
    began = clock()
    for _ in range(times):
        call()
    wait(device)
    return clock() - began


def wait(device: torch.device | None) -> None:
    """Until the device has done all that it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest, to four digits."""
    return {name: short(f(values)) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def ratio(seconds: Seconds, ours: str, theirs: str) -> dict[str, float]:
    """Our seconds by theirs in the same round: below 1, ours is faster."""
    return spread([a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)])


def short(value: float) -> float:
    return float(f"{value:.4g}")


def peak_mib(device: torch.device) -> float:
    """Peak memory of this process so far: on the device, or the resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # what getrusage tells of a process that was started by a larger one is that one's
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": clock.__name__,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "amx_bf16": bool(torch.cpu.get_capabilities().get("amx_bf16", False)),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """The processor's name, with the family and model that clouds leave out of it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = [re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model")]
    name, family, model = (m[1] if m else "?" for m in found)
    return f"{name} (family {family}, model {model})"


def slug(of: dict[str, Any]) -> str:
    """A machine's name for a file's.

    >>> slug({"device": "NVIDIA H200 (SXM)"})
    'nvidia-h200-sxm'
    """
    return re.sub(r"[^a-z0-9]+", "-", str(of["device"]).lower()).strip("-")


def publish(name: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the result, and write it where ``--out`` says."""
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.name or name}.{slug(result['machine'])}.json"
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


def tell(text: str) -> None:
    """Progress, where it does not disturb the result."""
    print(text, file=sys.stderr, flush=True)
