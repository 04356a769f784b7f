"""Real processes, and the folders that they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sr_pipeline.processes import is_running, temporary_folder


def test_is_running() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_running(other.pid)
    other.communicate(b"\n")
    assert not is_running(other.pid)
    assert not is_running(os.getpid())


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = (f"sr-pipeline-{dead.pid}-abc", f"sr-pipeline-{os.getppid()}-abc", "sr-pipeline-mine")
    for name in names:
        (tmp_path / name / "sub").mkdir(parents=True)
    with temporary_folder() as folder, temporary_folder() as second:
        found = {p.name for p in tmp_path.iterdir()}
        assert found == {*names[1:], folder.name, second.name}
        assert folder.parent == tmp_path
    assert {p.name for p in tmp_path.iterdir()} == set(names[1:])
