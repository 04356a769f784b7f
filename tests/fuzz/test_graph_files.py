"""Mutated graph files: each is valid or refused in our own words; a valid one runs, or a node says why it does not."""

from __future__ import annotations

import json
from collections import Counter
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from conftest import FULL
from fuzz.limits import no_growth, no_hang
from fuzz.mutations import mutated_bytes, mutated_graph
from sr_nodes.assets import graphs
from sr_pipeline.errors import GraphError, NodeRunError, PipelineError
from sr_pipeline.graph import Graph
from sr_pipeline.plan import compile_plan, describe
from sr_pipeline.registry import Registry
from sr_pipeline.run import run

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of memory to be read")
SHIPPED: dict[str, dict[str, Any]] = {p.name: json.loads(p.read_text("utf-8")) for p in sorted(graphs().glob("*.json"))}
FILES, RUNS = (10_000, 200) if FULL else (500, 6)
READERS = ("image_pairs", "load_image", "load_picture", "pair_stream", "picture_files")
TINY: dict[str, dict[str, Any]] = {
    "generator": {"blocks": 1, "channels": 4, "growth": 4},
    "discriminator": {"crop": 32, "channels": 2, "dense": 4},
    "hr": {"size": 32, "batch": 2, "steps": 2},
    "start": {"weights": None},
    "vgg": {"layer": "22"},
    "model": {"model": "nearest"},
    "sr": {"tile": 8},
}


def case(number: int) -> tuple[str, bytes]:
    """A mutated file: half of them of JSON's bytes or a PNG's, half of what the JSON means."""
    rng = Random(f"graph {number}")
    name = rng.choice(list(SHIPPED))
    text = json.dumps(SHIPPED[name])
    match number % 4:
        case 0:
            return name, mutated_bytes(text.encode(), rng)
        case 1 if number % 8 == 1:
            return name, mutated_bytes(picture(text), rng)
        case _:
            return name, mutated_graph(SHIPPED[name], list(SHIPPED.values()), rng).encode("utf-8", "surrogatepass")


def picture(text: str) -> bytes:
    file, info = BytesIO(), PngInfo()
    info.add_text("prompt", text)
    PIL.Image.new("L", (2, 2)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.filterwarnings("default")
def test_a_mutated_graph_file_is_planned_or_refused(registry: Registry, tmp_path: Path) -> None:
    path, came = tmp_path / "g.json", Counter[str]()
    with no_growth():
        for number in range(FILES):
            _, data = case(number)
            path.write_bytes(data)
            with no_hang(f"case {number}"):
                try:
                    describe(compile_plan(Graph.load(path), registry))
                    came["planned"] += 1
                except GraphError as error:
                    came[
                        "refused" if len(str(error)) in range(10, 50_000) else f"case {number}, words without end"
                    ] += 1
                except Exception as error:
                    raise AssertionError(f"case {number}: {type(error).__name__}") from error
    print(f"{FILES} files: {dict(came)}")  # noqa: T201
    assert set(came) == {"planned", "refused"}
    assert min(came.values()) > FILES // 50


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def tiny(content: dict[str, Any], photos: Path) -> dict[str, Any]:
    """A shipped graph that runs in a moment."""
    made: dict[str, Any] = json.loads(json.dumps(content).replace("sr_nodes:samples/train", str(photos)))
    for id_, entry in made.items():
        entry["inputs"].update({k: v for k, v in TINY.get(id_, {}).items() if k in entry["inputs"]})
        if entry["class_type"] == "find_upscaler":
            entry["inputs"]["path"] = "srresnet_small_x4"
        for name in ("folder", "folders", "inputs", "path"):
            if name in entry["inputs"] and entry["class_type"] in READERS:
                several = name in ("folders", "inputs")
                file = photos / "0.png" if name == "path" else photos
                entry["inputs"][name] = {"__value__": [str(photos)]} if several else str(file)
    return made


def runnable(number: int, photos: Path, registry: Registry) -> Graph | None:
    rng = Random(f"run {number}")
    bases = {name: tiny(content, photos) for name, content in SHIPPED.items() if name != "export.json"}  # to ONNX: slow
    text = mutated_graph(bases[rng.choice(list(bases))], list(bases.values()), rng, tiny=True)
    try:
        graph = Graph.parse(text).limited_to(photos)  # as one from elsewhere, so that none reads what lies around
        compile_plan(graph, registry)
    except GraphError:
        return None
    return graph


@pytest.mark.filterwarnings("default")
def test_a_mutated_graph_that_is_planned_runs_or_a_node_says_why_not(
    registry: Registry, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    number, came = 0, Counter[str]()
    while came.total() < RUNS:
        number += 1
        graph = runnable(number, photos, registry)
        if graph is None:
            continue
        with no_growth(), no_hang(f"run {number}"):
            try:
                run(graph, registry=registry, steps=2, device="cpu", run_dir=tmp_path / str(number))
                came["ran"] += 1
            except NodeRunError as error:
                kind = "" if isinstance(error.__cause__, ValueError) else f": {error}"
                came[f"failed{kind}"] += 1
            except PipelineError as error:
                came[type(error).__name__] += 1
            except Exception as error:
                raise AssertionError(f"run {number}: {type(error).__name__}") from error
    print(f"{RUNS} runs: {dict(came)}")  # noqa: T201
    assert came["ran"] > RUNS // 5
    left = {p.name for p in tmp_path.iterdir()} - {str(n) for n in range(number + 1)}
    assert not left  # nothing was written beside the runs' folders
