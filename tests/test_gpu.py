"""What only a CUDA device can show; skipped elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sr_nodes.assets import graphs
from sr_pipeline.check import with_settings
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.run import run

pytestmark = pytest.mark.gpu
SMALL = ["generator.blocks=2", "generator.channels=16", "start.weights=null", "hr.batch=4", "rate.initial=1e-5"]


def train(registry: Registry, folder: Path, device: str, **options: bool | int) -> dict[str, torch.Tensor]:
    """The generator's weights, trained in fp32."""
    graph = with_settings(Graph.load(graphs() / "quickstart.json"), registry, SMALL)
    run(graph, registry=registry, device=device, precision="fp32", run_dir=folder, **options)  # type: ignore[arg-type]
    return load_file(folder / "generator.safetensors")


def test_cuda_trains_what_the_cpu_trains(registry: Registry, tmp_path: Path) -> None:
    """Five steps at a small learning rate: the same weights but for rounding, as the random numbers are the same."""
    cpu = train(registry, tmp_path / "cpu", "cpu", steps=5)
    cuda = train(registry, tmp_path / "cuda", "cuda", steps=5)
    for name, weights in cpu.items():
        torch.testing.assert_close(cuda[name], weights, rtol=1e-3, atol=1e-4, msg=name)


def test_cuda_run_resumes(registry: Registry, tmp_path: Path) -> None:
    train(registry, tmp_path / "run", "cuda", steps=2)
    weights = train(registry, tmp_path / "run", "cuda", steps=4, resume=True)
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_cuda_gives_the_same_bits_when_it_is_asked_to(registry: Registry, tmp_path: Path) -> None:
    first, second = (train(registry, tmp_path / name, "cuda", steps=5, deterministic=True) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
