"""Files are whole or not there, and their lines too."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import toys
from sr_pipeline.errors import RunFolderError
from sr_pipeline.files import LineFile, remove_parts, remove_stale, written_beside
from sr_pipeline.processes import HOST


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, sync: bool) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with written_beside(target, sync) as beside:
        beside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    with pytest.raises(TypeError, match="data must be str"), written_beside(target, sync) as beside:
        beside.write_text(b"half")  # type: ignore[arg-type]
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "new")]


def test_what_is_left_beside_is_removed(tmp_path: Path) -> None:
    names = [".sr-pipeline-12-0a1b2c3d.part", "my.part", ".sr-pipeline-12"]
    for name in names:
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    remove_parts(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.parametrize("room", range(0, 12))
def test_a_line_is_there_whole_or_not_at_all(tmp_path: Path, room: int) -> None:
    path = tmp_path / "lines"
    with closing(LineFile(path)) as file, toys.files_no_larger() as limit:
        file.write("first\n")
        limit(6 + room)
        with pytest.raises(RunFolderError, match=r"lines: cannot be written: (File too large|No space left on device)"):
            file.write("the second\r\n")
        assert path.read_bytes() == b"first\n"
        limit(18)
        file.write("the second\r\n")
    assert path.read_bytes() == b"first\nthe second\r\n"


@pytest.mark.parametrize("end", range(0, 14))
def test_half_a_line_is_taken_back(tmp_path: Path, end: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(whole := b"first\nsecond\n"[:end])
    with closing(LineFile(path)) as file:
        file.write("third\n")
    assert path.read_bytes() == whole[: whole.rfind(b"\n") + 1] + b"third\n"


def test_stale_files_are_removed_and_others_are_not(tmp_path: Path) -> None:
    """Of this machine's processes that ended, and of an earlier one of this number; of other machines' by age."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "sub").mkdir()
    kept = ["a.part", ".sr-pipeline-9.part", f".sr-pipeline-{dead.pid}-0123abcd.part"]
    kept += [f".sr-pipeline-{HOST}-1-0123abcd-0.part", f".sr-pipeline-{HOST}-x-0123abcd-0.part"]
    kept += [f".sr-pipeline-elsewhere-{dead.pid}-0123abcd-0.part", ".sr-pipeline-elsewhere-1-0123abcd-9.txt"]
    old = ".sr-pipeline-elsewhere-1-0123abcd-7.part"
    gone = [
        f".sr-pipeline-{HOST}-{dead.pid}-0123abcd-0.part",
        f"sub/.sr-pipeline-{HOST}-{os.getpid()}-0123abcd-12.part",
    ]
    for name in (*kept, *gone, old):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / old, (0, 0))
    remove_stale(tmp_path)
    assert not (tmp_path / gone[0]).exists()
    assert not (tmp_path / old).exists()
    assert (tmp_path / gone[1]).exists()
    remove_stale(tmp_path / "sub")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_what_this_process_is_writing_is_not_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second job of one process, in the same folder, while the first one writes."""
    seen: list[str] = []

    def sync(_: int) -> None:
        remove_stale(tmp_path)
        seen.extend(p.name for p in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", sync)
    with written_beside(tmp_path / "a.png") as beside:
        beside.write_bytes(b"x")
    written, renamed = seen
    assert written.startswith(f".sr-pipeline-{HOST}-{os.getpid()}-")
    assert renamed == "a.png"
    assert (tmp_path / "a.png").read_bytes() == b"x"
