"""The client @stable-canvas/comfyui-client, as npm gives it, against the server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import PIL.Image
import pytest

from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.run import run

CLIENT = Path(__file__).with_name("client.mjs")
HR = "sr_nodes:samples/test/picture-1a.jpg"


@pytest.fixture(scope="session")
def node(artefacts: Path) -> tuple[str, Path]:
    """Node.js, and the script beside the packages that it imports."""
    program, packages = shutil.which("node"), artefacts / "npm"
    if program is None or not (packages / "node_modules" / "@stable-canvas" / "comfyui-client").is_dir():
        pytest.skip("no Node.js with @stable-canvas/comfyui-client")
    return program, Path(shutil.copy(CLIENT, packages))


@pytest.mark.parametrize("way", ["enqueue", "enqueue_polling"])
def test_a_graph_is_run_and_its_picture_fetched(
    way: str, node: tuple[str, Path], address: str, registry: Registry, tmp_path: Path
) -> None:
    graph = Graph()
    photo = graph.add("load_image", id="photo", path=HR)
    lr = graph.add("bicubic", id="lr", hr=photo, scale=4)
    graph.add("save_image", id="saved", image=lr)
    graph.save(tmp_path / "graph.json")
    command: list[str | Path] = [
        *node,
        urlsplit(address).netloc,
        way,
        tmp_path / "graph.json",
        tmp_path / "picture.png",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-1000:]
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["images"] == 1
    assert told["nodes"] == len(registry)
    wanted = run(graph, registry=registry, run_dir=tmp_path / "run")
    with PIL.Image.open(tmp_path / "picture.png") as found, PIL.Image.open(wanted.run_dir / "image.png") as made:
        assert found.tobytes() == made.tobytes()
        assert found.size == (256, 201)
