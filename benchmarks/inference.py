"""How fast is a picture enlarged? Ours beside the same network called whole, and beside spandrel's call.

    python benchmarks/inference.py [--size 512] [--rounds 5] [--threads N] [--json] [--quick]

The paper's SRResNet of 16 blocks runs as ``enlarge`` runs it and as a plain eager call in eval mode without gradients;
an RRDBNet of 6 blocks (Real-ESRGAN's anime model) runs as ``enlarge`` and as spandrel's own call of the same weights:
spandrel knows no SRResNet with BatchNorm. All get the same picture in float32, in turn, one after the other, so that
what else the machine does meets all alike. A ratio is the median over the rounds of the seconds of the other call by
ours of the same round: above 1, ours is faster. It writes inference.json beside itself, except with --quick, which
takes 128 x 128 and smaller networks; it exits with 1 where a ratio is under 1.25.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_nodes.generators import generate
from sr_nodes.inference import prepared
from sr_nodes.rrdbnet import rrdbnet
from sr_nodes.srresnet import srresnet
from sr_nodes.tiles import enlarge
from sr_nodes.types import Generator

HERE = Path(__file__).resolve().parent
GOAL = 1.25


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print the result as JSON, nothing else")
    parser.add_argument("--quick", action="store_true", help="a small picture; ends within a minute")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, rounds = (128, 3) if options.quick else (options.size, options.rounds)
    rng = torch.Generator().manual_seed(0)
    lr = torch.rand(3, size, size, generator=rng)
    calls = contestants(trained(srresnet(rng=rng)), rrdbnet(blocks=2 if options.quick else 6, rng=rng), lr)
    seconds, made = race(calls, rounds, talk=not options.json)
    result = summary(seconds, made) | {
        "size": size,
        "rounds": rounds,
        "machine": f"{platform.machine()}, {options.threads} threads, cpu",
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=2)
    if not options.quick:
        (HERE / "inference.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(result[name] >= GOAL for name in ("ratio_eager", "ratio_spandrel") if name in result) else 1


def trained(generator: Generator) -> Generator:
    """The generator with statistics of BatchNorm as after training: not zeros and ones, which fold to nothing."""
    rng = torch.Generator().manual_seed(1)
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=rng) / 10
            module.running_var = torch.rand(module.num_features, generator=rng) + 0.5
    return generator


def contestants(ours: Generator, esrgan: Generator, lr: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is timed: from a float32 picture on the host to one."""
    calls = {"srresnet_eager": eager(ours, lr), "srresnet_enlarge": enlarged(ours, lr)}
    calls["srresnet_enlarge_bf16"] = enlarged(ours, lr, "bf16")
    try:
        spandrel = importlib.import_module("spandrel")
    except ImportError:
        print("spandrel is not measured: pip install 'sr-pipeline[spandrel]'", file=sys.stderr)
        return calls
    theirs: Any = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(esrgan.state_dict()))
    calls["rrdbnet_spandrel"] = lambda: theirs(lr[None])[0]
    return calls | {"rrdbnet_enlarge": enlarged(esrgan, lr)}


def eager(generator: Generator, lr: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return generate(generator, lr[None])[0]

    return call


def enlarged(generator: Generator, lr: Tensor, precision: Any = "fp32") -> Callable[[], Tensor]:
    ready = prepared(generator, precision)
    return lambda: enlarge(ready, lr, precision=precision)


def race(
    calls: dict[str, Callable[[], Tensor]], rounds: int, talk: bool
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each call in each round, after one call each that is not counted; and what each made."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    made: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            made[name] = call()
            took = time.perf_counter() - began
            if turn:
                seconds[name].append(took)
            if talk:
                print(f"round {turn}: {name:<22} {took:7.2f} s", flush=True)
    return seconds, made


def summary(seconds: dict[str, list[float]], sr: dict[str, Tensor]) -> dict[str, Any]:
    pairs = {
        "ratio_eager": ("srresnet_eager", "srresnet_enlarge"),
        "ratio_eager_bf16": ("srresnet_eager", "srresnet_enlarge_bf16"),
        "ratio_spandrel": ("rrdbnet_spandrel", "rrdbnet_enlarge"),
    }
    made: dict[str, Any] = {}
    for ratio, (other, ours) in pairs.items():
        if other in seconds:
            rounds = [theirs / mine for theirs, mine in zip(seconds[other], seconds[ours], strict=True)]
            made[ratio] = round(statistics.median(rounds), 2)
            made[f"{ratio}_range"] = [round(min(rounds), 2), round(max(rounds), 2)]
            made[f"{ratio}_largest_difference"] = float(f"{(sr[other] - sr[ours]).abs().max():.1e}")
    return made | {"seconds": {name: round(statistics.median(took), 2) for name, took in seconds.items()}}


if __name__ == "__main__":
    sys.exit(main())
