"""Jobs: thirty awkward files, a job that is killed and started again, and the command as users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import typer
from typer.testing import CliRunner

from sr_nodes.picture_files import read_whole
from sr_nodes.upscale import find_upscaler
from sr_nodes.upscale_job import Job, picture_files, upscale_file
from sr_nodes.upscale_outcomes import Outcomes, upscale_summary
from sr_pipeline.errors import GraphError, NodeRunError
from sr_pipeline.graph import Graph, Link
from sr_pipeline.packcommands import add_pack_commands
from sr_pipeline.processes import HOST
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.shipped import find_graph

BICUBIC = find_upscaler("bicubic")


def noise(height: int, width: int, channels: int = 3) -> Any:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def upscale(inputs: list[str], output: str, **options: Any) -> dict[str, Any]:
    gather = Outcomes()
    for job in picture_files(tuple(inputs), output, **options):
        gather(upscale_file(BICUBIC, job))
    return gather.result()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def palette() -> PIL.Image.Image:
    return PIL.Image.fromarray(noise(6, 8)).convert("P", palette=PIL.Image.Palette.ADAPTIVE)


def turned() -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[274] = 6
    return exif


RGB = PIL.Image.fromarray(noise(6, 8))
RGBA = PIL.Image.fromarray(noise(6, 8, 4))
FRAMES = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
LONG = "\u00e9" * 125 + ".png"

# Each file, and the mode and size of its result, or words of its error.
AWKWARD: dict[str, tuple[bytes, tuple[str, tuple[int, int]] | str]] = {
    "plain.png": (encoded(RGB, "PNG"), ("RGB", (32, 24))),
    "plain.jpg": (encoded(RGB, "JPEG"), ("RGB", (32, 24))),
    "plain.webp": (encoded(RGB, "WEBP"), ("RGB", (32, 24))),
    "plain.tif": (encoded(RGB, "TIFF"), ("RGB", (32, 24))),
    "plain.bmp": (encoded(RGB, "BMP"), ("RGB", (32, 24))),
    "plain.avif": (encoded(RGB, "AVIF"), ("RGB", (32, 24))),
    "gray.png": (encoded(RGB.convert("L"), "PNG"), ("L", (32, 24))),
    "gray.jpg": (encoded(RGB.convert("L"), "JPEG"), ("L", (32, 24))),
    "bit.png": (encoded(RGB.convert("1"), "PNG"), ("L", (32, 24))),
    "alpha.png": (encoded(RGBA, "PNG"), ("RGBA", (32, 24))),
    "gray alpha.png": (encoded(RGBA.convert("LA"), "PNG"), ("LA", (32, 24))),
    "alpha.webp": (encoded(RGBA, "WEBP"), ("RGBA", (32, 24))),
    "palette.png": (encoded(palette(), "PNG"), ("RGB", (32, 24))),
    "clear palette.png": (encoded(palette(), "PNG", transparency=0), ("RGBA", (32, 24))),
    "16 bit.png": (png(2, 1, 16, 0, b"\0" + bytes(4)), ("I;16", (8, 4))),
    "16 bit alpha.png": (png(2, 1, 16, 4, b"\0" + bytes(8)), ("RGBA", (8, 4))),
    "16 bit colour.png": (png(2, 1, 16, 2, b"\0" + bytes(12)), ("RGB", (8, 4))),
    "cmyk.jpg": (encoded(RGB.convert("CMYK"), "JPEG"), ("RGB", (32, 24))),
    "turned.jpg": (encoded(RGB, "JPEG", exif=turned()), ("RGB", (24, 32))),
    "jpeg.png": (encoded(RGB, "JPEG"), ("RGB", (32, 24))),
    "one.png": (encoded(RGB.crop((0, 0, 1, 1)), "PNG"), ("RGB", (4, 4))),
    "wide.png": (encoded(PIL.Image.new("L", (30000, 10)), "PNG"), ("L", (120000, 40))),
    "wide.webp": (encoded(PIL.Image.new("L", (16000, 10)), "WEBP"), "64000x40 is more than WEBP holds, 16383 a side"),
    "\u56fe\u0301 \U0001f600.png": (encoded(RGB, "PNG"), ("RGB", (32, 24))),
    LONG: (encoded(RGB, "PNG"), ("RGB", (32, 24))),
    "-rf.png": (encoded(RGB, "PNG"), ("RGB", (32, 24))),
    "sub/deep/%d {x} [1].png": (encoded(RGB, "PNG"), ("RGB", (32, 24))),
    "truncated.jpg": (encoded(PIL.Image.fromarray(noise(64, 64)), "JPEG")[:-900], "damaged or truncated"),
    "truncated.png": (encoded(PIL.Image.fromarray(noise(64, 64)), "PNG")[:-900], "damaged or"),
    "text.png": (b"no picture", "not a picture of a kind that is read"),
    "empty.jpg": (b"", "the file is empty"),
    "bomb.png": (png(50000, 50000, 8, 2, b""), "50000x50000 is 2500 megapixels, and at most 150 are read"),
    "still.gif": (encoded(palette(), "GIF"), ("RGB", (32, 24))),
    "animated.gif": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "is animated: 2 frames"),
    "animated.webp": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "is animated: 2 frames"),
    "pages.tif": (encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), "has 2 pages"),
}


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder after a job over all of them, and what the job says."""
    folder = tmp_path_factory.mktemp("awkward")
    for name, (data, _) in AWKWARD.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder, upscale([str(folder / "in")], str(folder / "out"))


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_file_is_right_or_a_clear_error(name: str, awkward: tuple[Path, dict[str, Any]]) -> None:
    folder, said = awkward
    wanted, errors = AWKWARD[name][1], {f["source"]: f["error"] for f in said["failed"]}
    if isinstance(wanted, str):
        assert wanted in errors[str(folder / "in" / name)]
        assert not (folder / "out" / name).exists()
        return
    assert str(folder / "in" / name) not in errors
    with PIL.Image.open(folder / "out" / name.replace(".gif", ".png")) as picture:
        picture.load()
        assert (picture.mode, picture.size) == wanted
        assert picture.getexif().get(274, 1) == 1


