"""Figures over test sets: the published ones, the command as users run it, and the files it leaves."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_nodes.evaluation import PAPER, Evaluate, evaluation_report, evaluation_table, sheet_path
from sr_nodes.metrics import psnr
from sr_nodes.pairs import Label, image_pairs
from sr_nodes.pictures import write_png
from sr_nodes.similarity import ssim
from sr_nodes.upscalers import upscaler

FIGURES = {
    "Set5": [("a", 30.0, 0.8, 28.0), ("b", 32.0, 0.9, 30.0)],
    "holidays": [("x & <y>", 25.0, 0.7, 24.0)],
}


def evaluated() -> dict[str, Any]:
    gather = Evaluate()
    for testset, rows in FIGURES.items():
        for name, *figures in rows:
            gather(Label(testset, name), *figures)
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
    assert "inf dB   0.9500     inf dB" in evaluation_table(content)


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


def test_state_of_half_an_evaluation() -> None:
    """Stopped after the first picture and gone on: the same result."""
    first, second = Evaluate(), Evaluate()
    first(Label("s", "a"), 1.0, 0.5, 2.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for gather in (first, second):
        gather(Label("s", "b"), 3.0, 0.7, 4.0)
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
    assert re.fullmatch(r"  \.\.\.m{21}  31\.00 dB   0\.8500   29\.00 dB", lines[2])
    assert lines[3] == "  paper: bicubic            28.43 dB   0.8211*"


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
    done = command(*words, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    found = strict(done.stdout)
    assert strict((tmp_path / "run" / "evaluation.json").read_text()) == found
    flat, image = found["sets"]["Set5"]["images"]
    assert (flat["psnr_y"], found["sets"]["Set5"]["psnr_y"], found["sets"]["Set5"]["paper"]) == (None, None, {})
    pair = image_pairs(str(tmp_path / "Set5"), scale=2)[1]
    sr = upscaler("nearest", 2)(pair.lr)
    wanted = (psnr(sr, pair.hr, border=2), ssim(sr, pair.hr, border=2), psnr(sr, pair.hr, "rgb", border=2))
    assert (image["psnr_y"], image["ssim_y"], image["psnr_rgb"]) == pytest.approx(wanted, abs=1e-9)
    assert (found["scale"], found["border"]) == (2, 2)


@pytest.mark.parametrize(
    ("model", "set5", "set14"), [("bicubic", 28.43, 26.09), ("nearest", 26.26, 24.74)], ids=["bicubic", "nearest"]
)
def test_published_figures(model: str, set5: float, set14: float, shared_data: Path, tmp_path: Path) -> None:
    sets = [str(shared_data / "testsets" / name) for name in ("Set5", "Set14")]
    done = command("evaluate", "--model", model, "--testset", *sets, "--run-dir", str(tmp_path / "run"), "--json")
    found = json.loads(done.stdout)["sets"]
    assert found["Set5"]["psnr_y"] == pytest.approx(set5, abs=0.01)
    assert found["Set14"]["psnr_y"] == pytest.approx(set14, abs=0.01)
    assert len(found["Set14"]["images"]) == 14
