"""A job in shares: each file once, whoever does it, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sr_nodes.picture_jobs import Place, share_of, shared_out
from sr_nodes.upscale import find_upscaler
from sr_nodes.upscale_job import picture_files, upscale_file
from sr_nodes.upscale_outcomes import Outcome
from sr_pipeline.errors import NodeRunError
from sr_pipeline.packcommands import add_pack_commands

BICUBIC = find_upscaler("bicubic")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests themselves were started by."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def folder_of(folder: Path, count: int = 12, side: int = 8) -> Path:
    """Pictures in two folders, and a file that is none."""
    draws = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(draws.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("text")
    return folder


def outcomes(inputs: Path, output: Path, share: str | None = None, start: int = 0) -> list[Outcome]:
    jobs = picture_files((str(inputs),), str(output), share=share, start=start)
    return [upscale_file(BICUBIC, job).result() for job in jobs]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 9))
def test_shares_are_disjoint_and_even_and_together_all(kinds: list[bool], shares: int) -> None:
    """Of pictures and of other files each, in the order of the list."""
    found = [Place(Path(f"{n}"), Path(f"{n}x"), kind) for n, kind in enumerate(kinds)]
    parts = [shared_out(found, number, shares) for number in range(1, shares + 1)]
    assert sorted(position for part in parts for position in part) == list(range(len(kinds)))
    assert all(part == sorted(part) for part in parts)
    for kind in (True, False):
        lengths = [sum(kinds[position] == kind for position in part) for part in parts]
        assert max(lengths) - min(lengths) <= 1


def test_three_shares_do_what_one_process_does(tmp_path: Path) -> None:
    """Also where one begins when another has ended, and each is called twice."""
    folder = folder_of(tmp_path / "in")
    whole = outcomes(folder, tmp_path / "whole")
    said = [outcomes(folder, tmp_path / "shared", f"{number}/3") for number in (3, 1, 2)]
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    assert Counter(o.source for part in said for o in part) == Counter(o.source for o in whole)
    assert [Counter(o.status for o in part)["upscaled"] for part in said] == [4, 4, 4]
    again = [outcomes(folder, tmp_path / "shared", f"{number}/3") for number in (1, 2, 3)]
    assert Counter(o.status for part in again for o in part) == {"skipped": 12, "no picture": 1}
    assert sorted(o.source for o in again[0]) == sorted(o.source for o in said[1])


def test_a_share_starts_anywhere_and_may_be_empty(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 5)
    all_of_it = [o.source for o in outcomes(folder, tmp_path / "a", "1/2")]
    assert [o.source for o in outcomes(folder, tmp_path / "b", "1/2", start=2)] == all_of_it[2:]
    assert len(all_of_it) == 4  # three pictures and the text
    assert outcomes(folder, tmp_path / "c", "6/6") == []
    assert outcomes(folder, tmp_path / "c", "1/2", start=9) == []


def test_two_results_of_one_name_are_refused_in_whatever_share(tmp_path: Path) -> None:
    for name in ("a.png", "b.bmp", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    found = {}
    for number in (1, 2, 3):
        jobs = picture_files((str(tmp_path),), str(tmp_path / "out"), format="png", share=f"{number}/3")
        found[number] = [upscale_file(BICUBIC, job).result() for job in jobs]
    assert [[o.status for o in part] for part in found.values()] == [["upscaled"], ["upscaled"], ["failed"]]
    assert "as that of " in found[3][0].error


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (1, 1)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "2", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, (3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, (2, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (1, 1)),  # a batch script, which is one process
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, (1, 1)),
        ({"RANK": "1"}, (1, 1)),
    ],
)
def test_the_share_by_what_started_the_process(environment: dict[str, str], share: tuple[int, int]) -> None:
    assert share_of(None, environment) == share
    assert share_of("2/7", environment) == (2, 7)


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", " 1/3", "1/٣", "1.0/3"])
def test_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Told by its flag, with the mend, before anything is written."""
    with pytest.raises(ValueError, match="is not K/N with K from 1 to N; give 1/3 to the first of three"):
        share_of(text, {})
    if text != "4/3":
        return
    monkeypatch.chdir(folder_of(tmp_path))
    app = typer.Typer()
    add_pack_commands(app)
    error = CliRunner().invoke(app, ["upscale", "0", "out", "--share", text]).exception
    assert isinstance(error, NodeRunError)
    assert "the share '4/3' is not K/N" in str(error)
    assert not Path("out").exists()


# Under torchrun


def torchrun(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call = [*launcher, "-m", "sr_pipeline", "upscale", "in", "out", "--model", "bicubic", *words]
    return subprocess.Popen(call, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_torchrun_does_each_file_once_and_a_failure_ends_no_other_process(tmp_path: Path) -> None:
    """torchrun ends all processes where one has failed; so a picture that fails does not fail its process."""
    folder = folder_of(tmp_path / "in")
    outcomes(folder, tmp_path / "whole")
    (folder / "0" / "00.bmp").write_bytes(b"text")  # the first of the list
    running = torchrun(tmp_path)
    said, _ = running.communicate()
    assert running.returncode == 0, said.decode()
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "whole").keys()
    assert said.count(b"6 upscaled") == 2
    assert b"00.bmp: not a picture" in said


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds torchrun's processes in Linux's /proc")
def test_a_process_killed_under_torchrun_and_its_job_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 60, side=64)
    outcomes(folder, tmp_path / "whole")
    expected = {name: pixels(tmp_path / "whole" / name) for name in contents(tmp_path / "whole")}
    running = torchrun(tmp_path)
    while running.poll() is None and len(list(tmp_path.glob("out/*/*.png"))) < 2:
        time.sleep(0.001)
    os.kill(children(running.pid)[-1], signal.SIGKILL)
    said, _ = running.communicate()
    assert running.returncode != 0, said.decode()
    left = list((tmp_path / "out").glob("*/[!.]*"))
    assert 2 <= len(left) < 60
    statuses = Counter(o.status for n in (1, 2) for o in outcomes(folder, tmp_path / "out", f"{n}/2"))
    assert statuses == {"skipped": len(left), "upscaled": 60 - len(left), "no picture": 1}
    assert {name: pixels(tmp_path / "out" / name) for name in contents(tmp_path / "out")} == expected
    assert len(expected) == 60


def pixels(path: Path) -> bytes:
    """Without the graph, which a command's result carries."""
    with PIL.Image.open(path) as picture:
        return picture.tobytes()
