"""A run of 60 steps that is killed, stopped, broken or out of room, and resumed, is the run that nobody disturbed.

The runs are of tests/faults/victims.py, in processes of their own. Random moments come from a seed, which is printed
and can be given as FAULTS_SEED.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import toys
from faults.victims import srgan
from sr_pipeline.checkpoint import latest, read, step_of

VICTIMS = Path(__file__).with_name("victims.py")
EVERY = 4

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")


class Zygote:
    """A process that has imported everything, and forks the others."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(VICTIMS.parents[1])}
        self.busy = False
        self.process = subprocess.Popen([sys.executable, VICTIMS], env=environment, **pipes)

    def start(self, folder: Path, **job: Any) -> int:
        """Begin a run, or go on with it, and return its process."""
        if self.busy:  # a test before failed
            self.end()
        resume = (folder / "run.json").exists()
        job |= {"folder": str(folder), "resume": resume, "log": str(folder.with_suffix(".log")), "every": EVERY}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        self.busy = True
        return int(self._line())

    def end(self) -> int:
        """The exit code of the run that was begun last."""
        self.busy = False
        return int(self._line())

    def run(self, folder: Path, **job: Any) -> int:
        self.start(folder, **job)
        return self.end()

    def _line(self) -> str:
        assert self.process.stdout
        return str(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with closing(Zygote()) as made:
        yield made


@pytest.fixture(scope="module")
def straight(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert zygote.run(folder) == 0, log(folder)
    return folder


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"FAULTS_SEED={seed}")  # noqa: T201 (shown where a test fails)
    return random.Random(seed)


def log(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def ticks(folder: Path) -> list[int]:
    """The steps that began, counted from 0: as many are done as the last says."""
    path = folder / "ticks"
    return list(map(int, path.read_text().split())) if path.exists() else []


def begun(folder: Path) -> int:
    return ticks(folder)[-1] if ticks(folder) else -1


def wait_for(reached: Any) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def is_writing(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".sr-pipeline-*.part"))


def resumed(folder: Path) -> list[int]:
    return [event["step"] for event in toys.events_of(folder) if event["type"] == "resumed"]


def content(path: Path) -> tuple[Any, dict[str, bytes]]:
    """A safetensors file's metadata without the digest, which knows the order of the file's parts, and its tensors."""
    with safe_open(path, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "digest"}
        return metadata, {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def is_as(folder: Path, straight: Path) -> None:
    """All state, weights, metrics and events are those of the other run, each step's once, and nothing lies about."""
    assert toys.state_of(folder) == toys.state_of(straight)
    assert content(folder / "generator.safetensors") == content(straight / "generator.safetensors")
    assert (folder / "metrics.csv").read_bytes() == (straight / "metrics.csv").read_bytes()
    scalars = [[e for e in toys.events_of(f) if e["type"] == "scalar"] for f in (folder, straight)]
    for events in scalars:
        for event in events:
            del event["time"]
    assert scalars[0] == scalars[1]
    assert [e["step"] for e in scalars[0] if e["name"] == "score"] == list(range(1, 61))
    (best,), (expected,) = ((f / "checkpoints").glob("best-*") for f in (folder, straight))
    assert (best.name, content(best)) == (expected.name, content(expected))
    assert not is_writing(folder)


def kill_at_random(zygote: Zygote, folder: Path, rng: random.Random, kills: int, workers: int) -> list[tuple[int, int]]:
    """Kill a run so often, each time further on; every second time while it saves. Steps done, and resumed from."""
    found, saving = [], 0
    for number, step in enumerate(sorted(rng.sample(range(6, 58), kills))):
        before = len(ticks(folder))
        process = zygote.start(folder, graph={"workers": workers})
        wait_for(lambda step=step, before=before: len(ticks(folder)) > before and begun(folder) >= step)
        if number % 2:
            wait_for(lambda: is_writing(folder) or begun(folder) == 59)
        time.sleep(rng.uniform(0, 0.003 if number % 2 else 0.1))
        os.kill(process, signal.SIGKILL)
        assert zygote.end() == -signal.SIGKILL, log(folder)
        saving += is_writing(folder)
        newest = latest(folder / "checkpoints")
        assert newest is not None
        found.append((begun(folder), step_of(newest)))
    assert zygote.run(folder, graph={"workers": workers}) == 0, log(folder)
    print(f"{saving} of {kills} while saving; (steps done, resumed from): {found}")  # noqa: T201
    assert resumed(folder) == [step for _, step in found]
    return found


@pytest.mark.parametrize(
    ("kills", "workers"),
    [
        (4, 0),
        (2, 2),
        pytest.param(20, 0, marks=pytest.mark.full),
        pytest.param(20, 2, marks=pytest.mark.full),
    ],
)
def test_kills(zygote: Zygote, straight: Path, tmp_path: Path, rng: random.Random, kills: int, workers: int) -> None:
    """What is lost is at most a cadence.

    A state counts once its file is whole, and steps go on meanwhile, but no further than to the next state: so where a
    slow disk meets quick steps it may be less than two.
    """
    folder = tmp_path / "run"
    found = kill_at_random(zygote, folder, rng, kills, workers)
    assert all(0 < step <= done + 1 <= step + 2 * EVERY for done, step in found), found
    assert sum(done - step > EVERY for done, step in found) <= kills // 4, found
    is_as(folder, straight)


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.full)])
def test_terminations(zygote: Zygote, straight: Path, tmp_path: Path, rng: random.Random, count: int) -> None:
    """The step that runs is done, and saved: nothing is done twice."""
    folder, done = tmp_path / "run", []
    for step in sorted(rng.sample(range(1, 57), count)):
        process = zygote.start(folder)
        wait_for(lambda step=step: begun(folder) >= step)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process, rng.choice([signal.SIGTERM, signal.SIGINT]))
        assert zygote.end() in (128 + signal.SIGTERM, 128 + signal.SIGINT), log(folder)
        done.append(begun(folder) + 1)
        newest = latest(folder / "checkpoints")
        assert newest is not None
        assert step_of(newest) == done[-1]
    assert zygote.run(folder) == 0
    assert resumed(folder) == done
    assert ticks(folder) == list(range(60))
    is_as(folder, straight)


