"""All measurements of a machine: the GPU's tests, then each benchmark, into benchmarks/results/<name>.<machine>.json.

    python benchmarks/everything.py [--device cuda] [--minutes 9]

It begins nothing after ``--minutes``, and each part is shorter than that. What has its result is passed over, so that
a call after a call does all of it: exit code 75 says that something is left, 1 that something failed or missed its goal
(the results say what), 0 that all is there. Remove a result to have it measured anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from measure import HERE, machine, slug, tell

RESULTS = HERE / "results"
TO_BE_CONTINUED = 75
PARTS: dict[str, list[str]] = {  # the most telling first: a lent machine's time is short
    "step-srgan": ["step.py", "--network", "srgan", "--name", "step-srgan"],
    "step-srresnet": ["step.py", "--network", "srresnet", "--name", "step-srresnet"],
    "replay-srgan": ["replay.py", "--network", "srgan"],
    "replay-srresnet": ["replay.py", "--network", "srresnet"],
    "data": ["data.py"],
    "levers": ["levers.py"],
    "inference": ["inference.py", "--rounds", "3"],
    "overlap": ["overlap.py", "--pictures", "6"],
    "safety": ["safety.py", "--rounds", "14"],
    "scaling-srresnet": ["scaling.py", "--network", "srresnet", "--name", "scaling-srresnet"],
    "scaling-srgan": ["scaling.py", "--network", "srgan", "--name", "scaling-srgan"],
    "overhead": ["overhead.py"],
    "precision_psnr": ["precision_psnr.py"],
}
CUDA_ALONE = {"gpu-tests", "replay-srgan", "replay-srresnet"}


def tests(path: Path) -> int:
    """The tests that need a GPU; their last line is their result. Files without any are left out, and what they import
    need not be there; so is a plugin that warns of itself."""
    marked = [str(file) for file in (HERE.parent / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text("utf-8")]
    without = ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    command = [sys.executable, "-m", "pytest", "-q", *without, "-m", "gpu", *marked]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    tell(done.stdout[-2000:])
    if done.returncode == 0:
        path.write_text(json.dumps({"tests": done.stdout.strip().splitlines()[-1]}, indent=2) + "\n", encoding="utf-8")
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=9)
    options = parser.parse_args()
    device, began = torch.device(options.device), time.monotonic()
    RESULTS.mkdir(exist_ok=True)
    paths = {name: RESULTS / f"{name}.{slug(machine(device))}.json" for name in ("gpu-tests", *PARTS)}
    if device.type != "cuda":
        paths = {name: path for name, path in paths.items() if name not in CUDA_ALONE}
    failed = False
    for name, path in paths.items():
        if path.is_file():
            continue
        left = 60 * options.minutes - (time.monotonic() - began)
        if left < 0:
            tell(f"{name} and what follows is left; call it again")
            return TO_BE_CONTINUED
        tell(f"== {name}")
        code = tests(path) if name == "gpu-tests" else part(PARTS[name], options.device)
        if code == TO_BE_CONTINUED:
            return code
        failed = failed or code != 0
    return int(failed)


def part(words: list[str], device: str) -> int:
    command = [sys.executable, str(HERE / words[0]), *words[1:], "--device", device, "--out", str(RESULTS)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
