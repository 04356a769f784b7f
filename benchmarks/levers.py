"""What does each lever give? SRGAN-VGG54's straight loop with one of them changed, beside the loop as it is.

    python benchmarks/levers.py [--rounds 5] [--json] [--quick] [--out benchmarks/results]

The loop is (a) of loops.py at the paper's sizes, in fp32 and torch's own layout; all contestants take their turn in one
process. What the C library does belongs to a process, so ``memory kept`` is the engine's step in processes of its own,
with and without. A figure is the time with the change by the time without it: below 1, the change is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from loops import Habits, Size, straight
from measure import Seconds, arguments, device_of, machine, publish, race, ratio, short, spread, tell, wait
from sr_pipeline.allocator import kept_memory
from sr_pipeline.precision import Mode, is_fast_in_bf16
from step import QUICK, Ours, default_mode, synthetic

BASE = "as it is"
FP32 = Mode("fp32")
CHANGES: dict[str, tuple[Mode, Habits]] = {
    BASE: (FP32, Habits()),
    "Adam not fused": (FP32, Habits(fused_adam=False)),
    "VGG's weights not frozen": (FP32, Habits(freeze_vgg=False)),
    "D's weights not frozen in G's turn": (FP32, Habits(freeze_d=False)),
    "VGG over HR and SR in one batch": (FP32, Habits(vgg_in_one_batch=True)),
    "channels_last": (Mode("fp32", "channels_last"), Habits()),
}
IN_BF16: dict[str, tuple[Mode, Habits]] = {
    "bf16": (Mode("bf16"), Habits()),
    "bf16, channels_last": (Mode("bf16", "channels_last"), Habits()),
}


def steps_of(options: argparse.Namespace, size: Size, device: torch.device) -> Seconds:
    changes = CHANGES | (IN_BF16 if is_fast_in_bf16(device) else {})
    batches = synthetic(size, device)
    loops = {name: straight(size, mode, device, True, habits) for name, (mode, habits) in changes.items()}
    calls: dict[str, Callable[[], Any]] = {
        name: partial(lambda loop: loop(next(batches)), loop) for name, loop in loops.items()
    }
    if device.type == "cuda":
        calls["cuDNN tries its algorithms"] = partial(tried, calls[BASE])
    return race(calls, options.rounds, 0.3 if device.type == "cuda" else 0.0, device)


def tried(call: Callable[[], Any]) -> None:
    """With the algorithm of each convolution that was the fastest at its first call."""
    torch.backends.cudnn.benchmark = True
    try:
        call()
    finally:
        torch.backends.cudnn.benchmark = False


def kept(options: argparse.Namespace) -> Seconds:
    """Seconds of the engine's step with memory kept and without, in turn."""
    command = [sys.executable, __file__, "--device", options.device, "--threads", str(options.threads)]
    command += ["--quick"] if options.quick else []
    seconds: Seconds = {"memory kept": [], "given back": []}
    for turn in range(max(2, options.rounds // 2)):
        for name in sorted(seconds, reverse=bool(turn % 2)):
            call = [*command, "--one", name]
            done = subprocess.run(call, capture_output=True, text=True, check=True)
            seconds[name].append(json.loads(done.stdout))
            tell(f"round {turn + 1}: {name:<34} {1000 * seconds[name][-1]:10.2f} ms")
    return seconds


def one(keep: bool, size: Size, device: torch.device) -> float:
    """The median of a few steps."""
    took = []
    with kept_memory() if keep else nullcontext():
        ours, batches = Ours(size, default_mode(device), device, True), synthetic(size, device)
        for _ in range(6):
            began = time.perf_counter()
            ours(next(batches))
            wait(device)
            took.append(time.perf_counter() - began)
    return statistics.median(took[2:])


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device, size = device_of(options), QUICK if options.quick else Size()
    options.rounds = min(options.rounds, 2) if options.quick else options.rounds
    if options.one:
        print(json.dumps(one(options.one == "memory kept", size, device)))
        return 0
    seconds = steps_of(options, size, device)
    levers = {name: ratio(seconds, name, BASE) for name in seconds if name != BASE}
    if device.type == "cpu":
        processes = kept(options)
        seconds |= processes
        levers["memory kept"] = ratio(processes, "memory kept", "given back")
    result = {
        "levers": levers,
        "ms": {name: spread([short(1000 * s) for s in took]) for name, took in seconds.items()},
        "size": vars(size),
        "rounds": options.rounds,
        "machine": machine(device),
    }
    publish("levers", result, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
