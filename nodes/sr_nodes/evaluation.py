"""Figures over test sets, beside the paper's, as data, a table, CSV, JSON and a page of pictures."""

from __future__ import annotations

import csv
import html
import io
import urllib.parse
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sr_nodes.degradation import Factor, bicubic_upscale
from sr_nodes.images import comparison
from sr_nodes.pairs import Label
from sr_nodes.types import Image
from sr_pipeline.jsontext import strict_json
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Report, RunDir, Socket

PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "Set5": {
        "bicubic": (28.43, 0.8211),
        "SRResNet-MSE": (32.05, 0.9019),
        "SRResNet-VGG22": (30.51, 0.8803),
        "SRGAN-MSE": (30.64, 0.8701),
        "SRGAN-VGG22": (29.84, 0.8468),
        "SRGAN-VGG54": (29.40, 0.8472),
    },
    "Set14": {
        "bicubic": (25.99, 0.7486),
        "SRResNet-MSE": (28.49, 0.8184),
        "SRResNet-VGG22": (27.19, 0.7807),
        "SRGAN-MSE": (26.92, 0.7611),
        "SRGAN-VGG22": (26.44, 0.7518),
        "SRGAN-VGG54": (26.02, 0.7397),
    },
    "BSD100": {"bicubic": (25.94, 0.6935), "SRResNet-MSE": (27.58, 0.7620), "SRGAN-VGG54": (25.16, 0.6688)},
}
"""SRGAN (Ledig et al., CVPR 2017), tables 1 and 2: PSNR in dB and daala's SSIM, Y, 4-pixel border cut."""

PAPER_SCALE = 4
HERE = Path()
METRICS = ("psnr_y", "ssim_y", "psnr_rgb")

Evaluation = Annotated[dict[str, Any], Socket("Evaluation")]
"""``{"Set5": {"psnr_y": ..., "ssim_y": ..., "psnr_rgb": ..., "images": [{"name": ..., "psnr_y": ...}, ...]}}``."""


@node(category="evaluation")
class Evaluate:
    """Gather the figures of each picture into means of each test set.

    Args:
        label: the picture.
        psnr_y: its PSNR on luma, dB.
        ssim_y: its SSIM on luma.
        psnr_rgb: its PSNR on RGB, dB.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, float, float, float]] = []

    def __call__(self, label: Label, psnr_y: float, ssim_y: float, psnr_rgb: float) -> None:
        self._rows.append((label.testset, label.name, psnr_y, ssim_y, psnr_rgb))

    def result(self) -> Evaluation:
        found: dict[str, Any] = {}
        for testset in dict.fromkeys(row[0] for row in self._rows):
            rows = [row[1:] for row in self._rows if row[0] == testset]
            means = [sum(column) / len(rows) for column in zip(*(row[1:] for row in rows), strict=True)]
            images = [dict(zip(("name", *METRICS), row, strict=True)) for row in rows]
            found[testset] = {**dict(zip(METRICS, means, strict=True)), "images": images}
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows = [tuple(row) for row in state["rows"]]


@node(category="evaluation", output=True)
def evaluation_sheet(
    label: Label, lr: Image, sr: Image, hr: Image, run_dir: RunDir = HERE, report: Report = SILENT
) -> None:
    """The ``comparison`` sheet of one picture with bicubic's, as sheets/SET/NAME.png in the run's folder.

    Args:
        label: the picture.
        lr: what was enlarged, batch of one.
        sr: the enlargement.
        hr: the true picture.
    """
    scale = hr.shape[2] // lr.shape[2]
    path = sheet_path(*label)
    (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
    comparison(lr, bicubic_upscale(lr, scale), sr, hr, filename=path, run_dir=run_dir, report=report)


def sheet_path(testset: str, name: str) -> str:
    return f"sheets/{testset}/{name}.png"


@node(category="evaluation", output=True)
def evaluation_report(
    evaluation: Evaluation,
    model: str,
    scale: Factor = PAPER_SCALE,
    border: Annotated[int, Field(ge=0)] = 4,
    run_dir: RunDir = HERE,
) -> Evaluation:
    """Write evaluation.json, evaluation.csv and report.html into the run's folder.

    Gives ``{"model": ..., "scale": ..., "border": ..., "sets": {"Set5": {"psnr_y": ..., "ssim_y": ..., "images": [...],
    "paper": {...}}}}``, where paper holds the columns of the SRGAN paper for that set at scale 4, with its own SSIM
    (daala's, not Wang's). JSON has no infinity: the PSNR of a picture that is equal to its HR is null in
    evaluation.json, and so is the mean of its set.

    Args:
        evaluation: the figures.
        model: what was measured, for the title.
        scale: how many times the model enlarges; the paper's columns are of 4.
        border: pixels that the metrics left out at each edge, for the note.
    """
    sets = {
        name: {**figures, "paper": _paper(name) if scale == PAPER_SCALE else {}} for name, figures in evaluation.items()
    }
    content = {"model": model, "scale": scale, "border": border, "sets": sets}
    (run_dir / "evaluation.json").write_text(strict_json(content) + "\n", encoding="utf-8")
    (run_dir / "evaluation.csv").write_text(_csv(sets), encoding="utf-8")
    (run_dir / "report.html").write_text(_page(content), encoding="utf-8")
    return content


def _paper(testset: str) -> dict[str, dict[str, float]]:
    """The paper's columns for a set, by its name in any case."""
    columns = next((c for name, c in PAPER.items() if name.casefold() == testset.casefold()), {})
    return {column: {"psnr_y": p, "ssim_daala": s} for column, (p, s) in columns.items()}


