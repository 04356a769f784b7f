"""train_realworld.json: the second-order degradation of Real-ESRGAN, in SRGAN's wiring."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

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
ORDER = ["hr", "blur_1", "resize_1", "noise_1", "jpeg_1", "blur_2", "resize_2", "noise_2", "to_scale", "sinc", "lr"]


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
    for before, after in pairwise(ORDER):
        assert nodes[after].inputs["image"] == (before, 0)
    kinds = [nodes[id_].class_type for id_ in ORDER[1:]]
    assert kinds[:4] == ["random_blur", "random_resize", "random_noise", "jpeg"]
    assert kinds[4:] == ["random_blur", "random_resize", "random_noise", "resize_to_scale", "sinc_filter", "jpeg"]


def test_but_for_the_degradation_the_wiring_is_srgans() -> None:
    paper, real = Graph.load(graphs() / "train_srgan.json").nodes, Graph.load(PATH).nodes
    assert set(real) - set(paper) == set(ORDER) - {"hr", "lr"}
    assert {id_ for id_, entry in paper.items() if real[id_].inputs != entry.inputs} == {"lr"}


@pytest.mark.parametrize(
    ("id_", "published"),
    [
        ("blur_1", {"kernel_size": 21, "sigma_min": 0.2, "sigma_max": 3.0, "sinc_probability": 0.1}),
        ("resize_1", {"up": 0.2, "down": 0.7, "min_scale": 0.15, "max_scale": 1.5}),
        ("noise_1", {"sigma_min": 1.0, "sigma_max": 30.0, "scale_min": 0.05, "scale_max": 3.0}),
        ("jpeg_1", {"quality_min": 30, "quality_max": 95}),
        ("blur_2", {"sigma_min": 0.2, "sigma_max": 1.5, "sinc_probability": 0.1, "probability": 0.8}),
        ("resize_2", {"up": 0.3, "down": 0.4, "min_scale": 0.3, "max_scale": 1.2, "divisor": 4}),
        ("noise_2", {"sigma_min": 1.0, "sigma_max": 25.0, "scale_min": 0.05, "scale_max": 2.5}),
        ("sinc", {"probability": 0.8}),
        ("lr", {"quality_min": 30, "quality_max": 95}),
    ],
)
def test_the_numbers_are_those_published(id_: str, published: dict[str, float]) -> None:
    inputs = Graph.load(PATH).nodes[id_].inputs
    assert {name: inputs[name] for name in published} == published
