"""The graph is the algorithm: SRGAN through the engine gives the weights of a straight PyTorch loop, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sr_nodes.data import photographs, random_crops
from sr_nodes.degradation import bicubic
from sr_nodes.discriminators import discriminator
from sr_nodes.features import vgg19, vgg_loss
from sr_nodes.losses import adversarial_loss, discriminator_loss
from sr_nodes.srresnet import srresnet
from sr_pipeline.events import Channel
from sr_pipeline.execute import Context, Executor
from sr_pipeline.graph import Graph
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.run import run
from sr_pipeline.sockets import SeedSource

STEPS, SEED = 5, 7
GRAPH = Path(__file__).parents[1] / "graphs" / "train_srgan.json"
State = dict[str, Tensor]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_packs()


def small_srgan() -> Graph:
    """train_srgan.json at a size that a test can afford; only literals differ."""
    graph = Graph.load(GRAPH)
    graph.nodes["generator"].inputs |= {"blocks": 2, "channels": 8}
    graph.nodes["discriminator"].inputs |= {"crop": 32, "channels": 4, "dense": 16}
    graph.nodes["hr"].inputs |= {"size": 32, "batch": 4, "steps": STEPS}
    graph.nodes["vgg"].inputs |= {"layer": "22"}
    graph.nodes["rate"].inputs |= {"initial": 1e-3, "drop_at": [3]}
    graph.nodes["pairs"].inputs |= {"crop": 32}
    return graph


def through_engine(graph: Graph, registry: Registry, folder: Path) -> tuple[State, State]:
    """The final states of generator and discriminator."""
    plan = compile_plan(graph, registry)
    executor = Executor(plan, Context(folder, SEED, torch.device("cpu"), Channel([])))
    folder.mkdir(parents=True)
    with torch.no_grad():
        executor.setup()
        for step, item in enumerate(executor.stream(0)):
            executor.step(item, step, step == STEPS - 1)
    state = executor.state()
    return state["generator"].state_dict(), state["discriminator"].state_dict()


class StraightLoop:
    """SRGAN as one would write it by hand: networks, losses and data as plain functions, torch for the rest."""

    def __init__(self) -> None:
        def rng(node: str) -> torch.Generator:
            return SeedSource(SEED, node).rng(0)

        self.G = srresnet(blocks=2, channels=8, rng=rng("generator"))
        self.D = discriminator(crop=32, channels=4, dense=16, rng=rng("discriminator"))
        self.vgg = vgg19(layer="22")
        self.g_adam = torch.optim.Adam(self.G.parameters(), lr=1e-4, fused=True)
        self.d_adam = torch.optim.Adam(self.D.parameters(), lr=1e-4, fused=True)
        photos = photographs("sr_nodes:samples/train")
        self.batches = random_crops(photos, size=32, batch=4, steps=STEPS, seed=SeedSource(SEED, "hr"))

    def set_rate(self, step: int) -> None:
        for adam in (self.g_adam, self.d_adam):
            adam.param_groups[0]["lr"] = 1e-3 if step < 3 else 1e-3 * 0.1

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return discriminator_loss(real, fake)

    def g_loss(self, sr: Tensor, hr: Tensor, judged: Tensor) -> Tensor:
        return vgg_loss(self.vgg, sr, hr) + 1e-3 * adversarial_loss(judged)

    def update(self, adam: torch.optim.Optimizer, loss: Tensor) -> None:
        self.g_adam.zero_grad()
        self.d_adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()

    def train(self, old_discriminator: bool = False) -> tuple[State, State]:
        self.G.train()
        self.D.train()
        for step, hr in enumerate(self.batches):
            self.set_rate(step)
            sr = self.G(bicubic(hr))
            if old_discriminator:
                real, fake, judged = self.D(hr), self.D(sr.detach()), self.D(sr)
                self.update(self.g_adam, self.g_loss(sr, hr, judged))
                self.update(self.d_adam, self.d_loss(real, fake))
            else:
                self.update(self.d_adam, self.d_loss(self.D(hr), self.D(sr.detach())))
                self.update(self.g_adam, self.g_loss(sr, hr, self.D(sr)))
        return self.G.state_dict(), self.D.state_dict()


def assert_same(ours: tuple[State, State], theirs: tuple[State, State]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


def test_srgan_is_bit_identical_to_a_straight_loop(registry: Registry, tmp_path: Path) -> None:
    assert_same(through_engine(small_srgan(), registry, tmp_path / "run"), StraightLoop().train())


def test_adversarial_loss_of_the_old_discriminator(registry: Registry, tmp_path: Path) -> None:
    """Wired to D before its update, G's step comes first, and it is another algorithm."""
    graph = small_srgan()
    graph.nodes["judged"].inputs["discriminator"] = graph.nodes["real"].inputs["discriminator"]
    old = through_engine(graph, registry, tmp_path / "old")
    assert_same(old, StraightLoop().train(old_discriminator=True))
    new = through_engine(small_srgan(), registry, tmp_path / "new")
    assert any(not torch.equal(old[0][name], new[0][name]) for name in new[0])


