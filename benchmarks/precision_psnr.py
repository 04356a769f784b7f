"""Does bf16 cost quality? The PSNR that a SRResNet reaches on Set5 in fp32 and in bf16, three seeds each.

    python benchmarks/precision_psnr.py [--steps 10000] [--minutes 9] [--run-dir runs/precision] [--json] [--quick]

It trains the SRResNet of benchmarks/learns.json with BatchNorm (4 blocks, 32 channels, batch 8, crop 64, L1, Adam 1e-3
falling to zero by a cosine), in channels_last both ways: seeds 0, 1, 2 in fp32 and in bf16, six runs with folders of
their own. It stops after ``--minutes`` and exits with 75; called again, it goes on where it stopped. At the end it
prints the six figures and exits with 1 where the means differ by more than 0.05 dB and more than the standard error of
the fp32 seeds. --quick does 20 steps of each on the samples, which proves nothing but that it runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from measure import DATA, HERE, arguments, device_of, machine, publish, tell
from sr_pipeline.graph import Graph
from sr_pipeline.run import run
from sr_pipeline.sinks import read_metrics

SEEDS, PRECISIONS = (0, 1, 2), ("fp32", "bf16")
ALLOWED = 0.05
TO_BE_CONTINUED = 75


def trained(options: argparse.Namespace, precision: str, seed: int, deadline: float) -> float | None:
    """PSNR on Set5's Y in dB after the last step; None where time ran out before it."""
    folder = options.run_dir / f"{precision}-{seed}"
    done = folder / "psnr.txt"
    if not done.is_file():
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
    options = parser.parse_args()
    options.steps = 20 if options.quick else options.steps
    device, deadline = device_of(options), time.monotonic() + 60 * options.minutes
    psnr: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for seed in SEEDS:
        for precision in PRECISIONS:
            found = trained(options, precision, seed, deadline)
            if found is None:
                tell("not done; call it again to go on")
                return TO_BE_CONTINUED
            psnr[precision].append(found)
    made = summary(psnr)
    publish(
        "precision_psnr", made | {"steps": options.steps, "quick": options.quick, "machine": machine(device)}, options
    )
    return 0 if made["within"] or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
