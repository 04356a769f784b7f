"""A run's folder: found, refused, and holding what repeats the run."""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import toys
from sr_pipeline.errors import UsageError
from sr_pipeline.folder import RunFolder, find_folder, new_folder, read_record
from sr_pipeline.graph import Graph


def test_a_folder_holds_what_repeats_the_run(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path, seed=5, steps=3)
    folder = RunFolder(tmp_path)
    record = read_record(folder)
    assert (record.seed, record.device, record.threads) == (5, "cpu", torch.get_num_threads())
    assert record.versions["torch"] == version("torch")
    graph = Graph.load(folder.graph)
    assert graph.nodes["x"].inputs == {"steps": 3}
    assert {p.name for p in tmp_path.iterdir()} == {
        "graph.json",
        "run.json",
        "events.jsonl",
        "metrics.csv",
        "checkpoints",
        "export.pt",
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
    for age, name in enumerate(["graph-2", "graph-1", "other-3", "graph-9"]):
        if name != "graph-9":  # one that never saved
            toys.run_of(toys.REGRESSION, Path("runs") / name, steps=1)
        else:
            (Path("runs") / name).mkdir()
        os.utime(Path("runs") / name, (age, age))
    assert find_folder(None, graph).path == Path("runs/graph-1")
    with pytest.raises(UsageError, match=re.escape("--resume: runs/none-*: there is no checkpoint to resume from")):
        find_folder(None, Graph(source="none.json"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = f"--run-dir {tmp_path}/file/run: cannot be made: Not a directory; give another folder"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        new_folder(tmp_path / "file" / "run", Graph())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"seed": 1}', b"\xff", b"null"])
def test_a_damaged_record_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path / 'run.json'}: cannot be read: ")):
        read_record(RunFolder(tmp_path))


def test_the_record_is_json(tmp_path: Path) -> None:
    toys.run_of("x = batches()\nw = write(x)", tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0
