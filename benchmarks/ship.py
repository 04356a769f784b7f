"""Ship what a training made: its weights with what they are, its run's record, and its curves.

    python benchmarks/ship.py RUN NAME [--data ../shared/data] [--data-name TEXT] [--between NAME --share 0.7]

RUN is a run's folder whose graph exported generator.safetensors. That becomes weights/NAME.safetensors, with
the figures of Set5 and Set14, the graph's hash, the seed and the number of updates in its metadata. docs/runs/NAME gets
graph, record, metrics, events, evaluation.json and curves.png. Checkpoints and pictures of the photographs stay.
--between: the weights are --share of RUN's and the rest of those that ship under that name, where RUN started (network
interpolation: Wang et al., ESRGAN, ECCVW 2018, section 3.4).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sr_pipeline.files import written_beside
from sr_pipeline.sinks import read_metrics

HERE = Path(__file__).resolve().parents[1]
WEIGHTS = HERE / "nodes" / "sr_nodes" / "weights"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, default=HERE.parent / "shared" / "data")
    parser.add_argument("--data-name", default="75 photographs (CC0, CC BY 4.0, public domain, Unsplash, Pexels)")
    parser.add_argument("--between", help="weights that ship, from which RUN started")
    parser.add_argument("--share", type=float, default=1.0, help="of RUN's weights, beside those")
    options = parser.parse_args()
    made = options.run / "generator.safetensors"
    rows = read_metrics(options.run / "metrics.csv")
    graph = (options.run / "graph.json").read_bytes()
    record = json.loads((options.run / "run.json").read_text())
    with safe_open(made, "pt") as file:
        metadata = dict(file.metadata())
    training: dict[str, Any] = {
        "graph_sha256": hashlib.sha256(graph).hexdigest(),
        "data": options.data_name,
        "updates": max(step for step, _, _ in rows),
        "seed": record.get("settings", record)["seed"],
    }
    weights = load_file(made)
    if options.between:
        training |= {"between": options.between, "share": options.share}
        weights = mixed(load_file(WEIGHTS / f"{options.between}.safetensors"), weights, options.share)
    target = WEIGHTS / f"{options.name}.safetensors"
    save_file(weights, target, metadata)
    figures = evaluated(target, [options.data / "testsets" / name for name in ("Set5", "Set14")])
    training["psnr_y"] = {name: round(found["psnr_y"], 3) for name, found in figures["sets"].items()}
    with written_beside(target) as beside:
        save_file(weights, beside, {**metadata, "training": json.dumps(training)})
    out = HERE / "docs" / "runs" / options.name
    out.mkdir(parents=True, exist_ok=True)
    for name in ("graph.json", "metrics.csv", "events.jsonl"):
        shutil.copyfile(options.run / name, out / name)
    record.pop("started_in", None)  # a place of this machine
    (out / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    draw(rows, options.name, out / "curves.png")
    print(json.dumps(training, indent=2))
    return 0


def mixed(first: dict[str, Tensor], second: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights and statistics on the line from one network to the other."""
    return {
        name: first[name].lerp(tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in second.items()
    }


def evaluated(weights: Path, testsets: list[Path]) -> dict[str, Any]:
    """What ``sr-pipeline evaluate`` measures."""
    command = [sys.executable, "-m", "sr_pipeline", "evaluate", "--model", str(weights), "--json", "--testset"]
    done = subprocess.run([*command, *map(str, testsets)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"model": weights.name}


def draw(rows: list[tuple[int, str, float]], name: str, path: Path) -> None:
    """Each loss, its mean over 2 % of the run, and the PSNR of the validation pictures."""
    from matplotlib.figure import Figure

    names = sorted({name for _, name, _ in rows if name.endswith("_loss") or name == "validate/psnr_y"})
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axes, shown in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        steps, values = zip(*((step, value) for step, row, value in rows if row == shown), strict=True)
        width = max(len(steps) // 50, 1)
        means = [sum(values[n : n + width]) / width for n in range(len(values) - width + 1)]
        axes.plot(steps[width - 1 :], means)
        axes.set(title=shown, xlabel="step")
        axes.grid(alpha=0.3)
    figure.suptitle(name)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
