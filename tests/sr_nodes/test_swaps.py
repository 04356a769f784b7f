"""Another critic or another loss in a shipped graph: a line of it, and it trains; ESRGAN is a straight loop's bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sr_nodes.assets import graphs
from sr_nodes.data import photographs, random_crops
from sr_nodes.degradation import bicubic
from sr_nodes.discriminators import unet_discriminator
from sr_nodes.losses import l1_loss, relativistic_discriminator_loss, relativistic_loss
from sr_nodes.perceptual import perceptual_loss, vgg19_layers
from sr_nodes.rrdbnet import rrdbnet
from sr_pipeline.errors import GraphError
from sr_pipeline.events import Channel
from sr_pipeline.execute import Context, Executor
from sr_pipeline.graph import Entry, Graph, Link
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sinks import read_metrics
from sr_pipeline.sockets import SeedSource

STEPS, SEED = 3, 7


def esrgan() -> Graph:
    """train_esrgan.json at a size that a test can afford; only literals differ."""
    graph = Graph.load(graphs() / "train_esrgan.json")
    graph.nodes["generator"].inputs |= {"blocks": 1, "channels": 4, "growth": 4}
    graph.nodes["discriminator"].inputs |= {"crop": 32, "channels": 2, "dense": 4}
    graph.nodes["hr"].inputs |= {"size": 32, "batch": 2, "steps": STEPS}
    graph.nodes["rate"].inputs |= {"initial": 1e-3, "drop_at": [2]}
    graph.nodes["vgg"].inputs |= {"layers": ["22"]}
    graph.nodes["pairs"].inputs |= {"crop": 32}
    return graph


def with_unet() -> Graph:
    graph = esrgan()
    graph.nodes["discriminator"] = Entry("unet_discriminator", {"channels": 2})
    return graph


def with_patches() -> Graph:
    graph = esrgan()
    graph.nodes["discriminator"] = Entry("patch_discriminator", {"channels": 2})
    return graph


def with_frequencies() -> Graph:
    graph = esrgan()
    graph.nodes["pixels"].class_type = "frequency_loss"
    return graph


def with_ldl() -> Graph:
    """The average of the generators, its SR before it moves, and the fourth loss."""
    graph = esrgan()
    graph.add("copy_model", id="average", model=Link("start"))
    graph.add("generate", id="average_sr", generator=Link("average"), lr=Link("lr"))
    graph.add("ldl_loss", id="artefacts", sr=Link("sr"), hr=Link("hr"), ema_sr=Link("average_sr"))
    graph.nodes["total"].inputs |= {"loss_4": Link("artefacts"), "weight_4": 1.0}
    graph.add("ema", id="averaged", model=Link("g_step"), average=Link("average"))
    graph.nodes["export"].inputs |= {"generator": Link("averaged")}
    return graph


def test_the_papers_numbers() -> None:
    """ESRGAN, sections 3.3 and 4.1: 16 crops of 128, 4e5 updates, the halvings, and the weights of equation 3."""
    nodes = Graph.load(graphs() / "train_esrgan.json").nodes
    assert nodes["generator"].inputs == {"scale": 4, "blocks": 23, "channels": 64, "growth": 32}
    assert nodes["hr"].inputs["size"] == nodes["discriminator"].inputs["crop"] == 128
    assert (nodes["hr"].inputs["batch"], nodes["hr"].inputs["steps"]) == (16, 400_000)
    drops = [50_000, 100_000, 200_000, 300_000]
    assert nodes["rate"].inputs == {"initial": 1e-4, "drop_at": drops, "factor": 0.5}
    assert nodes["vgg"].inputs == {"layers": ["54"], "before_relu": True}
    assert (nodes["content"].inputs["layer_weights"], nodes["content"].inputs["criterion"]) == ([1.0], "l1")
    assert [nodes["total"].inputs[f"weight_{i}"] for i in (1, 2, 3)] == [1.0, 5e-3, 1e-2]


@pytest.mark.parametrize("make", [esrgan, with_unet, with_patches, with_frequencies, with_ldl])
def test_a_swap_trains(make: Callable[[], Graph], registry: Registry, tmp_path: Path) -> None:
    """Each parameter gets a gradient (an optimizer step warns of those that do not), and each loss is a number."""
    graph = make()
    assert not compile_plan(graph, registry).warnings
    result = run(graph, registry=registry, steps=2, run_dir=tmp_path / "run")
    assert '"warning"' not in (result.run_dir / "events.jsonl").read_text()
    points = read_metrics(result.run_dir / "metrics.csv")
    assert {"content_loss", "adversarial_loss", "pixel_loss", "discriminator_loss"} <= {name for _, name, _ in points}
    assert all(torch.tensor(value).isfinite() for _, _, value in points)


def test_esrgan_with_the_unet_is_bit_identical_to_a_straight_loop(registry: Registry, tmp_path: Path) -> None:
    """Weights, and the vectors of spectral norm, which four training passes a step move in the file's order."""
    (folder := tmp_path / "run").mkdir()
    executor = Executor(compile_plan(with_unet(), registry), Context(folder, SEED, torch.device("cpu"), Channel([])))
    with torch.no_grad():
        executor.setup()
        for step, item in enumerate(executor.stream(0)):
            executor.step(item, step, step == STEPS - 1)
    state = executor.state()

    g = rrdbnet(blocks=1, channels=4, growth=4, rng=SeedSource(SEED, "generator").rng(0))
    d = unet_discriminator(channels=2, rng=SeedSource(SEED, "discriminator").rng(0))
    vgg = vgg19_layers(("22",))
    g_adam, d_adam = (torch.optim.Adam(model.parameters(), lr=1e-4, fused=True) for model in (g, d))
    photos = photographs("sr_nodes:samples/train")
    for step, hr in enumerate(random_crops(photos, size=32, batch=2, steps=STEPS, seed=SeedSource(SEED, "hr"))):
        for adam in (g_adam, d_adam):
            adam.param_groups[0]["lr"] = 1e-3 if step < 2 else 5e-4
        sr = g(bicubic(hr))
        d_loss = relativistic_discriminator_loss(d(hr), d(sr.detach()))
        d_adam.zero_grad()
        torch.autograd.backward(d_loss)
        d_adam.step()
        content = perceptual_loss(vgg, sr, hr, (1.0,))
        loss = content + 5e-3 * relativistic_loss(d(hr), d(sr)) + 1e-2 * l1_loss(sr, hr)
        g_adam.zero_grad()
        torch.autograd.backward(loss)
        g_adam.step()
    for name, model in (("generator", g), ("discriminator", d)):
        ours, theirs = state[name].state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_a_run_with_the_unet_resumes_bit_for_bit(registry: Registry, tmp_path: Path) -> None:
    whole = run(with_unet(), registry=registry, run_dir=tmp_path / "whole", seed=SEED)
    asked = iter([False, True])
    part = run(with_unet(), registry=registry, run_dir=tmp_path / "part", seed=SEED, stop=lambda: next(asked))
    assert (part.step, part.interrupted) == (1, True)
    resumed = run(with_unet(), registry=registry, run_dir=tmp_path / "part", resume=True)
    assert (resumed.step, resumed.interrupted) == (STEPS, False)
    name = f"checkpoints/step-{STEPS:09}.safetensors"
    ours, theirs = load_file(whole.run_dir / name), load_file(resumed.run_dir / name)
    assert ours.keys() == theirs.keys()
    assert sum(key.endswith(("._u", "._v")) for key in ours) == 16
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_half_old_and_half_new_discriminators_are_refused(registry: Registry) -> None:
    """G's loss on the old D's verdict of SR and the new D's of HR would run backward through weights that changed."""
    graph = esrgan()
    graph.nodes["adversarial"].inputs["fake"] = Link("fake")
    message = "the backward pass of 'g_step' would run after 'd_step' changed discriminator.discriminator"
    with pytest.raises(GraphError, match=message):
        compile_plan(graph, registry)


def test_features_of_one_layer_do_not_fit_the_pyramids_loss(registry: Registry) -> None:
    graph = esrgan()
    graph.nodes["vgg"] = Entry("vgg19", {})
    with pytest.raises(
        GraphError, match=r"content\.features: found FeatureNet \(vgg\.feature_net\), wanted FeaturePyr"
    ):
        compile_plan(graph, registry)
