"""Figures over test sets: the published ones, the command as users run it, and the files it leaves."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from sr_nodes.assets import graphs
from sr_nodes.commands import COMMANDS
from sr_nodes.evaluation import PAPER, Evaluate, evaluation_report, evaluation_table, sheet_path
from sr_nodes.metrics import psnr
from sr_nodes.pairs import Label, image_pairs
from sr_nodes.pictures import write_png
from sr_nodes.similarity import ms_ssim, ssim
from sr_nodes.upscalers import upscaler
from sr_pipeline.errors import NodeRunError
from sr_pipeline.graph import Graph
from sr_pipeline.packcommands import add_pack_commands
from sr_pipeline.registry import Registry
from sr_pipeline.run import run

FIGURES = {
    "Set5": [("a", 30.0, 0.8, 28.0), ("b", 32.0, 0.9, 30.0)],
    "holidays": [("x & <y>", 25.0, 0.7, 24.0)],
}


def evaluated() -> dict[str, Any]:
    gather = Evaluate()
    for testset, rows in FIGURES.items():
        for name, psnr_y, ssim_y, psnr_rgb in rows:
            gather(Label(testset, name), psnr_y, ssim_y, psnr_rgb)
    return gather.result()


def strict(text: str) -> Any:
    """The value of a JSON text, by its standard: no NaN, no Infinity."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_picture_that_is_equal_is_null_in_json(tmp_path: Path) -> None:
    gather = Evaluate()
    gather(Label("s", "equal"), math.inf, 1.0, math.inf)
    gather(Label("s", "other"), 30.0, 0.9, 28.0)
    content = evaluation_report(gather.result(), model="m", run_dir=tmp_path)
    found = strict((tmp_path / "evaluation.json").read_text())["sets"]["s"]
    assert (found["psnr_y"], found["ssim_y"], found["psnr_rgb"]) == (None, 0.95, None)
    assert [image["psnr_y"] for image in found["images"]] == [None, 30.0]
    assert content["sets"]["s"]["psnr_y"] == math.inf
    assert "   inf dB    0.9500    inf dB" in evaluation_table(content)


