"""Nodes for runs of several processes: in float64, so that only sums in another order differ; and a tell-tale."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from sr_nodes.types import Image
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Report, Rng, RunDir, Start, Step, World
from sr_pipeline.world import ALONE

M = TypeVar("M", bound=nn.Module)
HERE = Path()


@node
def wide(model: M) -> M:
    return model.double()


@node
def wide_image(image: Image) -> Image:
    return image.double()


@node
def tell(image: Image, folder: str = "", step: Step = 0, world: World = ALONE, report: Report = SILENT) -> Image:
    """Says which process does which step on how many images; warns of it once; and ends where it is told to."""
    if folder:
        with Path(folder, f"ticks-{world.rank}").open("ab", buffering=0) as file:
            file.write(b"%d %d %d\n" % (step, len(image), os.getpid()))
        for plan in Path(folder).glob(f"kill-{world.rank}-{step}"):
            plan.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    if step == 0:
        report.warning("the same everywhere")
        report.warning(f"of {world.rank}")
    report.scalar("rank", world.rank)
    return image


@node
def flawed(image: Image, at: int = -1, rank: int = 1, step: Step = 0, world: World = ALONE) -> Image:
    return image * torch.nan if step == at and world.rank == rank else image


@node
def broken(image: Image, at: int = -1, rank: int = 1, step: Step = 0, world: World = ALONE) -> Image:
    if step == at and world.rank == rank:
        raise ValueError("it is torn")
    return image


@node
def drawn(image: Image, rng: Rng | None = None, report: Report = SILENT) -> Image:
    report.scalar("first", torch.rand(1, generator=rng))
    return image


@node
def kept(image: Image, run_dir: RunDir = HERE) -> Image:
    (run_dir / "kept").touch()
    return image


@node
def unshared(start: Start = 0) -> Iterator[Image]:
    for _ in range(start, 2):
        yield torch.zeros(1, 3, 32, 32)


def srresnet(steps: int, folder: Path | str = "", batch: int = 4, at: int = -1) -> Graph:
    """SRResNet, small, in float64; with the tell-tale if a folder is given."""
    graph = Graph()
    generator = graph.add("wide", id="generator", model=graph.add("srresnet", id="net", blocks=2, channels=8))
    photos = graph.add("photographs", id="photos", folder="sr_nodes:samples/train")
    crops = graph.add("random_crops", id="crops", photos=photos, size=32, batch=batch, steps=steps)
    told = graph.add("tell", id="told", image=graph.add("wide_image", id="hr", image=crops), folder=str(folder))
    hr = graph.add("flawed", id="flaw", image=told, at=at)
    sr = graph.add("generate", id="sr", generator=generator, lr=graph.add("bicubic", id="lr", hr=hr))
    loss = graph.add("mse_loss", id="loss", sr=sr, hr=hr)
    adam = graph.add("adam", id="adam", model=generator, learning_rate=1e-3)
    stepped = graph.add("optimizer_step", id="step", loss=loss, model=generator, optimizer=adam)
    graph.add("log_scalar", id="score", value=loss, every=1)
    graph.add("export_generator", id="export", generator=stepped, every=0)
    return graph


def srgan(steps: int, batch: int = 4) -> Graph:
    """SRGAN, small, in float64, with both optimizers and an EMA."""
    graph = srresnet(steps, batch=batch)
    discriminator = graph.add(
        "wide", id="discriminator", model=graph.add("discriminator", id="critic", crop=32, channels=4, dense=8)
    )
    adam = graph.add("adam", id="d_adam", model=discriminator, learning_rate=1e-3)
    real = graph.add("discriminate", id="real", discriminator=discriminator, image=Link("flaw", 0))
    fake = graph.add("discriminate", id="fake", discriminator=discriminator, image=Link("sr", 0))
    d_loss = graph.add("discriminator_loss", id="d_loss", real=real, fake=fake)
    changed = graph.add("optimizer_step", id="d_step", loss=d_loss, model=discriminator, optimizer=adam)
    judged = graph.add("discriminate", id="judged", discriminator=changed, image=Link("sr", 0))
    adversarial = graph.add("adversarial_loss", id="adversarial", logits=judged)
    both = graph.add("weighted_sum", id="both", loss_1=Link("loss", 0), loss_2=adversarial, weight_2=1e-2)
    graph.nodes["step"].inputs["loss"] = Link(both.node, 0)
    average = graph.add("copy_model", id="average", model=Link("generator", 0))
    graph.add(
        "export_generator",
        id="ema_export",
        generator=graph.add("ema", id="ema", model=Link("step", 0), average=average),
        every=0,
    )
    return graph
