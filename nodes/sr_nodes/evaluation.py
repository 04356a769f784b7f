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
from sr_nodes.types import Image, Metrics
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
METRICS = {
    "psnr_y": ("PSNR-Y", "{:.2f} dB"),
    "ssim_y": ("SSIM-Y", "{:.4f}"),
    "psnr_rgb": ("PSNR-RGB", "{:.2f} dB"),
    "ms_ssim": ("MS-SSIM-Y", "{:.4f}"),
    "lpips": ("LPIPS", "{:.4f}"),
}
"""The headings of figures, and how they are written; the first three are always there."""

Evaluation = Annotated[dict[str, Any], Socket("Evaluation")]
"""``{"Set5": {"psnr_y": ..., "ssim_y": ..., "psnr_rgb": ..., "images": [{"name": ..., "psnr_y": ...}, ...]}}``: means,
and below each picture its own figures, of the same names."""


@node(category="evaluation")
class Evaluate:
    """Gather the figures of each picture into means of each test set.

    Args:
        label: the picture.
        psnr_y: its PSNR on luma, dB.
        ssim_y: its SSIM on luma.
        psnr_rgb: its PSNR on RGB, dB.
        further: more figures of it, by name; each picture has the same.
    """

    def __init__(self) -> None:
        self._images: dict[str, list[dict[str, Any]]] = {}

    def __call__(
        self, label: Label, psnr_y: float, ssim_y: float, psnr_rgb: float, further: Metrics | None = None
    ) -> None:
        figures = {"psnr_y": psnr_y, "ssim_y": ssim_y, "psnr_rgb": psnr_rgb, **(further or {})}
        self._images.setdefault(label.testset, []).append({"name": label.name, **figures})

    def result(self) -> Evaluation:
        return {
            testset: {**{name: _mean(images, name) for name in images[0] if name != "name"}, "images": images}
            for testset, images in self._images.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._images = state["images"]


def _mean(images: list[dict[str, Any]], name: str) -> float:
    return float(sum(image[name] for image in images) / len(images))


@node(category="evaluation", output=True)
def evaluation_sheet(
    label: Label, lr: Image, sr: Image, hr: Image, run_dir: RunDir = HERE, report: Report = SILENT
) -> None:
    """The ``comparison`` sheet of one picture with bicubic's, as sheets/SET/NAME.png in the run's folder.

    Args:
        label: the picture.
        lr: what was enlarged, [1, 3, h, w] in [0, 1].
        sr: the enlargement, [1, 3, H, W].
        hr: the true picture, of the same shape.
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
    (daala's, not Wang's). Further figures stand beside these under their own names. JSON has no infinity: the PSNR of
    a picture that is equal to its HR is null in evaluation.json, and so is the mean of its set.

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
    daala = any(figures["paper"] for figures in content["sets"].values())
    star = " * daala's SSIM, which is not comparable to Wang's." if daala else ""
    return f"Y is BT.601 studio range, {content['border']}-pixel border cut.{star}"


@node(category="evaluation", output=True)
def evaluation_table(report: Evaluation) -> str:
    """The means as lines of text: this model, and the paper's columns below it.

    Args:
        report: what evaluation_report gives.
    """
    lines = []
    for name, figures in report["sets"].items():
        lines += [f"{name} ({len(figures['images'])} pictures)", *_lines(_short(report["model"]), figures), ""]
    return "\n".join([*lines, _note(report)])


def _lines(model: str, figures: dict[str, Any]) -> list[str]:
    """A set's table as text; the paper's stars hang out at the right."""
    rows = _table(model, figures)
    cells = [[f"{cell:>10}" if cell.endswith("*") else f"{cell:>9} " for cell in row] for _, *row in rows]
    return [f"  {row[0]:<24}{''.join(line)}".rstrip() for row, line in zip(rows, cells, strict=True)]


def _table(model: str, figures: dict[str, Any]) -> list[list[str]]:
    """The headings, this model's means, and the paper's columns of that set."""
    shown = [(METRICS.get(name, (name, "{:.4f}")), figures[name]) for name in _names(figures)]
    rows = [["", *(heading for (heading, _), _ in shown)], [model, *(form.format(mean) for (_, form), mean in shown)]]
    for column, paper in figures["paper"].items():
        rows.append([f"paper: {column}", f"{paper['psnr_y']:.2f} dB", f"{paper['ssim_daala']:.4f}*"])
    return rows


def _names(figures: dict[str, Any]) -> list[str]:
    return [name for name in figures if name not in ("images", "paper")]


def _short(model: str) -> str:
    return model if len(model) <= 24 else "..." + model[-21:]


def _csv(sets: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = next((_names(figures) for figures in sets.values()), [])
    writer.writerow(("set", "name", *names))
    for testset, figures in sets.items():
        writer.writerows((testset, image["name"], *(image[n] for n in names)) for image in figures["images"])
        writer.writerow((testset, "mean", *(figures[n] for n in names)))
    return text.getvalue()


_STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:84rem;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem 1rem .2rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}
figure{margin:1.5rem 0}img{max-width:100%;height:auto;border:1px solid #ddd}"""


def _page(content: dict[str, Any]) -> str:
    model = html.escape(content["model"])
    body = [f"<h1>{model}</h1>"]
    for testset, figures in content["sets"].items():
        body += [f"<h2>{html.escape(testset)}</h2>", _html(_table(content["model"], figures))]
        for image in figures["images"]:
            name, source = html.escape(image["name"]), urllib.parse.quote(sheet_path(testset, image["name"]))
            caption = f"{name}: {image['psnr_y']:.2f} dB, SSIM {image['ssim_y']:.4f}"
            body.append(f'<figure><img src="{source}" alt="{name}"><figcaption>{caption}</figcaption></figure>')
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{model}</title><style>{_STYLE}</style>'
    note = f"<p>{html.escape(_note(content))}</p>"
    return "\n".join([head, *body, note]) + "\n"


def _html(rows: list[list[str]]) -> str:
    texts = [[html.escape(cell) for cell in row] for row in rows]
    cells = "".join("<tr><td>" + "</td><td>".join(row) + "</td></tr>" for row in texts[1:])
    return f"<table><tr><th>{'</th><th>'.join(texts[0])}</th></tr>{cells}</table>"
