"""Making shards: webdataset reads them, nothing is half there, and what is left out is told by name."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from torch import Tensor
from typer.testing import CliRunner

from sr_nodes.pictures import read_picture
from sr_nodes.shard_files import LIST, ShardsMade, make_shard, shard_parts
from sr_nodes.shards import open_shards
from sr_pipeline.packcommands import add_pack_commands
from sr_pipeline.sockets import SILENT, Reporter


class Notes(Reporter):
    """Keeps what a node warns of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def pictures(folder: Path, count: int = 10, side: int = 20) -> Path:
    """Of several kinds and lengths, in two folders."""
    draws = np.random.default_rng(0)
    for number in range(count):
        ending = ("png", "jpg", "WEBP", "jpeg")[number % 4]
        path = folder / f"{number % 2}" / f"picture {number}.v1.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (side, side + 3 * number, 3)
        PIL.Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder


def pack(folder: Path, output: Path, report: Reporter = SILENT, **options: Any) -> str:
    made = ShardsMade()
    for part in shard_parts((str(folder),), str(output), **{"min_size": 16, "shard_count": 3} | options):
        made(make_shard(part, report))
    return made.result()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_webdataset_reads_what_was_packed(tmp_path: Path) -> None:
    """One sample a picture, its bytes as they are, under a key that the library does not cut."""
    webdataset = pytest.importorskip("webdataset")
    folder = pictures(tmp_path / "in")
    assert pack(folder, tmp_path / "out").startswith("10 pictures in 4 shards of ")
    samples = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with path.open("rb") as file:
            parts = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            samples += list(webdataset.tariterators.group_by_keys(parts))
    assert len(samples) == 10
    for number, (sample, path) in enumerate(zip(samples, sources(folder), strict=True)):
        assert sample["__key__"] == f"{number:08d}-{path.stem.replace(' ', '_').replace('.', '_')}"
        assert sample[path.suffix.lower()[1:]] == path.read_bytes()


def test_our_reader_reads_what_was_packed(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    pack(folder, tmp_path / "out")
    shards = open_shards(str(tmp_path / "out"))
    expected: list[Tensor] = [read_picture(path) for path in sources(folder)]
    assert shards.index[:, 2].tolist() == [min(picture.shape[1:]) for picture in expected]
    assert all(bool((shards[number] == picture).all()) for number, picture in enumerate(expected))
    for path in (tmp_path / "out").glob("*.npy"):  # without it, the headers tell the same
        path.unlink()
    (tmp_path / "out" / LIST).unlink()
    assert np.array_equal(open_shards(str(tmp_path / "out")).index, shards.index)


def test_shards_are_full_and_no_fuller(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 12)
    sizes = [path.stat().st_size for path in sources(folder)]
    limit = 1.3 * max(sizes) / 1e6
    parts = list(shard_parts((str(folder),), str(tmp_path / "out"), limit, 3))
    assert [path for part in parts for path in part.pictures] == sources(folder)
    held = [[path.stat().st_size / 1e6 for path in part.pictures] for part in parts]
    assert all(sum(part) <= limit and len(part) <= 3 for part in held)
    assert all(len(a) == 3 or sum(a) + b[0] > limit for a, b in itertools.pairwise(held))
    assert {len(part) for part in held} >= {1, 3}
    alone = list(shard_parts((str(folder),), str(tmp_path / "alone"), 1e-6))
    assert [len(part.pictures) for part in alone] == [1] * 12
    assert [p.number for p in shard_parts((str(folder),), str(tmp_path / "out"), limit, 3, start=1)] == [
        part.number for part in parts[1:]
    ]


def test_damaged_and_small_pictures_are_told_by_name(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 4)
    whole = (folder / "1" / "picture 1.v1.jpg").read_bytes()
    (folder / "1" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "1" / "empty.png").touch()
    PIL.Image.new("RGB", (90, 15)).save(folder / "small.png")
    notes = Notes()
    said = pack(folder, tmp_path / "out", notes)
    assert said.startswith("4 pictures in 3 shards of ")
    assert said.endswith(" together, 3 left out")
    told = [text.removeprefix(f"left out: {folder}/") for text in notes.warnings]
    assert [text.partition(":")[0] for text in told] == ["1/cut.jpg", "1/empty.png", "small.png"]
    assert "truncated" in told[0]
    assert told[2] == "small.png: its shorter side has 15 pixels, 16 are wanted"
    assert len(open_shards(str(tmp_path / "out"))) == 4


def test_an_unfinished_set_is_not_read_and_goes_on(tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "in"), tmp_path / "out"
    pack(folder, tmp_path / "whole")
    parts = shard_parts((str(folder),), str(out), shard_count=3, min_size=16)
    make_shard(next(parts))
    make_shard(next(parts))
    with pytest.raises(ValueError, match=r"2 of the 4 shards in .* are missing, the first of them shard-000002\.tar"):
        open_shards(str(out))
    (out / "shard-000001.npy").unlink()  # as killed between the two files
    before = (out / "shard-000000.tar").stat().st_mtime_ns
    pack(folder, out)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == before
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["picture", "size", "foreign"])
def test_other_shards_are_not_mixed_in(tmp_path: Path, change: str) -> None:
    folder, out = pictures(tmp_path / "in"), tmp_path / "out"
    pack(folder, out)
    min_size = 17 if change == "size" else 16
    if change == "picture":
        (folder / "0" / "picture 0.v1.png").unlink()
    if change == "foreign":
        (out / LIST).unlink()
    before = contents(out)
    with pytest.raises(ValueError, match="holds shards of other pictures, or of other sizes; give another folder"):
        pack(folder, out, min_size=min_size)
    assert contents(out) == before


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        pack(tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_killed_and_started_again(tmp_path: Path) -> None:
    """SIGKILL in the middle: every shard that is there is whole; the next call ends as an undisturbed one."""
    pictures(tmp_path / "in", 40, side=60)
    words = ["shards", "in", "--shard-count", "2", "--min-size", "16"]
    call = [sys.executable, "-m", "sr_pipeline", *words]
    pack(tmp_path / "in", tmp_path / "whole", shard_count=2)
    killed = tmp_path / "killed"
    running = subprocess.Popen([*call, "--output", "killed"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while running.poll() is None and not any(killed.glob("*.npy")):
        time.sleep(0.001)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    left = {name: data for name, data in contents(killed).items() if not name.startswith(".")}
    assert 2 < len(left) < 41
    expected = contents(tmp_path / "whole")
    assert all(data == expected[name] for name, data in left.items())
    (killed / ".sr-pipeline-elsewhere-1-00000000-0.part").write_bytes(b"half")
    os.utime(killed / ".sr-pipeline-elsewhere-1-00000000-0.part", (0, 0))
    done = subprocess.run([*call, "--output", "killed"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"40 pictures in 20 shards" in done.stdout
    assert contents(killed) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "killed", "whole"]


def test_command_as_json_with_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "a", 2, side=100)
    pictures(tmp_path / "b", 3, side=100)
    app = typer.Typer()
    add_pack_commands(app)
    done = CliRunner().invoke(app, ["shards", "a", "b", "--output", "out", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout).startswith("5 pictures in 1 shards of ")
    with tarfile.open("out/shard-000000.tar") as tar:
        assert [name[:8] for name in tar.getnames()] == [f"{number:08d}" for number in range(5)]
