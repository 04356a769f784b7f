"""train_realworld.json: the second-order degradation of Real-ESRGAN, in SRGAN's wiring."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sr_nodes.assets import graphs
from sr_pipeline.check import with_settings
from sr_pipeline.graph import Graph
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry
from sr_pipeline.run import run

PATH = graphs() / "train_realworld.json"
TINY = [
    "generator.blocks=1",
    "generator.channels=4",
    "discriminator.crop=32",
    "discriminator.channels=2",
    "discriminator.dense=4",
    "hr.size=32",
    "hr.batch=2",
    "pairs.crop=32",
]
TWO_ROUNDS = ["hr", "blur_1", "resize_1", "noise_1", "jpeg_1", "blur_2", "resize_2", "noise_2"]
LAST_ORDERS = {"first": ["to_scale_1", "sinc_1", "jpeg_2"], "second": ["jpeg_3", "to_scale_2", "sinc_2"]}


def lr_of(step: int, seed: int, registry: Registry, folder: Path) -> Tensor:
    """The LR of one step of the shipped graph: the last of a run up to it."""
    graph = with_settings(Graph.load(PATH), registry, TINY)
    path = folder / f"{step}-{seed}-{len(list(folder.iterdir()))}"
    lr = run(graph, registry=registry, steps=step, seed=seed, only="lr", run_dir=path, device="cpu").outputs["lr"]
    assert isinstance(lr, Tensor)
    return lr


def test_the_graph_plans_without_a_warning_and_trains(registry: Registry, tmp_path: Path) -> None:
    graph = with_settings(Graph.load(PATH), registry, TINY)
    assert not compile_plan(graph, registry).warnings
    result = run(graph, registry=registry, steps=2, run_dir=tmp_path / "run", device="cpu")
    assert result.step == 2
    assert (result.run_dir / "generator.safetensors").is_file()


def test_lr_is_a_quarter_of_hr_in_range_and_of_whole_levels(registry: Registry, tmp_path: Path) -> None:
    lr = lr_of(1, 0, registry, tmp_path)
    assert lr.shape == (2, 3, 8, 8)
    assert 0 <= lr.min() < lr.max() <= 1
    assert torch.equal(lr, (lr * 255).round() / 255)


def test_lr_depends_on_the_seed_and_the_step(registry: Registry, tmp_path: Path) -> None:
    first = lr_of(1, 0, registry, tmp_path)
    assert torch.equal(first, lr_of(1, 0, registry, tmp_path))
    assert not torch.equal(first, lr_of(2, 0, registry, tmp_path))
    assert not torch.equal(first, lr_of(1, 1, registry, tmp_path))


def test_the_recipe_is_in_the_papers_order() -> None:
    nodes = Graph.load(PATH).nodes
    kinds = {
        "first": ["resize_to_scale", "sinc_filter", "jpeg"],
        "second": ["jpeg", "resize_to_scale", "sinc_filter"],
    }
    for place, last in LAST_ORDERS.items():
        way = [*TWO_ROUNDS, *last]
        for before, after in pairwise(way):
            assert nodes[after].inputs["image"] == (before, 0)
        rounds = ["random_blur", "random_resize", "random_noise"]
        assert [nodes[id_].class_type for id_ in way[1:]] == [*rounds, "jpeg", *rounds, *kinds[place]]
        assert nodes["order"].inputs[place] == (last[-1], 0)
    assert nodes["order"].class_type == "random_choice"
    assert (nodes["lr"].class_type, nodes["lr"].inputs["image"]) == ("quantize", ("order", 0))


def test_both_last_orders_are_taken(registry: Registry, tmp_path: Path) -> None:
    """Which one, told by what it gives: JPEG last leaves whole levels, ringing last almost never does."""
    graph = with_settings(Graph.load(PATH), registry, [*TINY, "sinc_1.probability=1.0", "sinc_2.probability=1.0"])
    whole = set()
    for seed in range(8):
        folder = tmp_path / str(seed)
        made = run(graph, registry=registry, steps=1, seed=seed, only="order", run_dir=folder, device="cpu")
        order = made.outputs["order"]
        whole.add(torch.equal(order, (order * 255).round() / 255))
    assert whole == {True, False}


def test_but_for_the_degradation_the_wiring_is_srgans() -> None:
    paper, real = Graph.load(graphs() / "train_srgan.json").nodes, Graph.load(PATH).nodes
    degradation = {*TWO_ROUNDS[1:], *(id_ for last in LAST_ORDERS.values() for id_ in last), "order"}
    assert set(real) - set(paper) == degradation
    assert {id_ for id_, entry in paper.items() if real[id_].inputs != entry.inputs} == {"lr"}


KERNELS = {
    **{"isotropic": 0.45, "anisotropic": 0.25, "generalised_isotropic": 0.12, "generalised_anisotropic": 0.03},
    **{"plateau_isotropic": 0.12, "plateau_anisotropic": 0.03, "sinc_probability": 0.1, "kernel_size": 21},
}
NOISE = {"gaussian_probability": 0.5, "gray_probability": 0.4}
JPEG = {"quality_min": 30, "quality_max": 95, "probability": 1.0, "chroma": "4:2:0"}


@pytest.mark.parametrize(
    ("id_", "published"),
    [
        ("blur_1", {**KERNELS, "sigma_min": 0.2, "sigma_max": 3.0, "probability": 1.0}),
        ("resize_1", {"up": 0.2, "down": 0.7, "min_scale": 0.15, "max_scale": 1.5, "antialias": False}),
        ("noise_1", {**NOISE, "sigma_min": 1.0, "sigma_max": 30.0, "scale_min": 0.05, "scale_max": 3.0}),
        ("jpeg_1", JPEG),
        ("blur_2", {**KERNELS, "sigma_min": 0.2, "sigma_max": 1.5, "probability": 0.8}),
        ("resize_2", {"up": 0.3, "down": 0.4, "min_scale": 0.3, "max_scale": 1.2, "divisor": 4, "antialias": False}),
        ("noise_2", {**NOISE, "sigma_min": 1.0, "sigma_max": 25.0, "scale_min": 0.05, "scale_max": 2.5}),
        *((id_, {"scale": 4, "antialias": False}) for id_ in ("to_scale_1", "to_scale_2")),
        *((id_, {"kernel_size": 21, "probability": 0.8}) for id_ in ("sinc_1", "sinc_2")),
        *((id_, JPEG) for id_ in ("jpeg_2", "jpeg_3")),
        ("order", {"probability": 0.5}),
    ],
)
def test_the_numbers_are_those_published(id_: str, published: dict[str, Any], registry: Registry) -> None:
    """Real-ESRGAN's options for x4, whether the file writes them or the node has them as defaults."""
    entry = Graph.load(PATH).nodes[id_]
    defaults = {name: found.default for name, found in registry[entry.class_type].inputs.items()}
    inputs = {**defaults, **entry.inputs}
    assert {name: inputs[name] for name in published} == published
