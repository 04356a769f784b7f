"""What `make demo` promises, by the commands that it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
def test_demo(tmp_path: Path) -> None:
    """The content loss falls, and the upscaled photograph is not worse than bicubic's: demo.py exits with 0."""
    run("-m", "sr_pipeline", "run", "quickstart", "--run-dir", tmp_path / "train")
    model = f"generator.path={tmp_path / 'train' / 'generator.safetensors'}"
    run("-m", "sr_pipeline", "run", "compare", "--run-dir", tmp_path / "upscale", "--set", model)
    told = run(ROOT / "benchmarks" / "demo.py", tmp_path)
    for line in told.splitlines()[-4:]:
        assert Path(line.split()[-1]).exists(), line


def test_demo_without_its_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "demo.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no run of the demo in" in done.stderr
