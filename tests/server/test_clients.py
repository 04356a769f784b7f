"""Clients that people have, as they are."""

from __future__ import annotations

import io
import json
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from server.conftest import Server, wait_for
from server.pack import training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of another's package
    from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
    from comfy_api_simplified.exceptions import ComfyApiError


@pytest.fixture
def workflow(tmp_path: Path) -> ComfyWorkflowWrapper:
    (tmp_path / "graph.json").write_text(json.dumps(training(steps=3, seconds=0.1)))
    return ComfyWorkflowWrapper(str(tmp_path / "graph.json"))


def test_comfy_api_simplified_runs_a_graph_and_fetches_its_picture(
    server: Server, workflow: ComfyWorkflowWrapper
) -> None:
    api = ComfyApiWrapper(server.url)
    workflow.set_node_param("shade", "size", 16)
    pictures = api.queue_and_wait_images(workflow, "shade")
    assert list(pictures) == ["1.png", "2.png", "3.png"]
    last = PIL.Image.open(io.BytesIO(pictures["3.png"]))
    assert (last.size, last.getpixel((0, 0))) == ((16, 16), (3, 0, 0))


def test_comfy_api_simplified_sees_the_nodes_the_queue_and_errors(
    server: Server, workflow: ComfyWorkflowWrapper, tmp_path: Path
) -> None:
    api = ComfyApiWrapper(server.url)
    assert "ticks" in api.get_object_info()
    assert api.get_system_stats()["system"]["os"]
    assert api.get_queue() == {"queue_running": [], "queue_pending": []}
    workflow.set_node_param("shade", "size", "large")
    with pytest.raises(ComfyApiError, match="400"):
        api.queue_prompt(workflow)
    PIL.Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")
    assert api.upload_image(tmp_path / "cat.png")["subfolder"] == "default_upload_folder"
    failing = training(die={"class_type": "die", "inputs": {"tick": ["ticks", 0], "at": 1}})
    with pytest.raises(ComfyApiError, match="Execution error"):
        api.queue_and_wait_images(ComfyWorkflowWrapper(failing), "shade")
    api.interrupt()


def test_comfyuis_own_example_by_urllib_runs_a_graph(server: Server) -> None:
    """Its body has no declared type, and urllib calls that a form."""

    def asked(path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}", body)) as answer:
            return json.loads(answer.read())

    id_ = asked("/prompt", json.dumps({"prompt": training(steps=2), "client_id": "me"}).encode())["prompt_id"]
    history = wait_for(lambda: asked(f"/history/{id_}"))[id_]
    assert history["status"]["completed"] is True
    assert [image["filename"] for image in history["outputs"]["shade"]["images"]] == ["1.png", "2.png"]
