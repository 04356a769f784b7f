"""Nodes that the server's tests run: small, slow, or deadly."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import PIL.Image
import torch
from pydantic import Field
from torch import nn

from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Every, Model, Mutates, Report, Rng, RunDir, Start, Step

HERE = Path()


@node(category="server")
def ticks(
    steps: Annotated[int, Field(ge=1, le=10**6)] = 5,
    seconds: Annotated[float, Field(ge=0)] = 0.0,
    start: Start = 0,
) -> Iterator[float]:
    """A stream of numbers.

    Args:
        steps: how many.
        seconds: that each takes.
    """
    for position in range(start, steps):
        time.sleep(seconds)
        yield position + 1.0


@node(category="server")
def slow_setup(seconds: float = 0.0, rng: Rng | None = None) -> float:
    """A number that takes its time."""
    time.sleep(seconds)
    return 2.0


@node(category="server")
def scale(tick: float, by: float = 1.0, mode: Literal["linear", "square"] = "linear") -> float:
    """A number times another."""
    return tick * by if mode == "linear" else tick * tick * by


@node(category="server")
def weight(rng: Rng | None = None) -> Model:
    """A network of one weight."""
    made = nn.Linear(1, 1)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    return made


@node(category="server")
def nudge(model: Mutates[Model], tick: float, rng: Rng | None = None) -> Model:
    """Adds a small draw to each weight: what a training run is to the server."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=rng) + 1e-4 * tick)
    return model


@node(category="server", output=True)
def note(value: float, every: Every = 1, report: Report = SILENT) -> None:
    """The number on the curves."""
    report.scalar("", value)


@node(category="server", output=True)
def paint(
    tick: float, every: Every = 1, size: int = 8, run_dir: RunDir = HERE, step: Step = 0, report: Report = SILENT
) -> None:
    """A picture of one shade."""
    path = run_dir / "shades" / f"{step + 1}.png"
    path.parent.mkdir(exist_ok=True)
    PIL.Image.new("RGB", (size, size), (int(tick) % 256, 0, 0)).save(path)
    report.image(path)


@node(category="server", output=True)
def keep(model: Model, run_dir: RunDir = HERE) -> None:
    """The weights, as a file."""
    torch.save(model.state_dict(), run_dir / "weights.pt")


@node(category="server", output=True)
def die(tick: float, how: Literal["raise", "kill", "exit", "segfault", "none"] = "raise", at: int = 1) -> None:
    """Ends its process, or only fails, at a step."""
    if tick != at or how == "none":
        return
    if how == "raise":
        raise ValueError("too blue")
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    os.kill(os.getpid(), signal.SIGKILL)


def training(steps: int = 5, seconds: float = 0.0, **nodes: dict[str, Any]) -> dict[str, Any]:
    """A graph that trains: its numbers, its pictures and its weights. Each node has a title, as clients expect."""
    graph: dict[str, dict[str, Any]] = {
        "ticks": {"class_type": "ticks", "inputs": {"steps": steps, "seconds": seconds}},
        "made": {"class_type": "slow_setup", "inputs": {"seconds": 0.0}},
        "model": {"class_type": "weight", "inputs": {}},
        "loss": {"class_type": "scale", "inputs": {"tick": ["ticks", 0], "by": ["made", 0]}},
        "step": {"class_type": "nudge", "inputs": {"model": ["model", 0], "tick": ["loss", 0]}},
        "curve": {"class_type": "note", "inputs": {"value": ["loss", 0]}},
        "shade": {"class_type": "paint", "inputs": {"tick": ["ticks", 0]}},
        "kept": {"class_type": "keep", "inputs": {"model": ["step", 0]}},
        **nodes,
    }
    return {id_: {"_meta": {"title": id_}, **entry} for id_, entry in graph.items()}