class Sources(HTMLParser):
    """Collects what a page's pictures point to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if (tag, key) == ("img", "src")]


@pytest.mark.parametrize("name", ["a#b%20 ?", "sub/é&\"'<x>"])
def test_the_page_finds_pictures_of_any_name(tmp_path: Path, name: str) -> None:
    gather = Evaluate()
    gather(Label("my set", name), 30.0, 0.9, 28.0)
    evaluation_report(gather.result(), model="m", run_dir=tmp_path)
    (source,) = Sources((tmp_path / "report.html").read_text(encoding="utf-8")).found
    address = urllib.parse.urlsplit(source)
    assert (address.scheme, address.query, address.fragment) == ("", "", "")
    assert urllib.parse.unquote(address.path) == sheet_path("my set", name)


def test_a_set_is_the_papers_in_any_case_but_at_scale_4_alone(tmp_path: Path) -> None:
    gather = Evaluate()
    gather(Label("SET5", "a"), 30.0, 0.9, 28.0)
    found = evaluation_report(gather.result(), model="m", run_dir=tmp_path)
    assert found["sets"]["SET5"]["paper"]["bicubic"] == {"psnr_y": 28.43, "ssim_daala": 0.8211}
    assert evaluation_table(found).splitlines()[-1].startswith("Y is BT.601 studio range, 4-pixel border cut. * daala")
    other = evaluation_report(gather.result(), model="m", scale=2, border=2, run_dir=tmp_path)
    assert other["sets"]["SET5"]["paper"] == {}
    assert evaluation_table(other).splitlines()[-1] == "Y is BT.601 studio range, 2-pixel border cut."
    assert "2-pixel border cut." in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (other["scale"], other["border"]) == (2, 2)


def test_means_are_by_test_set() -> None:
    found = evaluated()
    assert list(found) == ["Set5", "holidays"]
    assert {k: found["Set5"][k] for k in ("psnr_y", "ssim_y", "psnr_rgb")} == pytest.approx(
        {"psnr_y": 31.0, "ssim_y": 0.85, "psnr_rgb": 29.0}
    )
    assert found["Set5"]["images"][1] == {"name": "b", "psnr_y": 32.0, "ssim_y": 0.9, "psnr_rgb": 30.0}


def test_further_figures_stand_beside_the_others_where_they_are_given(tmp_path: Path) -> None:
    gather = Evaluate()
    gather(Label("s", "a"), 30.0, 0.8, 28.0, {"ms_ssim": 0.9, "lpips": 0.1})
    gather(Label("s", "b"), 32.0, 0.9, 30.0, {"ms_ssim": 0.7, "lpips": 0.3})
    content = evaluation_report(gather.result(), model="m", run_dir=tmp_path)
    found = content["sets"]["s"]
    assert (found["psnr_y"], found["ms_ssim"], found["lpips"]) == pytest.approx((31.0, 0.8, 0.2))
    assert found["images"][1] == {
        "name": "b",
        "psnr_y": 32.0,
        "ssim_y": 0.9,
        "psnr_rgb": 30.0,
        "ms_ssim": 0.7,
        "lpips": 0.3,
    }
    header, _, last, _ = csv.reader((tmp_path / "evaluation.csv").read_text().splitlines())
    assert header == ["set", "name", "psnr_y", "ssim_y", "psnr_rgb", "ms_ssim", "lpips"]
    assert last == ["s", "b", "32.0", "0.9", "30.0", "0.7", "0.3"]
    assert evaluation_table(content).splitlines()[1:3] == [
        "                             PSNR-Y    SSIM-Y  PSNR-RGB MS-SSIM-Y     LPIPS",
        "  m                        31.00 dB    0.8500  29.00 dB    0.8000    0.2000",
    ]
    assert "<th>MS-SSIM-Y</th><th>LPIPS</th>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_state_of_half_an_evaluation() -> None:
    """Stopped after the first picture and gone on: the same result."""
    first, second = Evaluate(), Evaluate()
    first(Label("s", "a"), 1.0, 0.5, 2.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for gather in (first, second):
        gather(Label("s", "b"), 3.0, 0.7, 4.0)
        gather(Label("t", "b"), 2.0, 0.6, 3.0)
    assert second.result() == first.result()


def test_report_files(tmp_path: Path) -> None:
    content = evaluation_report(evaluated(), model="my <model>", run_dir=tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == content
    assert content["sets"]["Set5"]["paper"]["SRGAN-VGG54"] == {"psnr_y": 29.40, "ssim_daala": 0.8472}
    assert content["sets"]["holidays"]["paper"] == {}
    header, *rows = csv.reader((tmp_path / "evaluation.csv").read_text().splitlines())
    assert header == ["set", "name", "psnr_y", "ssim_y", "psnr_rgb"]
    named = [("Set5", "a"), ("Set5", "b"), ("Set5", "mean"), ("holidays", "x & <y>"), ("holidays", "mean")]
    assert [(row[0], row[1]) for row in rows] == named
    page = (tmp_path / "report.html").read_text()
    assert "my &lt;model&gt;" in page
    assert "<y>" not in page
    assert 'src="sheets/Set5/a.png"' in page


def test_table_has_the_papers_columns(tmp_path: Path) -> None:
    lines = evaluation_table(evaluation_report(evaluated(), model="m" * 40, run_dir=tmp_path)).splitlines()
    assert lines[0] == "Set5 (2 pictures)"
    assert lines[1:4] == [
        "                             PSNR-Y    SSIM-Y  PSNR-RGB",
        "  ...mmmmmmmmmmmmmmmmmmmmm 31.00 dB    0.8500  29.00 dB",
        "  paper: bicubic           28.43 dB    0.8211*",
    ]


def test_the_papers_table_is_the_papers() -> None:
    """Table 2's SRResNet is best on PSNR in every set, and SRGAN worse than bicubic on BSD100's: as it is printed."""
    for columns in PAPER.values():
        assert max(columns, key=lambda c: columns[c][0]) == "SRResNet-MSE"
    assert PAPER["BSD100"]["SRGAN-VGG54"][0] < PAPER["BSD100"]["bicubic"][0]


def test_the_papers_table_is_that_of_the_notes() -> None:
    notes = Path(__file__).parents[2].parent / "shared" / "docs" / "srgan.md"
    if not notes.is_file():
        pytest.skip(f"no {notes}")
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in notes.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    (header,) = (row for row in rows if "SRResNet-MSE" in row)
    found = {
        row[0]: {
            column: tuple(float(figure) for figure in cell.split("/"))
            for column, cell in zip(header[-6:], row[-6:], strict=True)
            if cell
        }
        for row in rows
        if row[0] in PAPER
    }
    assert found == PAPER


def test_upscaler_by_name(tmp_path: Path) -> None:
    lr = torch.rand(1, 3, 5, 6)
    assert torch.equal(upscaler("nearest")(lr), lr.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert upscaler("bicubic", scale=3)(lr).shape == (1, 3, 15, 18)
    assert upscaler("srresnet_small_x4").scale == 4
    wrong = r"srresnet_small_x4 enlarges 4 times, and 2 is wanted; set scale, .*evaluate --scale 4\)"
    with pytest.raises(ValueError, match=wrong):
        upscaler("srresnet_small_x4", scale=2)
    with pytest.raises(ValueError, match="no_such_model"):
        upscaler("no_such_model")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sr_pipeline", *words], capture_output=True, text=True, check=False)


def invoke(*words: str) -> Result:
    """The same in this process, which takes a tenth of the time."""
    app = typer.Typer()
    add_pack_commands(app)
    return CliRunner().invoke(app, list(words))


def test_command_on_own_pictures(tmp_path: Path) -> None:
    """HR alone: --json prints one object and nothing else, with the figures of the plain functions."""
    hr = torch.rand(3, 60, 64, generator=torch.Generator().manual_seed(1))
    write_png(tmp_path / "mine" / "noise.png", (hr * 255).round().to(torch.uint8))
    folder = tmp_path / "run"
    done = command(
        "evaluate", "--model", "nearest", "--testset", str(tmp_path / "mine"), "--run-dir", str(folder), "--json"
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["model"] == "nearest"
    (image,) = content["sets"]["mine"]["images"]
    (pair,) = image_pairs(str(tmp_path / "mine"))
    sr = upscaler("nearest")(pair.lr)
    assert (image["psnr_y"], image["ssim_y"]) == pytest.approx((psnr(sr, pair.hr), ssim(sr, pair.hr)))
    assert (folder / "sheets" / "mine" / "noise.png").is_file()


def test_command_at_scale_2(tmp_path: Path) -> None:
    """The pairs, the model and the border are of that scale; a picture that is equal is null, also on the screen."""
    rng = torch.Generator().manual_seed(1)
    noise = (255 * torch.rand(3, 60, 64, generator=rng)).round().to(torch.uint8)
    write_png(tmp_path / "Set5" / "flat.png", torch.full((3, 40, 40), 128, dtype=torch.uint8))
    write_png(tmp_path / "Set5" / "noise.png", noise)
    words = ("evaluate", "--model", "nearest", "--testset", str(tmp_path / "Set5"), "--scale", "2", "--json")
    done = invoke(*words, "--run-dir", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    found = strict(done.stdout)
    assert strict((tmp_path / "run" / "evaluation.json").read_text()) == found
    flat, image = found["sets"]["Set5"]["images"]
    assert (flat["psnr_y"], found["sets"]["Set5"]["psnr_y"], found["sets"]["Set5"]["paper"]) == (None, None, {})
    pair = image_pairs(str(tmp_path / "Set5"), scale=2)[1]
    sr = upscaler("nearest", 2)(pair.lr)
    wanted = (psnr(sr, pair.hr, border=2), ssim(sr, pair.hr, border=2), psnr(sr, pair.hr, "rgb", border=2))
    assert (image["psnr_y"], image["ssim_y"], image["psnr_rgb"]) == pytest.approx(wanted, abs=1e-9)
    assert (found["scale"], found["border"]) == (2, 2)


def test_command_with_a_further_figure(tmp_path: Path) -> None:
    noise = (255 * torch.rand(3, 192, 184, generator=torch.Generator().manual_seed(1))).round().to(torch.uint8)
    write_png(tmp_path / "mine" / "large.png", noise)
    words = ("evaluate", "--model", "nearest", "--testset", str(tmp_path / "mine"), "--also", "ms_ssim", "--json")
    done = invoke(*words, "--run-dir", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    (image,) = strict(done.stdout)["sets"]["mine"]["images"]
    assert list(image) == ["name", "psnr_y", "ssim_y", "psnr_rgb", "ms_ssim"]
    (pair,) = image_pairs(str(tmp_path / "mine"))
    assert image["ms_ssim"] == pytest.approx(ms_ssim(upscaler("nearest")(pair.lr), pair.hr), abs=1e-9)


@pytest.mark.parametrize("names", ["ms_ssim", "lpips", "ms_ssim,lpips", "lpips,ms_ssim"])
def test_further_figures_in_any_order(names: str) -> None:
    flags = {flag.name: flag for command in COMMANDS if command.name == "evaluate" for flag in command.flags}
    assert flags["--also"].read(names) == names.split(",")


def test_a_picture_that_is_too_small_is_named_and_so_is_the_flag(tmp_path: Path) -> None:
    write_png(tmp_path / "mine" / "small.png", torch.zeros(3, 16, 40, dtype=torch.uint8))
    words = ("evaluate", "--model", "nearest", "--testset", str(tmp_path / "mine"), "--json")
    done = invoke(*words, "--run-dir", str(tmp_path / "run"))
    assert isinstance(done.exception, NodeRunError), done.output
    assert done.stdout == ""
    need = "small.png has 40x16 pixels, and the metrics need 11 a side within a border of 4; leave it out"
    assert str(done.exception).startswith(f"--testset: {tmp_path / 'mine'}/{need}")


PUBLISHED = pytest.mark.parametrize(
    ("model", "set5", "set14"), [("bicubic", 28.43, 26.09), ("nearest", 26.26, 24.74)], ids=["bicubic", "nearest"]
)


@PUBLISHED
def test_published_figures(
    model: str, set5: float, set14: float, shared_data: Path, registry: Registry, tmp_path: Path
) -> None:
    graph = Graph.load(graphs() / "evaluate.json")
    graph.nodes["model"].inputs["model"] = graph.nodes["report"].inputs["model"] = model
    graph.nodes["pictures"].inputs["folders"] = [str(shared_data / "testsets" / name) for name in ("Set5", "Set14")]
    made = run(graph, registry=registry, only="report", run_dir=tmp_path / "run", device="cpu")
    assert_published(made.outputs["report"]["sets"], set5, set14)


@pytest.mark.full
@PUBLISHED
def test_published_figures_by_the_command(
    model: str, set5: float, set14: float, shared_data: Path, tmp_path: Path
) -> None:
    sets = [str(shared_data / "testsets" / name) for name in ("Set5", "Set14")]
    done = command("evaluate", "--model", model, "--testset", *sets, "--run-dir", str(tmp_path / "run"), "--json")
    assert_published(strict(done.stdout)["sets"], set5, set14)


def assert_published(found: dict[str, Any], set5: float, set14: float) -> None:
    assert found["Set5"]["psnr_y"] == pytest.approx(set5, abs=0.01)
    assert found["Set14"]["psnr_y"] == pytest.approx(set14, abs=0.01)
    assert [len(found[name]["images"]) for name in ("Set5", "Set14")] == [5, 14]
