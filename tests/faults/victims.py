"""Runs to be killed: a tiny SRGAN in a process of its own, forked from one that has imported everything.

As a program it reads one job a line as JSON, prints the process that does it, and then how that ended. Given a
folder, it fills a disk instead.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sr_nodes.types import Image
from sr_pipeline.errors import PipelineError
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.run import run
from sr_pipeline.signals import stop_on_signals
from sr_pipeline.sockets import Loss, RunDir, Step

HERE = Path()


@node
def tick(image: Image, run_dir: RunDir = HERE, step: Step = 0) -> Image:
    """Tells the steps that begin."""
    with (run_dir / "ticks").open("ab", buffering=0) as file:
        file.write(b"%d\n" % step)
    return image


@node
def flawed(image: Image, at: int, kind: str, run_dir: RunDir = HERE, step: Step = 0) -> Image:
    """Fails at a step, as long as the run's folder holds no file ``mended``."""
    if step == at and not (run_dir / "mended").exists():
        if kind == "error":
            raise ArithmeticError("a wrong number")
        if kind == "out of memory":
            torch.empty(1 << 50)
        if kind == "out of host memory":
            bytearray(1 << 60)
        if kind == "slow":
            time.sleep(60)
    return image


@node
class MeanOf:
    """The mean of a loss, over the steps."""

    def __init__(self) -> None:
        self.sum, self.number = 0.0, 0

    def __call__(self, value: Loss) -> None:
        self.sum, self.number = self.sum + value.item(), self.number + 1

    def result(self) -> float:
        return self.sum / self.number

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.number = state["sum"], state["number"]


def srgan(workers: int = 0, place: str = "hr", at: int = -1, kind: str = "") -> Graph:
    """SRGAN at its smallest: BatchNorm in both networks, both optimizers, EMA, a mean, and crops by worker processes.

    ``flawed`` stands behind ``place``: hr is before any change, lr1 after D's step.
    """
    graph = Graph()
    photos = graph.add("photographs", id="photos", folder="sr_nodes:samples/train")
    generator = graph.add("srresnet", id="generator", blocks=1, channels=4)
    discriminator = graph.add("discriminator", id="discriminator", crop=32, channels=2, dense=4)
    average = graph.add("copy_model", id="average", model=generator)
    g_adam = graph.add("adam", id="g_adam", model=generator, learning_rate=1e-3)
    d_adam = graph.add("adam", id="d_adam", model=discriminator, learning_rate=1e-3)
    drawn = graph.add("random_crops", id="drawn", photos=photos, size=32, batch=2, steps=60, workers=workers)
    seen = graph.add("tick", id="seen", image=drawn)
    early, late = (at if place == p else -1 for p in ("hr", "lr1"))
    hr = graph.add("flawed", id="hr", image=seen, at=early, kind=kind)
    lr = graph.add("bicubic", id="lr", hr=hr)
    sr = graph.add("generate", id="sr", generator=generator, lr=lr)
    real = graph.add("discriminate", id="real", discriminator=discriminator, image=hr)
    fake = graph.add("discriminate", id="fake", discriminator=discriminator, image=sr)
    d_loss = graph.add("discriminator_loss", id="d_loss", real=real, fake=fake)
    d_step = graph.add("optimizer_step", id="d_step", loss=d_loss, model=discriminator, optimizer=d_adam)
    changed = graph.add("flawed", id="lr1", image=sr, at=late, kind=kind)
    judged = graph.add("discriminate", id="judged", discriminator=d_step, image=changed)
    content = graph.add("l1_loss", id="content", sr=sr, hr=hr)
    adversarial = graph.add("adversarial_loss", id="adversarial", logits=judged)
    g_loss = graph.add("weighted_sum", id="g_loss", loss_1=content, loss_2=adversarial, weight_2=1e-3)
    g_step = graph.add("optimizer_step", id="g_step", loss=g_loss, model=generator, optimizer=g_adam)
    ema = graph.add("ema", id="ema", model=Link(g_step.node, 0), average=average, decay=0.9)
    graph.add("log_scalar", id="score", value=content, every=1)
    graph.add("log_scalar", id="overall", value=graph.add("mean_of", id="mean", value=content), every=1)
    graph.add("export_generator", id="export", generator=ema, filename="generator.safetensors", every=0)
    return graph


def train(job: dict[str, Any], registry: Registry) -> int:
    """Run a job as the command line does, and return its exit code."""
    if size := job.get("largest_file"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        with stop_on_signals() as caught:
            result = run(
                srgan(**job.get("graph", {})),
                registry=registry,
                device="cpu",
                run_dir=job["folder"],
                resume=job["resume"],
                checkpoint_every=job.get("every", 4),
                best="score:min",
                stop=lambda: bool(caught),
            )
    except PipelineError as error:
        say(error)
        return 1
    return 128 + caught[0] if result.interrupted else 0


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def fill_a_disk(folder: Path, registry: Registry) -> None:
    """Run on a disk of 600 kB, and on a larger one again; the folder is copied to ``folder/kept``."""
    disk = folder / "small"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, "size=600k", "tmpfs", str(disk)], check=True)
    job = {"folder": str(disk / "run"), "resume": False}
    codes = [train(job, registry)]
    kept = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
    subprocess.run([*mount, "remount,size=9m", "tmpfs", str(disk)], check=True)
    codes.append(train({**job, "resume": True}, registry))
    shutil.copytree(disk / "run", folder / "kept")
    say(json.dumps(codes))
    say(json.dumps(kept))


def main() -> None:
    torch.set_num_threads(1)
    registry = load_packs([__file__])
    if len(sys.argv) > 1:
        fill_a_disk(Path(sys.argv[1]), registry)
        return
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 70
            try:
                code = train(job, registry)
            finally:
                os._exit(code)
        say(process)
        say(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


if __name__ == "__main__":
    main()
