"""A step as one CUDA graph gives the numbers of the step node by node; only a CUDA device can show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from sr_nodes.assets import graphs
from sr_pipeline.check import with_settings
from sr_pipeline.checkpoint import latest, read
from sr_pipeline.events import RunStarted, Warned
from sr_pipeline.graph import Graph
from sr_pipeline.node import node
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sockets import Device, Model, Optimizer, Training
from toys import Batch, Heard

pytestmark = pytest.mark.gpu
STEPS, RATE = 200, 2.0**-14
"""A learning rate that float32 holds as it is, because a recorded step reads it from a float32."""
TINY = [
    "generator.blocks=2", "generator.channels=16", "start.weights=null", "discriminator.crop=32",
    "discriminator.channels=8", "discriminator.dense=16", "hr.size=32", "hr.batch=4", "pairs.crop=32", "vgg.layer=22",
    f"rate.initial={RATE}", "rate.drop_at=[150]", "rate.factor=0.5", "content_loss.every=1", "preview.every=50",
]  # fmt: skip
CPU = torch.device("cpu")


@node
def on_device(steps: int = STEPS, device: Device = CPU) -> Iterator[Batch]:
    for position in range(steps):
        rng = torch.Generator().manual_seed(position)
        yield torch.randn(4, toys.WIDTH, generator=rng).to(device)


@node
def net_on_device(device: Device = CPU) -> Model:
    return toys.undisturbed(torch.Generator().manual_seed(0)).to(device)


@node
def sgd_there(model: Model, rate: float = 0.1) -> Optimizer:
    """Torch's fused kernel, because its others read the rate on the host."""
    return torch.optim.SGD(model.parameters(), rate, momentum=0.5, fused=True)


@node
def passed(model: Model, x: Batch, training: Training = False) -> Batch:
    model.train(training)
    result: Tensor = model(x)
    model.eval()
    return result


@node
def waits(x: Batch) -> Batch:
    """Reads a number on the host, which a recording refuses."""
    return x * (2.0 if x.sum().item() > 0 else 1.0)


TYPES = toys.REGISTRY.with_nodes([on_device, net_on_device, sgd_there, passed, waits])
TOY = """
    x = on_device()
    rate = halving(0.0625)
    net = net_on_device()
    opt = sgd_there(net)
    y = passed(net, x)
    loss = distance(y, x)
    step = optimizer_step(loss, net, opt, rate=rate)
    log = log(loss)
"""


def train(graph: Graph, registry: Registry, folder: Path, **options: Any) -> tuple[dict[str, Any], Heard]:
    """The state after the last step, and what was told."""
    heard = Heard()
    options = {"capture": "off", "precision": "fp32"} | options
    run(graph, registry=registry, device="cuda", run_dir=folder, deterministic=True, sinks=[heard], **options)
    newest = latest(folder / "checkpoints")
    assert newest is not None
    return read(newest).objects, heard


def assert_agree(
    one: tuple[dict[str, Any], Heard], other: tuple[dict[str, Any], Heard], loss: str, kind: str = "graph"
) -> None:
    """Each loss of 200 steps within 0.1 %, and the weights: where the kernels are the same, the same bits."""
    (found, captured), (wanted, eager) = one, other
    modes = [e.mode for e in captured if isinstance(e, RunStarted)]
    assert [mode.endswith(f"capture {kind}") for mode in modes] == [True]
    assert [e.text for e in captured if isinstance(e, Warned)] == []
    assert captured.scalars(loss) == pytest.approx(eager.scalars(loss), rel=1e-3)
    for name, state in wanted.items():
        for key, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                torch.testing.assert_close(found[name][key], tensor, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # what torch's compiler imports
@pytest.mark.parametrize("kind", ["graph", "compile"])
def test_a_toy_of_200_steps(kind: str, tmp_path: Path) -> None:
    graph = toys.graph(TOY, TYPES)
    captured = train(graph, TYPES, tmp_path / "graph", capture=kind)
    assert_agree(captured, train(graph, TYPES, tmp_path / "eager"), "log", kind)


def test_srgan_of_200_steps(registry: Registry, tmp_path: Path) -> None:
    graph = with_settings(Graph.load(graphs() / "train_srgan.json"), registry, TINY)
    captured = train(graph, registry, tmp_path / "graph", capture="auto", steps=STEPS)
    assert_agree(captured, train(graph, registry, tmp_path / "eager", steps=STEPS), "content_loss")


def test_srgan_of_200_steps_in_bf16(registry: Registry, tmp_path: Path) -> None:
    """Recorded layers round elsewhere: losses within 2 %, weights within a fifth of their way.

    Two runs on a CPU that differ in the order of their sums alone lie 0.2 % and a 24th apart.
    """
    graph = with_settings(Graph.load(graphs() / "train_srgan.json"), registry, TINY)
    options: dict[str, Any] = {"precision": "bf16"}
    begun, _ = train(graph, registry, tmp_path / "begun", steps=1, **options)
    found, captured = train(graph, registry, tmp_path / "graph", capture="auto", steps=STEPS, **options)
    wanted, eager = train(graph, registry, tmp_path / "eager", steps=STEPS, **options)
    assert [e.text for e in captured if isinstance(e, Warned)] == []
    assert captured.scalars("content_loss") == pytest.approx(eager.scalars("content_loss"), rel=0.02)
    for name in ("generator", "discriminator"):
        names = [key for key in wanted[name] if key.endswith((".weight", ".bias"))]
        at, end, start = (
            torch.cat([of[name][key].double().flatten() for key in names]) for of in (found, wanted, begun)
        )
        assert (at - end).norm() < 0.2 * (end - start).norm()


def test_a_captured_run_resumes(registry: Registry, tmp_path: Path) -> None:
    """While the thread that writes checkpoints uses the device too."""
    graph = with_settings(Graph.load(graphs() / "train_srgan.json"), registry, TINY)
    options: dict[str, Any] = {"capture": "graph", "checkpoint_every": 2}
    whole, _ = train(graph, registry, tmp_path / "whole", steps=20, **options)
    train(graph, registry, tmp_path / "part", steps=10, **options)
    resumed, _ = train(graph, registry, tmp_path / "part", steps=20, resume=True, **options)
    for name, tensor in whole["generator"].items():
        torch.testing.assert_close(resumed["generator"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_what_waits_for_the_device_is_not_captured(tmp_path: Path) -> None:
    """The reason is told, and the run goes on with the numbers that it would have had."""
    graph = toys.graph(TOY.replace("distance(y, x)", "distance(z, x)\n    z = waits(y)"), TYPES)
    found, heard = train(graph, TYPES, tmp_path / "graph", capture="graph", steps=10)
    wanted, _ = train(graph, TYPES, tmp_path / "eager", steps=10)
    assert next(e.text for e in heard if isinstance(e, Warned)).startswith("not captured: ")
    assert all(torch.equal(found["net"][name], wanted["net"][name]) for name in wanted["net"])
