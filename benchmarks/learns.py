"""Does it learn? Train a small SRResNet on photographs, and measure it on Set5 beside bicubic.

    python benchmarks/learns.py [--steps 10000] [--data ../shared/data] [--export FILE]

It runs benchmarks/learns.json (4 blocks, 32 channels, batch 8, crop 64, L1, Adam 1e-3 falling by a cosine) through the
engine, writes learns.result.json and learns.curve.png into the run's folder (or --out), and exits with 1 if the gain
over bicubic is under 1 dB. A run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from pathlib import Path

import torch

from sr_nodes.degradation import bicubic_upscale
from sr_nodes.metrics import psnr
from sr_nodes.pairs import image_pairs
from sr_pipeline.checkpoint import latest
from sr_pipeline.console import console_for
from sr_pipeline.graph import Graph
from sr_pipeline.run import run
from sr_pipeline.sinks import read_metrics

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/learns"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--export", type=Path, help="copy the trained generator there")
    parser.add_argument("--out", type=Path, help="folder of the result and the curve; the run's by default")
    options = parser.parse_args()
    graph = Graph.load(HERE / "learns.json")
    graph.nodes["photos"].inputs["folder"] = str(options.data / "photos")
    graph.nodes["set5"].inputs["folder"] = str(options.data / "testsets" / "Set5")
    graph.nodes["rate"].inputs["steps"] = options.steps
    began = time.monotonic()
    with console_for(sys.stdout) as console:
        result = run(
            graph,
            steps=options.steps,
            device=options.device,
            run_dir=options.run_dir,
            resume=latest(options.run_dir / "checkpoints") is not None,
            sinks=[console],
        )
    seconds = time.monotonic() - began
    curve = [
        (step, value) for step, name, value in read_metrics(result.run_dir / "metrics.csv") if name == "validate/psnr_y"
    ]
    pairs = image_pairs(str(options.data / "testsets" / "Set5"))
    bicubic = sum(psnr(bicubic_upscale(p.lr), p.hr) for p in pairs) / len(pairs)
    out = options.out or result.run_dir
    summary = {
        "set5_psnr_y": round(curve[-1][1], 3),
        "set5_psnr_y_bicubic": round(bicubic, 3),
        "gain_db": round(curve[-1][1] - bicubic, 3),
        "steps": options.steps,
        "seconds_of_last_session": round(seconds, 1),
        "cpu_seconds_of_last_session": round(time.process_time(), 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {options.device}",
        "torch": torch.__version__,
        "curve": [[step, round(value, 3)] for step, value in curve],
    }
    (out / "learns.result.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(curve, bicubic, out / "learns.curve.png")
    if options.export:
        shutil.copyfile(result.run_dir / "generator.safetensors", options.export)
    print(json.dumps({k: v for k, v in summary.items() if k != "curve"}, indent=2))
    return 0 if summary["gain_db"] >= 1 else 1


def draw(curve: list[tuple[int, float]], bicubic: float, path: Path) -> None:
    """PSNR against steps, with bicubic's as a line; nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no curve drawn: pip install 'sr-pipeline[plot]'")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([s for s, _ in curve], [v for _, v in curve], label="small SRResNet")
    axes.axhline(bicubic, color="gray", linestyle="--", label=f"bicubic {bicubic:.2f} dB")
    axes.set(xlabel="step", ylabel="PSNR of Set5, dB (Y)", title=f"{curve[-1][1]:.2f} dB after {curve[-1][0]} steps")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
