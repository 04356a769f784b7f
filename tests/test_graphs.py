"""The shipped graphs: each runs at a tiny size, with nothing changed but literals by --set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from sr_nodes.assets import graphs
from sr_nodes.shards import open_shards
from sr_pipeline.check import with_settings
from sr_pipeline.graph import Graph
from sr_pipeline.paths import resolve
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sinks import read_metrics

GRAPHS = sorted(graphs().glob("*.json"))
TINY = [
    "generator.blocks=1",
    "generator.channels=4",
    "start.weights=null",
    "discriminator.crop=32",
    "discriminator.channels=2",
    "discriminator.dense=4",
    "hr.size=32",
    "hr.batch=2",
    "pairs.crop=32",
]


def tiny(graph: Graph) -> list[str]:
    """Those settings that the graph has a node for."""
    if not _trains(graph):
        return [f"{id_}.path=nearest" for id_, entry in graph.nodes.items() if entry.class_type == "find_upscaler"]
    return [s for s in TINY if s.split(".")[0] in graph.nodes]


def _trains(graph: Graph) -> bool:
    return any(entry.class_type == "random_crops" for entry in graph.nodes.values())


def size(path: Path) -> tuple[int, int]:
    with PIL.Image.open(path) as picture:
        return picture.size


PHOTO = size(resolve("sr_nodes:samples/test/picosdeeuropa.jpg"))


def _evaluated(folder: Path) -> bool:
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return [len(figures["images"]) for figures in content["sets"].values()] == [2]


PRODUCTS: dict[str, Callable[[Path], bool]] = {
    "evaluate": _evaluated,
    "compare": lambda folder: min(size(folder / "comparison.png")) > 320 and size(folder / "upscaled.png") == PHOTO,
    "upscale": lambda folder: size(folder / "upscaled.png") == (4 * PHOTO[0], 4 * PHOTO[1]),
    "upscale_folder": lambda folder: (
        size(folder / "upscaled" / "picosdeeuropa.jpg") == (4 * PHOTO[0], 4 * PHOTO[1])
        and (folder / "upscaled" / "picture-1a.jpg").is_file()
    ),
    "export": lambda folder: (folder / "generator.onnx").stat().st_size > 100,
    "shards": lambda folder: len(open_shards(str(folder / "shards"))) == 6,
}
"""What each graph that does not train leaves in its folder."""


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_graph_runs_two_steps(path: Path, registry: Registry, tmp_path: Path) -> None:
    graph = Graph.load(path)
    result = run(with_settings(graph, registry, tiny(graph)), registry=registry, steps=2, run_dir=tmp_path / "run")
    files = {file.name for file in result.run_dir.iterdir()}
    assert {"graph.json", "run.json", "events.jsonl", "metrics.csv"} <= files
    if _trains(graph):
        assert result.step == 2
        assert "generator.safetensors" in files
        assert (result.run_dir / "previews" / "00000002.png").is_file()
        names = {name for _, name, _ in read_metrics(result.run_dir / "metrics.csv")}
        assert {"validate/psnr_y", "content_loss"} <= names
    else:
        assert PRODUCTS[path.stem](result.run_dir)


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_graph_is_written_as_it_is_read(path: Path, registry: Registry) -> None:
    graph = Graph.load(path)
    assert graph.to_json() == path.read_text(encoding="utf-8")
    assert not compile_plan(graph, registry).warnings
    for entry in graph.nodes.values():
        assert all(isinstance(link[1], int) for link in entry.inputs.values() if isinstance(link, tuple))


def test_the_papers_sizes() -> None:
    """train_srgan.json is the paper's: batch 16, crop 96, VGG54, 2e5 updates, the drop at 1e5, weights 1 and 1e-3."""
    nodes = Graph.load(graphs() / "train_srgan.json").nodes
    assert nodes["hr"].inputs["batch"] == 16
    assert nodes["hr"].inputs["size"] == nodes["discriminator"].inputs["crop"] == 96
    assert nodes["hr"].inputs["steps"] == 200_000
    assert nodes["rate"].inputs == {"initial": 1e-4, "drop_at": [100_000], "factor": 0.1}
    assert nodes["vgg"].inputs["layer"] == "54"
    assert (nodes["perceptual"].inputs["weight_1"], nodes["perceptual"].inputs["weight_2"]) == (1.0, 1e-3)
    assert Graph.load(graphs() / "train_srresnet.json").nodes["hr"].inputs["steps"] == 1_000_000


def test_quickstart_is_srgans_wiring_and_an_l1_term() -> None:
    """Every node of train_srgan.json is in quickstart.json with the same links, and one loss more."""
    paper, quick = (Graph.load(graphs() / name).nodes for name in ("train_srgan.json", "quickstart.json"))

    def links(entry: dict[str, object]) -> dict[str, object]:
        return {name: value for name, value in entry.items() if isinstance(value, tuple)}

    assert set(quick) - set(paper) == {"pixels", "pixel_loss"}
    differing = {id_ for id_ in paper if links(paper[id_].inputs) != links(quick[id_].inputs)}
    assert differing == {"perceptual"}


@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_every_node_has_a_title(path: Path) -> None:
    """Clients of ComfyUI look nodes up by it, and fail over one that has none."""
    assert [id_ for id_, entry in Graph.load(path).nodes.items() if not entry.meta.get("title")] == []