def test_all_others_of_the_folder_are_done_and_nothing_else_is_there(awkward: tuple[Path, dict[str, Any]]) -> None:
    folder, said = awkward
    right = {name.replace(".gif", ".png") for name, (_, wanted) in AWKWARD.items() if not isinstance(wanted, str)}
    written = {p.relative_to(folder / "out").as_posix() for p in (folder / "out").rglob("*") if p.is_file()}
    assert written == right
    assert (len(said["upscaled"]), len(said["failed"])) == (len(right), len(AWKWARD) - len(right))
    assert len(AWKWARD) >= 30


def test_the_result_is_the_plain_functions(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(20, 30)).save(tmp_path / "a.png")
    said = upscale([str(tmp_path / "a.png")], str(tmp_path / "b.png"))
    lr = torch.from_numpy(noise(20, 30)).permute(2, 0, 1)[None] / 255
    expected = (BICUBIC(lr)[0] * 255).round().to(torch.uint8)
    assert torch.equal(read_whole(tmp_path / "b.png").pixels, expected)
    assert said["upscaled"] == [{"source": str(tmp_path / "a.png"), "target": str(tmp_path / "b.png")}]


def test_finished_files_are_skipped_and_overwritten_where_that_is_wanted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        PIL.Image.fromarray(noise(5, 6)).save(tmp_path / f"{name}.png")
    inputs, output = [str(tmp_path / "?.png")], str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    first = upscale(inputs, output)
    assert [len(first[key]) for key in ("upscaled", "skipped", "failed")] == [1, 1, 0]
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    again = upscale(inputs, output, overwrite=True)
    assert [len(again[key]) for key in ("upscaled", "skipped", "failed")] == [2, 0, 0]
    assert (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "out" / "b.png").read_bytes()
    assert upscale_summary(first) == "1 upscaled, 1 there already (--overwrite makes them anew)"


def test_what_is_no_picture_is_counted_and_a_missing_source_is_told_beside_a_result(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(noise(5, 6)).save(tmp_path / "in" / "a.gif")
    (tmp_path / "in" / "notes.txt").write_text("x")
    said = upscale([str(tmp_path / "in")], str(tmp_path / "out"))
    assert said["no_picture"] == [str(tmp_path / "in" / "notes.txt")]
    assert upscale_summary(said) == "1 upscaled, 1 passed over (no picture's suffix)"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]
    missing = upscale([str(tmp_path / "in" / "nix.png")], str(tmp_path / "out" / "a.png"))
    assert "No such file" in missing["failed"][0]["error"]


