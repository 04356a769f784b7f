"""How fast is a picture enlarged? Ours beside the same network called whole, and beside spandrel's call.

    python benchmarks/inference.py [--size 512] [--rounds 5] [--json] [--quick] [--out FOLDER]

The paper's SRResNet of 16 blocks runs as ``enlarge`` runs it and as a plain eager call in eval mode without gradients;
an RRDBNet of 6 blocks (Real-ESRGAN's anime model) runs as ``enlarge`` and as spandrel's own call of the same weights:
spandrel knows no SRResNet with BatchNorm. All get the same picture in float32, in turn, one after the other, so that
what else the machine does meets all alike. A ratio is the median over the rounds of the seconds of the other call by
ours of the same round: above 1, ours is faster. --quick takes 128 x 128 and smaller networks; it exits with 1 where a
ratio is under 1.25.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from measure import Seconds, arguments, device_of, machine, publish, race, ratio, spread, tell
from sr_nodes.generators import generate
from sr_nodes.inference import prepared
from sr_nodes.rrdbnet import rrdbnet
from sr_nodes.srresnet import srresnet
from sr_nodes.tiles import enlarge
from sr_nodes.types import Generator
from sr_pipeline.precision import is_fast_in_bf16

GOAL = 1.25
PAIRS = {
    "ratio_eager": ("srresnet_eager", "srresnet_enlarge"),
    "ratio_eager_bf16": ("srresnet_eager", "srresnet_enlarge_bf16"),
    "ratio_spandrel": ("rrdbnet_spandrel", "rrdbnet_enlarge"),
}
Calls = dict[str, Callable[[], Tensor]]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = device_of(options)
    size, rounds = (128, 3) if options.quick else (options.size, options.rounds)
    rng = torch.Generator().manual_seed(0)
    lr = torch.rand(3, size, size, generator=rng)
    ours, esrgan = trained(srresnet(rng=rng)), rrdbnet(blocks=2 if options.quick else 6, rng=rng)
    calls, made = contestants(ours.to(device), esrgan.to(device), lr, device), dict[str, Tensor]()
    seconds = race({name: noted(made, name, call) for name, call in calls.items()}, rounds, device=device)
    result = summary(seconds, made) | {"size": size, "rounds": rounds, "machine": machine(device)}
    publish("inference", result, options)
    return 0 if all(result[name] >= GOAL for name in ("ratio_eager", "ratio_spandrel") if name in result) else 1


def noted(made: dict[str, Tensor], name: str, call: Callable[[], Tensor]) -> Callable[[], None]:
    """The call, whose result is kept: the contestants are compared."""

    def noting() -> None:
        made[name] = call()

    return noting


def trained(generator: Generator) -> Generator:
    """The generator with statistics of BatchNorm as after training: not zeros and ones, which fold to nothing."""
    rng = torch.Generator().manual_seed(1)
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=rng) / 10
            module.running_var = torch.rand(module.num_features, generator=rng) + 0.5
    return generator


def contestants(ours: Generator, esrgan: Generator, lr: Tensor, device: torch.device) -> Calls:
    """What is timed: from a float32 picture on the host to one."""
    calls = {"srresnet_eager": eager(ours, lr, device), "srresnet_enlarge": enlarged(ours, lr)}
    if is_fast_in_bf16(device):
        calls["srresnet_enlarge_bf16"] = enlarged(ours, lr, "bf16")
    try:
        spandrel = importlib.import_module("spandrel")
    except ImportError:
        tell("spandrel is not measured: pip install 'sr-pipeline[spandrel]'")
        return calls
    theirs: Any = spandrel.ModelLoader(device=device).load_from_state_dict(dict(esrgan.state_dict()))
    calls["rrdbnet_spandrel"] = lambda: theirs(lr[None].to(device))[0].cpu()
    return calls | {"rrdbnet_enlarge": enlarged(esrgan, lr)}


def eager(generator: Generator, lr: Tensor, device: torch.device) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return generate(generator, lr[None].to(device))[0].cpu()

    return call


def enlarged(generator: Generator, lr: Tensor, precision: Any = "fp32") -> Callable[[], Tensor]:
    ready = prepared(generator, precision)
    return lambda: enlarge(ready, lr, precision=precision)


def summary(seconds: Seconds, sr: dict[str, Tensor]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, (other, ours) in PAIRS.items():
        if other in seconds and ours in seconds:
            found = ratio(seconds, other, ours)
            made[name], made[f"{name}_spread"] = found["median"], found
            made[f"{name}_largest_difference"] = float(f"{(sr[other] - sr[ours]).abs().max():.1e}")
    return made | {"seconds": {name: spread(took) for name, took in seconds.items()}}


if __name__ == "__main__":
    sys.exit(main())
