"""Does bf16 cost quality? The PSNR that a SRResNet reaches on Set5 in fp32 and in bf16, three seeds each.

    python benchmarks/precision_psnr.py [--steps 10000] [--minutes 9] [--run-dir runs/precision] [--json] [--quick]

It trains the SRResNet of benchmarks/learns.json with BatchNorm (4 blocks, 32 channels, batch 8, crop 64, L1, Adam 1e-3
falling to zero by a cosine), in channels_last both ways: seeds 0, 1, 2 in fp32 and in bf16, six runs with folders of
their own. It stops after ``--minutes`` and exits with 75; called again, it goes on where it stopped. At the end it
prints the six figures and exits with 1 where the means differ by more than 0.05 dB and more than the standard error of
the fp32 seeds. --quick does 20 steps of each on the samples, which proves nothing but that it runs.

Where the device has no units for bf16, those for float32 do its convolutions and matrix products (``Software``): the
numbers are bf16's, the speed is not. ``--only bf16-1`` does one of the six, so that several can run side by side.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from measure import DATA, HERE, arguments, device_of, machine, publish, tell
from sr_pipeline.graph import Graph
from sr_pipeline.precision import is_fast_in_bf16
from sr_pipeline.run import run
from sr_pipeline.sinks import read_metrics

SEEDS, PRECISIONS = (0, 1, 2), ("fp32", "bf16")
ALLOWED = 0.05
TO_BE_CONTINUED = 75
PRODUCTS = re.compile(r"aten::(convolution|convolution_backward|mm|addmm|bmm|baddbmm)$")


class Software(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, products of bfloat16 are what units for it compute: exact products, summed in float32, rounded then.

    Float32 holds each product of two numbers of 8 bits exactly.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = next((a for a in args if isinstance(a, Tensor)), None)
        if first is None or first.dtype != torch.bfloat16 or not PRODUCTS.match(func.name().partition(".")[0]):
            return func(*args, **(kwargs or {}))
        made = func(*tree_map_only(Tensor, Tensor.float, args), **(kwargs or {}))
        return tree_map_only(Tensor, Tensor.bfloat16, made)


def units(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What computes in this precision."""
    software = precision == "bf16" and not is_fast_in_bf16(device)
    return Software() if software else nullcontext()  # type: ignore[no-untyped-call]


def trained(options: argparse.Namespace, precision: str, seed: int, deadline: float) -> float | None:
    """PSNR on Set5's Y in dB after the last step; None where time ran out before it."""
    folder = options.run_dir / f"{precision}-{seed}"
    done = folder / "psnr.txt"
    if not done.is_file():
        with units(precision, torch.device(options.device)):
            result = run(
                training(options),
                device=options.device,
                precision=precision,
                memory_format="channels_last",
                seed=seed,
                run_dir=folder,
                resume=(folder / "run.json").is_file(),
                stop=lambda: time.monotonic() > deadline,
            )
        tell(f"{precision}, seed {seed}: {result.step} of {options.steps} steps")
        if result.interrupted:
            return None
        found = [value for _, name, value in read_metrics(folder / "metrics.csv") if name == "validate/psnr_y"]
        done.write_text(repr(found[-1]))
    return float(done.read_text())


def training(options: argparse.Namespace) -> Graph:
    graph = Graph.load(HERE / "learns.json")
    graph.nodes["photos"].inputs["folder"] = (
        str(options.data / "photos") if not options.quick else "sr_nodes:samples/train"
    )
    graph.nodes["set5"].inputs["folder"] = str(options.data / "testsets" / "Set5")
    if options.quick:
        graph.nodes["set5"].inputs |= {"folder": "sr_nodes:samples/test", "crop": 128}
    graph.nodes["generator"].inputs["batch_norm"] = True
    graph.nodes["hr"].inputs["steps"] = graph.nodes["rate"].inputs["steps"] = options.steps
    graph.nodes["validate"].inputs["every"] = graph.nodes["export"].inputs["every"] = 0
    del graph.nodes["preview"]
    return graph


def summary(psnr: dict[str, list[float]]) -> dict[str, Any]:
    """The means, what lies between them, and whether that is little."""
    means = {name: statistics.mean(found) for name, found in psnr.items()}
    error = statistics.stdev(psnr["fp32"]) / len(SEEDS) ** 0.5
    difference = means["bf16"] - means["fp32"]
    return {
        "psnr_y": {name: [round(value, 4) for value in found] for name, found in psnr.items()},
        "mean": {name: round(value, 4) for name, value in means.items()},
        "difference_db": round(difference, 4),
        "standard_error_fp32_db": round(error, 4),
        "within": difference >= -max(ALLOWED, error),
    }


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/precision"))
    parser.add_argument("--only", metavar="PRECISION-SEED", help="do this one of the six")
    options = parser.parse_args()
    options.steps = 20 if options.quick else options.steps
    device, deadline = device_of(options), time.monotonic() + 60 * options.minutes
    psnr: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for seed in SEEDS:
        for precision in PRECISIONS:
            if options.only not in (None, f"{precision}-{seed}"):
                continue
            found = trained(options, precision, seed, deadline)
            if found is None:
                tell("not done; call it again to go on")
                return TO_BE_CONTINUED
            psnr[precision].append(found)
    if options.only:
        return 0
    made = summary(psnr) | {"bf16_by": "software" if not is_fast_in_bf16(device) else "units"}
    publish(
        "precision_psnr", made | {"steps": options.steps, "quick": options.quick, "machine": machine(device)}, options
    )
    return 0 if made["within"] or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
