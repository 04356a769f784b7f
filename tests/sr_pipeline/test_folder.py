"""A run's folder: found, refused, and holding what repeats the run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toys
from sr_pipeline.errors import UsageError
from sr_pipeline.events import Event, Progress
from sr_pipeline.folder import RunFolder, find_folder, locked, new_folder, read_record
from sr_pipeline.graph import Graph


def test_a_folder_holds_what_repeats_the_run(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path, seed=5, steps=3)
    folder = RunFolder(tmp_path)
    record = read_record(folder)
    kept = record.settings
    assert (kept.seed, kept.device, kept.threads, kept.steps) == (5, "cpu", torch.get_num_threads(), 3)
    assert record.versions["torch"] == torch.__version__
    graph = Graph.load(folder.graph)
    assert graph.nodes["x"].inputs == {"steps": 3}
    assert {p.name for p in tmp_path.iterdir()} == {
        "graph.json",
        "run.json",
        "events.jsonl",
        "metrics.csv",
        "checkpoints",
        "export.pt",
        ".lock",
    }


def test_unnamed_folders_are_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = Graph(source="graphs/train.json")
    made = [new_folder(None, graph).path for _ in range(3)]
    assert len(set(made)) == 3
    assert all(re.fullmatch(r"runs/train-\d{8}-\d{6}(-\d)?", path.as_posix()) for path in made)


def test_the_newest_run_of_the_graph_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = toys.graph(toys.REGRESSION)
    time = "20260101-120000"
    empty = f"graph-{time}-9"  # one that never saved
    names = [f"graph-{time}-2", f"graph-{time}", f"other-{time}", f"graph-2-{time}", f"graph-{time}-old", empty]
    for age, name in enumerate(names):
        if name != empty:
            toys.run_of(toys.REGRESSION, Path("runs") / name, steps=1)
        else:
            (Path("runs") / name).mkdir()
        os.utime(Path("runs") / name, (age, age))
    assert find_folder(None, graph).path == Path("runs") / f"graph-{time}"
    with pytest.raises(UsageError, match=re.escape("--resume: runs/none-*: there is no run to resume")):
        find_folder(None, Graph(source="none.json"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = f"--run-dir {tmp_path}/file/run: cannot be made: Not a directory; give another folder"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        new_folder(tmp_path / "file" / "run", Graph())


def test_a_folder_of_runs_that_leads_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"^--run-dir runs: cannot be made: File exists; give another folder$"):
        new_folder(None, Graph())


def test_a_run_is_not_scattered_over_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an empty variable of a shell would have it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(
        UsageError, match=r"^--run-dir \.: is this folder, which holds other files; give one of its own$"
    ):
        new_folder(Path(""), Graph())  # noqa: PTH201


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"settings": {"seed": 1}}', b"\xff", b"null"])
def test_a_damaged_record_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path / 'run.json'}: cannot be read: ")):
        read_record(RunFolder(tmp_path))


def test_the_record_is_json(tmp_path: Path) -> None:
    toys.run_of("x = batches()\nw = write(x)", tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["seed"] == 0


# one run a folder


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    """Whether it is new or resumed; and it changes nothing there."""
    message = f"--run-dir {tmp_path}: another run is in it; wait for its end, or give another folder"
    files: list[dict[str, bytes]] = []

    def second(event: Event) -> None:
        if isinstance(event, Progress) and event.step == 3:
            for resume in (False, True):
                before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
                wanted = message if resume else f"--run-dir {tmp_path}: holds a run already"
                with pytest.raises(UsageError, match=f"^{re.escape(wanted)}"):
                    toys.run_of(toys.REGRESSION, tmp_path, resume=resume)
                assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
                files.append(before)

    toys.run_of(toys.REGRESSION, tmp_path, sinks=[second], steps=3)
    assert len(files) == 2
    assert toys.run_of(toys.REGRESSION, tmp_path, resume=True).step == 6


def test_two_new_runs_in_one_folder(tmp_path: Path) -> None:
    folder = new_folder(tmp_path, Graph())
    with locked(folder, new=True), pytest.raises(UsageError, match="another run is in it"), locked(folder, new=True):
        raise AssertionError
    folder.record.touch()  # by the one that came first, and has ended
    with pytest.raises(UsageError, match="holds a run already"), locked(folder, new=True):
        raise AssertionError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_no_lock_is_left_by_a_killed_process_nor_kept_by_its_workers(tmp_path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from sr_pipeline.folder import RunFolder, locked
with locked(RunFolder(Path(sys.argv[1])), new=False):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""
    folder = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(UsageError, match="another run is in it"), locked(folder, new=False):
                raise AssertionError
            process.kill()
            process.wait()
            os.kill(worker, 0)  # it lives
            with locked(folder, new=False):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_what_a_killed_process_left_beside_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for left in (tmp_path / ".sr-pipeline-1-ab.part", tmp_path / "checkpoints" / ".sr-pipeline-2-cd.part"):
        left.touch()
    (tmp_path / "photo.part").touch()
    with locked(RunFolder(tmp_path), new=True):
        assert sorted(path.name for path in tmp_path.rglob("*.part")) == ["photo.part"]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    """With the graph and the seed of its folder."""
    toys.run_of(toys.REGRESSION, tmp_path / "straight", seed=4)
    folder = tmp_path / "killed"
    toys.run_of(toys.REGRESSION, folder, seed=4, stop=toys.stop_after(2))
    shutil.rmtree(folder / "checkpoints")
    toys.run_of(toys.REGRESSION, folder, resume=True)
    assert [e["step"] for e in toys.events_of(folder) if e["type"] == "resumed"] == [0]
    assert toys.state_of(folder) == toys.state_of(tmp_path / "straight")
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "straight" / "metrics.csv").read_bytes()
