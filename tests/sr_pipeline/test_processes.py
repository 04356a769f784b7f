"""Real processes, and the folders that they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sr_pipeline.processes import HOST, has_ended, is_running, temporary_folder


def test_is_running() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_running(other.pid)
    other.communicate(b"\n")
    assert not is_running(other.pid)
    assert not is_running(os.getpid())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_one_that_ended_does_not_run_though_nobody_asked_how() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    ended.stdout.read()  # to its end, which is that of the process or nearly so
    while is_running(ended.pid):
        time.sleep(0.01)
    assert ended.returncode is None
    os.kill(ended.pid, 0)
    ended.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="there no process is asked for")
def test_of_another_machine_only_age_tells(tmp_path: Path) -> None:
    """A process of this machine is asked for, however old its file; of another one's, a number means nothing."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "a"
    path.touch()
    assert has_ended(HOST, dead.pid, path)
    assert not has_ended("elsewhere", dead.pid, path)
    os.utime(path, (0, 0))
    assert not has_ended(HOST, os.getppid(), path)
    assert has_ended("elsewhere", os.getppid(), path)
    assert not has_ended("elsewhere", dead.pid, tmp_path / "gone")


def test_on_windows_no_process_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where asking for a process would end it."""
    (tmp_path / "a").touch()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", None)
    assert not has_ended(HOST, os.getppid(), tmp_path / "a")


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