def test_a_second_signal_ends_the_process_at_once(zygote: Zygote, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = zygote.start(folder, graph={"place": "lr1", "at": 10, "kind": "slow"})
    wait_for(lambda: begun(folder) == 10)
    time.sleep(0.2)
    before = time.monotonic()
    os.kill(process, signal.SIGTERM)
    wait_for(lambda: "once more" in log(folder))
    os.kill(process, signal.SIGTERM)
    assert zygote.end() == 143
    assert time.monotonic() - before < 50  # the node sleeps for 60 seconds
    assert log(folder).splitlines()[-1] == "stopped at once; the last checkpoint is whole"
    (folder / "mended").touch()
    assert zygote.run(folder) == 0
    assert resumed(folder) == [8]
    is_as(folder, straight)


MESSAGES = {
    "error": "failed at step 11: ArithmeticError: a wrong number; its inputs: ",
    "out of memory": "can't allocate memory: you tried to allocate 4503599627370496 bytes",
    "out of host memory": "failed at step 11: MemoryError: ; make the batch, the crops or the tiles smaller; its ",
}


@pytest.mark.parametrize(
    ("kind", "place", "saved"),
    [
        ("error", "hr", 10),
        ("out of memory", "lr1", 8),
        *(
            pytest.param(kind, place, saved, marks=pytest.mark.full)
            for kind in ("error", "out of memory", "out of host memory")
            for place, saved in (("hr", 10), ("lr1", 8))
        ),
    ],
)
def test_errors(zygote: Zygote, straight: Path, tmp_path: Path, kind: str, place: str, saved: int) -> None:
    """Before anything changed, the state of the step's start is saved; after D's step, the one before stands."""
    folder, graph = tmp_path / "run", {"place": place, "at": 10, "kind": kind}
    assert zygote.run(folder, graph=graph) == 1
    (told,) = [event for event in toys.events_of(folder) if event["type"] == "error"]
    assert (told["where"], told["resume_from"]) == (f"graph: {place}", saved)
    assert MESSAGES[kind] in told["text"]
    assert f"at=10, kind={kind!r}, image=float32[2, 3, 32, 32]" in told["text"]
    assert ("make the batch" in told["text"]) == (kind != "error")
    assert "Traceback" not in log(folder)
    (folder / "mended").touch()
    assert zygote.run(folder, graph=graph) == 0, log(folder)
    assert resumed(folder) == [saved]
    is_as(folder, straight)


def test_a_run_that_fails_prints_the_command_that_goes_on(tmp_path: Path) -> None:
    """And that command does."""
    srgan(at=3, kind="error").save(tmp_path / "small.json")
    words = [sys.executable, "-m", "sr_pipeline"]
    options = ["run", "small.json", "--pack", str(VICTIMS), "--steps", "6", "--device", "cpu"]
    failed = subprocess.run([*words, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    (folder,) = (tmp_path / "runs").iterdir()
    error, hint = failed.stderr.splitlines()
    assert error.startswith("small.json: hr: flawed failed at step 4: ArithmeticError: a wrong number; its inputs: ")
    wanted = ["sr-pipeline", *options, "--run-dir", f"runs/{folder.name}", "--resume"]
    assert hint == f"go on with: {shlex.join(wanted)}"
    (folder / "mended").touch()
    again = [*words, *shlex.split(hint)[4:]]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nresumed from step 3\n" in done.stdout
    assert "\ndone after step 6" in done.stdout


def test_a_limit_on_what_is_written(zygote: Zygote, straight: Path, tmp_path: Path, rng: random.Random) -> None:
    """The first save that does not fit stops the run, and leaves what was there."""
    folder = tmp_path / "run"
    process = zygote.start(folder)
    wait_for(lambda: begun(folder) == 9)
    os.kill(process, signal.SIGTERM)
    assert zygote.end() == 143
    files = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    newest = latest(folder / "checkpoints")
    assert newest is not None
    size = rng.randrange(20_000, newest.stat().st_size)
    assert zygote.run(folder, largest_file=size) == 1
    assert "step-000000012.safetensors: the state cannot be saved: " in log(folder)
    assert "; make room or mend the folder, then --resume: the checkpoint before is whole" in log(folder)
    assert "Traceback" not in log(folder)
    assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == files
    assert zygote.run(folder) == 0
    assert resumed(folder) == [10, 10]
    is_as(folder, straight)


def may_mount() -> bool:
    words = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.full
def test_a_full_disk(straight: Path, tmp_path: Path) -> None:
    """A real one, of 600 kB: four checkpoints fit, and the fifth does not."""
    if not may_mount():
        pytest.skip("no mounts by users here")
    words = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, VICTIMS, tmp_path / "disk"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.strip().splitlines()[-2:]
    codes, kept = json.loads(first), json.loads(second)
    assert codes == [1, 0]
    assert kept == ["best-000000001.safetensors", *(f"step-00000000{n}.safetensors" for n in (1, 4, 8))]
    assert "step-000000012.safetensors: the state cannot be saved: " in done.stdout
    folder = tmp_path / "disk" / "kept"
    assert resumed(folder) == [8]
    newest = latest(folder / "checkpoints")
    assert newest is not None
    assert read(newest).step == 60
    is_as(folder, straight)