def _note(content: dict[str, Any]) -> str:
    return f"Y is BT.601 studio range, {content['border']}-pixel border cut."


@node(category="evaluation", output=True)
def evaluation_table(report: Evaluation) -> str:
    """The means as lines of text: this model, and the paper's columns below it.

    Args:
        report: what evaluation_report gives.
    """
    lines = []
    for name, figures in report["sets"].items():
        lines += [f"{name} ({len(figures['images'])} pictures)", f"  {'':<24} PSNR-Y    SSIM-Y   PSNR-RGB"]
        psnr, ssim, rgb = (figures[metric] for metric in METRICS)
        lines.append(f"  {_short(report['model']):<24} {psnr:6.2f} dB {ssim:8.4f} {rgb:7.2f} dB")
        for column, paper in figures["paper"].items():
            lines.append(f"  {'paper: ' + column:<24} {paper['psnr_y']:6.2f} dB {paper['ssim_daala']:8.4f}*")
        lines.append("")
    daala = any(figures["paper"] for figures in report["sets"].values())
    lines.append(_note(report) + (" * daala's SSIM, which is not comparable to Wang's." if daala else ""))
    return "\n".join(lines).rstrip()


def _short(model: str) -> str:
    return model if len(model) <= 24 else "..." + model[-21:]


def _csv(sets: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("set", "name", *METRICS))
    for testset, figures in sets.items():
        writer.writerows((testset, i["name"], *(i[m] for m in METRICS)) for i in figures["images"])
        writer.writerow((testset, "mean", *(figures[m] for m in METRICS)))
    return text.getvalue()


_STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:84rem;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem 1rem .2rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}
figure{margin:1.5rem 0}img{max-width:100%;height:auto;border:1px solid #ddd}"""


def _page(content: dict[str, Any]) -> str:
    model = html.escape(content["model"])
    body = [f"<h1>{model}</h1>"]
    for testset, figures in content["sets"].items():
        body += [f"<h2>{html.escape(testset)}</h2>", _rows(model, figures)]
        for image in figures["images"]:
            name, source = html.escape(image["name"]), urllib.parse.quote(sheet_path(testset, image["name"]))
            caption = f"{name}: {image['psnr_y']:.2f} dB, SSIM {image['ssim_y']:.4f}"
            body.append(f'<figure><img src="{source}" alt="{name}"><figcaption>{caption}</figcaption></figure>')
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{model}</title><style>{_STYLE}</style>'
    note = f"<p>{_note(content)} The paper's SSIM is daala's, not Wang's.</p>"
    return "\n".join([head, *body, note]) + "\n"


def _rows(model: str, figures: dict[str, Any]) -> str:
    rows = [(model, figures["psnr_y"], figures["ssim_y"])]
    rows += [(f"paper: {column}", p["psnr_y"], p["ssim_daala"]) for column, p in figures["paper"].items()]
    cells = "".join(f"<tr><td>{name}</td><td>{psnr:.2f}</td><td>{ssim:.4f}</td></tr>" for name, psnr, ssim in rows)
    return f"<table><tr><th></th><th>PSNR-Y, dB</th><th>SSIM</th></tr>{cells}</table>"