def test_a_result_takes_no_pictures_place(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp"):
        PIL.Image.fromarray(noise(5, 6)).save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    said = upscale([str(tmp_path)], str(tmp_path))
    assert [f["error"].split(";")[0] for f in said["failed"]] == ["its result would take its place"] * 2
    said = upscale([str(tmp_path)], str(tmp_path), format="png")
    assert sorted(f["error"].split(";")[0] for f in said["failed"]) == [
        f"its result would be {tmp_path / 'a.png'}, as that of {tmp_path / 'a.bmp'} is",
        f"its result would be {tmp_path / 'a.png'}, which is one of the pictures to enlarge",
    ]
    assert (tmp_path / "a.png").read_bytes() == before
    said = upscale([str(tmp_path / "a.png")], str(tmp_path / "a.png"), overwrite=True)
    assert said["failed"] == []
    assert read_whole(tmp_path / "a.png").size == (20, 24)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that even root cannot write to")
def test_an_output_that_cannot_be_written_to(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(noise(5, 6)).save(tmp_path / name)
    for output in ("/proc/self/out", str(tmp_path / "a.png" / "out")):
        said = upscale([str(tmp_path / "*.png")], output)
        assert [len(said[key]) for key in ("upscaled", "skipped", "failed")] == [0, 0, 2]
        assert all(output in f["error"] for f in said["failed"])


def test_a_name_that_becomes_too_long(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(5, 6)).save(tmp_path / ("x" * 250 + ".png"))
    said = upscale([str(tmp_path)], str(tmp_path / "out"), suffix="_large")
    assert "File name too long" in said["failed"][0]["error"]


def test_the_stream_starts_anywhere_and_reads_ahead_of_it(tmp_path: Path) -> None:
    for name in "abcde":
        PIL.Image.fromarray(noise(5, 6)).save(tmp_path / f"{name}.png")
    names = [
        [j.place.source.stem for j in picture_files((str(tmp_path),), str(tmp_path / "o"), start=n)] for n in (0, 3)
    ]
    assert names == [list("abcde"), list("de")]
    jobs: list[Job] = list(picture_files((str(tmp_path),), str(tmp_path / "o")))
    assert all(job.picture is not None and job.picture.result().size == (5, 6) for job in jobs)


def test_state_of_half_a_job(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise(5, 6)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"x")
    first, second = Outcomes(), Outcomes()
    jobs = list(picture_files((str(tmp_path),), str(tmp_path / "out")))
    first(upscale_file(BICUBIC, jobs[0]))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for gather in (first, second):
        gather(upscale_file(BICUBIC, jobs[1]))
    assert second.result() == first.result()
    said = upscale_summary(first.result(), strict=False)
    assert said.startswith(f"1 upscaled, 1 failed:\n  {tmp_path / 'b.png'}: not a picture")
    with pytest.raises(ValueError, match=re.escape(said)):
        upscale_summary(first.result())


def command(*words: str | Path, folder: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    call = [sys.executable, "-m", "sr_pipeline", *map(str, words)]
    return subprocess.run(call, cwd=folder, input=stdin, capture_output=True, check=False)


def test_command_on_a_folder_and_its_picture_again(tmp_path: Path) -> None:
    """Exit code 1 with the list; finished files skipped; `run picture.png` repeats it; no folder of runs is left."""
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(noise(6, 8)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"text")
    (tmp_path / "in" / "notes.txt").write_bytes(b"text")
    words = ["upscale", "in", "out", "--model", "bicubic", "--tile", "16", "--json"]
    done = command(*words, folder=tmp_path)
    assert done.returncode == 1, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said["upscaled"] == [{"source": "in/a.png", "target": "out/a.png"}]
    assert [f["source"] for f in said["failed"]] == ["in/b.png"]
    assert b"step 3/3" in done.stderr or b"step 1/3" in done.stderr
    assert b"not a picture" not in done.stderr  # it is in the result, once
    assert said["no_picture"] == ["in/notes.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    repeated = command("run", "out/a.png", "--run-dir", "again", folder=tmp_path)
    assert repeated.returncode == 0, repeated.stderr.decode()
    assert (tmp_path / "again" / "a.png").read_bytes() == (tmp_path / "out" / "a.png").read_bytes()
    assert json.loads(prompt_of(tmp_path / "out" / "a.png"))["sr"]["inputs"]["tile"] == 16


def test_command_on_one_picture_is_the_graph_for_one(tmp_path: Path) -> None:
    """What the PNG carries is graphs/upscale.json with the flags; and nobody is told of temporary folders or nodes."""
    RGBA.save(tmp_path / "a.png")
    done = command("upscale", "a.png", "b.png", "--model", "nearest", "--overlap", "3", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["step", "done", "1"]
    shipped, carried = find_graph("upscale"), Graph.load(tmp_path / "b.png")
    shipped.nodes["photo"].inputs |= {"path": "a.png", "max_megapixels": 150}
    shipped.nodes["generator"].inputs |= {"path": "nearest"}
    shipped.nodes["sr"].inputs |= {"overlap": 3, "batch": 0}
    shipped.nodes["save"].inputs |= {"filename": "b.png"}
    assert carried == shipped
    repeated = command("run", "b.png", "--run-dir", "again", folder=tmp_path)
    assert repeated.returncode == 0, repeated.stderr.decode()
    assert (tmp_path / "again" / "b.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def told(*words: str) -> Any:
    """What a command says, in this process, which spares a start."""
    app = typer.Typer()
    add_pack_commands(app)
    return CliRunner().invoke(app, list(words))


def test_export_with_a_place_leaves_no_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = told("export", "bicubic", "b.pt", "--to", "torchscript")
    assert done.exit_code == 0, done.output
    assert "runs" not in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["b.pt"]
    done = told("export", "bicubic", "--to", "torchscript")
    assert done.exit_code == 0, done.output
    (made,) = tmp_path.glob("runs/export-*/generator.pt")
    assert f"run folder: {made.parent.relative_to(tmp_path)}" in done.output


@pytest.mark.parametrize(
    ("flags", "kind", "words"),
    [
        (
            ("b.png", "--model", "nix"),
            NodeRunError,
            "--model: there is no model 'nix': give the name of one that ships",
        ),
        (("b.png", "--tile", "0"), GraphError, "--tile: found 0, wanted "),
        (("b.png", "--format", "jpg"), NodeRunError, "sr-pipeline upscale: the name 'b.png' and the format"),
        (("",), NodeRunError, "sr-pipeline upscale: the output (OUT) is empty"),
    ],
)
def test_command_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], kind: type[Exception], words: str
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    RGB.save("a.png")
    found = told("upscale", "a.png", *flags).exception
    assert isinstance(found, kind)
    assert str(found).startswith(words)
    assert ".json" not in str(found)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_the_graph_of_a_folder_fails_where_a_picture_does(registry: Registry, tmp_path: Path) -> None:
    """So that `run` exits with 1 too, with the list; all others are done."""
    (tmp_path / "in").mkdir()
    RGB.save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"text")
    graph = find_graph("upscale_folder")
    graph.nodes["pictures"].inputs["inputs"] = [str(tmp_path / "in")]
    graph.nodes["generator"].inputs["path"] = "nearest"
    with pytest.raises(NodeRunError, match=r"1 upscaled, 1 failed:\n  .*b\.png: not a picture"):
        run(graph, registry=registry, run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "upscaled" / "a.png").is_file()


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        PIL.Image.fromarray(noise(64, 64)).save(tmp_path / "in" / f"{number:02d}.png")
    call = [sys.executable, "-m", "sr_pipeline", "upscale", "in", "out", "--model", "bicubic"]
    running = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while running.poll() is None and not any(tmp_path.glob("out/*.png")):
        time.sleep(0.001)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130, said.decode()
    found = re.search(
        rb"^(\d+) of 40 files are done; the same command, without --overwrite, goes on", said, re.MULTILINE
    )
    assert found
    assert len(list(tmp_path.glob("out/*.png"))) == int(found[1])  # what was begun is written too
    assert not list(tmp_path.glob("out/.*"))


def prompt_of(path: Path) -> str:
    with PIL.Image.open(path) as picture:
        picture.load()
        return str(picture.info["prompt"])


def test_command_as_a_pipe(tmp_path: Path) -> None:
    """Standard output is the picture and nothing else; in the source's format; --no-metadata: no graph."""
    exif = PIL.Image.Exif()
    exif[0x010F] = "maker"
    data = encoded(RGB, "PNG", exif=exif)
    done = command("upscale", "-", "-", "--model", "nearest", "--no-metadata", folder=tmp_path, stdin=data)
    assert done.returncode == 0, done.stderr.decode()
    with PIL.Image.open(BytesIO(done.stdout)) as picture:
        picture.load()
        assert (picture.format, picture.size, "prompt" in picture.info) == ("PNG", (32, 24), False)
        assert not picture.getexif()
        assert np.array_equal(np.array(picture), np.kron(np.array(RGB), np.ones((4, 4, 1), np.uint8)))
    assert b"1 upscaled" in done.stderr


def test_a_pipe_of_another_format(tmp_path: Path) -> None:
    """--format is honoured."""
    words = ["upscale", "-", "-", "--model", "nearest"]
    done = command(*words, "--format", "jpeg", folder=tmp_path, stdin=encoded(RGB, "PNG"))
    assert done.returncode == 0, done.stderr.decode()
    with PIL.Image.open(BytesIO(done.stdout)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (32, 24))


def test_the_graph_of_one_picture_reads_as_the_job_did_and_no_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RGB.save(tmp_path / "a.png")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    graph = Graph()
    generator = graph.add("find_upscaler", id="generator", path="bicubic")
    graph.add("upscale_file", id="sr", generator=generator, job=Link("pictures"))
    graph.save(run_dir / "graph.json")
    stdin = TextIOWrapper(BytesIO(encoded(RGB, "PNG")))
    monkeypatch.setattr(sys, "stdin", stdin)
    for source, name in ((str(tmp_path / "a.png"), "b.png"), ("-", "c.png")):
        for job in picture_files((source,), str(tmp_path / name), max_megapixels=777):
            assert upscale_file(BICUBIC, job, run_dir=run_dir).result().error == ""
    assert json.loads(prompt_of(tmp_path / "b.png"))["photo"]["inputs"]["max_megapixels"] == 777
    with PIL.Image.open(tmp_path / "c.png") as picture:
        picture.load()
        assert "prompt" not in picture.info


def test_a_job_beside_its_sources_started_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        PIL.Image.fromarray(noise(5, 6)).save(tmp_path / f"{name}.png")
    for done in (2, 0):
        said = upscale([str(tmp_path)], str(tmp_path), suffix="_x4")
        assert [len(said[key]) for key in ("upscaled", "skipped", "failed")] == [done, 2 - done, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a_x4.png", "b.png", "b_x4.png"]


def test_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle: what is there is whole; the next call ends with the files of an undisturbed job."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    (tmp_path / "in").mkdir()
    for number in range(24):
        PIL.Image.fromarray(noise(64, 64 + number)).save(tmp_path / "in" / f"{number:02d}.png")
    undisturbed, killed = tmp_path / "one" / "out", tmp_path / "two" / "out"
    for folder in (undisturbed.parent, killed.parent):
        folder.mkdir()
        (folder / "in").symlink_to(tmp_path / "in")
    words = ["upscale", "in", "out", "--model", "bicubic"]
    assert command(*words, folder=undisturbed.parent).returncode == 0
    call = [sys.executable, "-m", "sr_pipeline", *words]
    running = subprocess.Popen(call, cwd=killed.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not any(killed.glob("*.png")):
        time.sleep(0.001)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert list(temporary.iterdir())  # the run's folder
    left = {p.name: p.read_bytes() for p in killed.glob("*.png")}
    assert 0 < len(left) < 24
    assert all(data == (undisturbed / name).read_bytes() for name, data in left.items())
    half = killed / f".sr-pipeline-{HOST}-{running.pid}-00000000-0.part"
    half.write_bytes(b"half")  # as killed a moment later or earlier
    assert command(*words, folder=killed.parent).returncode == 0
    both = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (undisturbed, killed)]
    assert both[0] == both[1]
    assert len(both[0]) == 24
    assert not list(temporary.iterdir())
