"""Ctrl-C for real: the step is finished, the state is saved, the exit code is 130, and --resume goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sr_pipeline.sinks import read_metrics

SETTINGS = {
    "generator": "blocks=1 channels=4",
    "discriminator": "crop=32 channels=2 dense=4",
    "hr": "size=32 batch=2",
    "vgg": "layer=11",
    "pairs": "crop=32",
}
TINY = [word for node, inputs in SETTINGS.items() for i in inputs.split() for word in ("--set", f"{node}.{i}")]


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "sr_pipeline", "run", "train_srgan", "--run-dir", str(folder), *TINY, *more]


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2)])
def test_signal_saves_and_resume_goes_on(number: signal.Signals, code: int, workers: int, tmp_path: Path) -> None:
    """As a terminal, torchrun or SLURM sends it: to all processes of the group."""
    folder = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = command(folder, "--set", f"hr.workers={workers}")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        for line in lines:
            if re.match(r"step \d+/200000", line):
                break
        os.killpg(process.pid, number)
        rest = "".join(lines)
        assert process.wait(timeout=60) == code
    stopped = re.search(r"interrupted after step (\d+)", rest)
    assert stopped, rest
    step = int(stopped[1])
    hint = re.search(r"^go on with: sr-pipeline (.*)$", rest, re.MULTILINE)
    assert hint, rest
    assert not (folder / "generator.safetensors").exists()

    again = [sys.executable, "-m", "sr_pipeline", *shlex.split(hint[1]), "--steps", str(step + 3)]
    again = [sys.executable, "-m", "sr_pipeline", *shlex.split(hint[1]), "--steps", str(step + 3)]
    resumed = subprocess.run(again, capture_output=True, text=True, env=environment, check=True)
    assert json.loads((folder / "graph.json").read_text())["hr"]["inputs"]["size"] == 32  # as --set had it
    assert f"resumed from step {step}\n" in resumed.stdout
    assert (folder / "generator.safetensors").exists()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["type"] == "resumed"] == [step]
    logged = [s for s, name, _ in read_metrics(folder / "metrics.csv") if name == "content_loss"]
    assert logged == [*list(range(10, step + 3, 10)), step + 3]


def test_interrupt_before_the_first_step_can_be_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(command(folder), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in iter(process.stdout.readline, ""):
            if line.startswith("setup: "):
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=60) == 130
    done = subprocess.run(command(folder, "--resume", "--steps", "1"), capture_output=True, text=True, check=True)
    assert "done after step 1" in done.stdout


def test_interrupt_of_a_graph_without_steps(tmp_path: Path) -> None:
    """It stops after the node that runs, and says that there was nothing to save."""
    words = [sys.executable, "-m", "sr_pipeline", "run", "compare", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in iter(process.stdout.readline, ""):
            if line.startswith("setup: hr"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 130
    assert "there was no state to save" in rest
    assert not (tmp_path / "run" / "comparison.png").exists()