def test_one_pass_shared_by_both_losses(registry: Registry, tmp_path: Path) -> None:
    """The same D(SR) for both losses: its graph is kept for the second backward pass, the gradients are the same."""
    graph = small_srgan()
    graph.nodes["adversarial"].inputs["logits"] = graph.nodes["d_loss"].inputs["fake"]
    shared = through_engine(graph, registry, tmp_path / "shared")
    loop = StraightLoop()
    loop.G.train()
    loop.D.train()
    for step, hr in enumerate(loop.batches):
        loop.set_rate(step)
        sr = loop.G(bicubic(hr))
        real, fake = loop.D(hr), loop.D(sr)
        g_loss, d_loss = loop.g_loss(sr, hr, fake), loop.d_loss(real, fake)
        gradients = torch.autograd.grad(d_loss, list(loop.D.parameters()), retain_graph=True)
        loop.update(loop.g_adam, g_loss)
        for parameter, gradient in zip(loop.D.parameters(), gradients, strict=True):
            parameter.grad = gradient
        loop.d_adam.step()
    assert_same(shared, (loop.G.state_dict(), loop.D.state_dict()))


def test_twice_in_one_process(registry: Registry, tmp_path: Path) -> None:
    first = through_engine(small_srgan(), registry, tmp_path / "1")
    torch.manual_seed(99)
    torch.rand(1)
    assert_same(first, through_engine(small_srgan(), registry, tmp_path / "2"))


def test_resume_is_bit_identical(registry: Registry, tmp_path: Path) -> None:
    """Stopped after two steps and resumed: the same exported generator, and each step in metrics.csv once."""
    whole = run(small_srgan(), registry=registry, run_dir=tmp_path / "whole", seed=SEED)
    asked = iter([False, False, True])
    part = run(small_srgan(), registry=registry, run_dir=tmp_path / "part", seed=SEED, stop=lambda: next(asked))
    assert (part.step, part.interrupted) == (2, True)
    assert not (part.run_dir / "generator.safetensors").exists()
    resumed = run(small_srgan(), registry=registry, run_dir=tmp_path / "part", resume=True)
    assert (resumed.step, resumed.interrupted) == (STEPS, False)
    assert (whole.run_dir / "metrics.csv").read_text() == (resumed.run_dir / "metrics.csv").read_text()
    for name in ("generator.safetensors", f"checkpoints/step-{STEPS:09}.safetensors"):
        ours, theirs = load_file(whole.run_dir / name), load_file(resumed.run_dir / name)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_weights_are_those_of_the_run_that_went_on(
    memory_format: str, accumulate: int, registry: Registry, tmp_path: Path
) -> None:
    """In both orders in memory, which fused optimizers read as they find them, and amid an accumulation."""
    graph = small_srgan()
    for step in ("d_step", "g_step"):
        graph.nodes[step].inputs["accumulate"] = accumulate
    options: dict[str, Any] = {"registry": registry, "device": "cpu", "seed": SEED, "memory_format": memory_format}
    whole = run(graph, run_dir=tmp_path / "whole", **options)
    asked = iter(range(10))
    run(graph, run_dir=tmp_path / "halted", stop=lambda: next(asked) >= 3, **options)
    halted = run(graph, run_dir=tmp_path / "halted", resume=True, **options)
    one, other = (load_file(result.run_dir / "generator.safetensors") for result in (whole, halted))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
