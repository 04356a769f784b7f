"""How do time and memory of a step grow, and what share of the machine's best rate does a step reach?

    python benchmarks/scaling.py [--network srresnet|srgan|both] [--json] [--quick] [--out benchmarks/results]

From the paper's sizes, one of batch, crop and blocks is changed at a time; each point is a process of its own that runs
the engine's step in the default mode. The roofline: floating-point operations of the paper's step, counted by torch
while it runs (2 a multiplication and addition), by its time, beside the rate of large matrix products and the best of
the step's own convolutions, forward and in their layout, both in the precision of the step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from loops import Size
from measure import arguments, device_of, machine, peak_mib, publish, race, short, tell, wait
from sr_pipeline.allocator import kept_memory
from sr_pipeline.precision import Mode
from step import QUICK, Ours, default_mode, synthetic

CONVOLUTIONS = {  # channels in and out, side of the map and kernel: where the step's operations are
    "generator block": (64, 64, 24, 3),
    "generator upsampling": (64, 256, 48, 3),
    "generator last": (64, 3, 96, 9),
    "discriminator 128": (128, 128, 48, 3),
    "VGG 64": (64, 64, 96, 3),
    "VGG 256": (256, 256, 24, 3),
    "VGG 512": (512, 512, 12, 3),
}


def points(size: Size, quick: bool) -> list[Size]:
    """The size itself first, then with one of its three numbers changed."""
    changes: dict[str, tuple[int, ...]] = {"batch": (1, 4, 8, 32), "crop": (48, 64, 128, 192), "blocks": (4, 8, 32)}
    if quick:
        changes = {"batch": (8,), "crop": (64,), "blocks": (8,)}
    return [size, *(replace(size, **{name: number}) for name, numbers in changes.items() for number in numbers)]


def point(size: Size, gan: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a step, and peak memory, of a process of its own."""
    command = [sys.executable, __file__, "--device", options.device, "--threads", str(options.threads)]
    command += ["--one", json.dumps([vars(size), gan, 2 if options.quick else 5])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    tell(f"{'srgan' if gan else 'srresnet'} {vars(size)}: {found}")
    return vars(size) | found


def one(size: Size, gan: bool, times: int, device: torch.device) -> dict[str, Any]:
    ours, batches = Ours(size, default_mode(device), device, gan), synthetic(size, device)
    inner = 20 if device.type == "cuda" else 1
    took = []
    for turn in range(times + 1):
        wait(device)
        began = time.perf_counter()
        for _ in range(inner if turn else 1):
            ours(next(batches))
        wait(device)
        took.append((time.perf_counter() - began) / (inner if turn else 1))
    return {"ms": short(1000 * statistics.median(took[1:])), "peak_mib": round(peak_mib(device))}


def operations(size: Size, gan: bool, device: torch.device) -> int:
    """Floating-point operations of one step, in products and convolutions, both ways."""
    ours, batches = Ours(size, Mode(), device, gan), synthetic(size, device)
    with FlopCounterMode(display=False) as counter:
        ours(next(batches))
    return int(counter.get_total_flops())


def rates(size: Size, mode: Mode, device: torch.device, quick: bool) -> dict[str, float]:
    """GFLOP/s of matrix products, and of the step's convolutions at this batch."""
    dtype = torch.bfloat16 if mode.precision == "bf16" else torch.float32
    layout = torch.channels_last if mode.memory_format == "channels_last" else torch.contiguous_format
    side = 8192 if device.type == "cuda" else 512 if quick else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    calls = {"matrix product": lambda: a @ a}
    work = {"matrix product": 2.0 * side**3}
    for name, (inputs, outputs, full, kernel) in CONVOLUTIONS.items():
        x = torch.randn(size.batch, inputs, full, full, device=device, dtype=dtype).to(memory_format=layout)
        conv = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, device=device, dtype=dtype)
        conv = conv.to(memory_format=layout)
        calls[name] = lambda conv=conv, x=x: conv(x)  # type: ignore[misc]
        work[name] = 2.0 * size.batch * full**2 * kernel**2 * inputs * outputs
    with torch.no_grad(), mode.products(device):
        seconds = race(calls, 2 if quick else 5, 0.2, device)
    return {name: short(work[name] / min(took) / 1e9) for name, took in seconds.items()}


def roofline(flops: int, ms: float, found: dict[str, float]) -> dict[str, float]:
    """The share of the best rates that a step reaches."""
    convolutions = max(rate for name, rate in found.items() if name != "matrix product")
    reached = flops / 1e9 / (ms / 1000)
    return {
        "gflop": short(flops / 1e9),
        "gflop_per_s": short(reached),
        "share_of_matrix_products": short(reached / found["matrix product"]),
        "share_of_best_convolution": short(reached / convolutions),
        "floor_ms": short(flops / 1e6 / max(found.values())),
    }


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--network", choices=["srresnet", "srgan", "both"], default="both")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = device_of(options)
    if options.one:
        size, gan, times = options.one
        with kept_memory() if device.type == "cpu" else nullcontext():  # as `run` has it
            print(json.dumps(one(Size(**size), gan, times, device)))
        return 0
    size, mode = QUICK if options.quick else Size(), default_mode(device)
    nets = ("srresnet", "srgan") if options.network == "both" else (options.network,)
    found = rates(size, mode, device, options.quick)
    made: dict[str, Any] = {}
    for net in nets:
        gan = net == "srgan"
        table = [point(p, gan, options) for p in points(size, options.quick)]
        made[net] = {"roofline": roofline(operations(size, gan, device), table[0]["ms"], found), "points": table}
    result = {
        "mode": str(mode),
        "networks": made,
        "gflop_per_s": found,
        "quick": options.quick,
        "machine": machine(device),
    }
    publish("scaling", result, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
