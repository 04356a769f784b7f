"""``sr-pipeline open``: by a server that runs, and before one is started."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from server.conftest import wait_for
from sr_pipeline.cli import app
from sr_pipeline.errors import GraphError, UsageError
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.server.opening import give, keep, workflow_to_open
from sr_pipeline.server.workflow import templates, to_api, to_workflow


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A file of the name of a shipped graph, but another."""
    graph = templates()["upscale"].copy()
    graph.nodes["photo" if "photo" in graph.nodes else next(iter(graph.nodes))].meta["title"] = "Mine"
    graph.save(tmp_path / "upscale.json")
    return tmp_path / "upscale.json"


def test_a_shipped_graph_is_a_template_already(tmp_path: Path) -> None:
    assert workflow_to_open("train_srgan") == ("train_srgan", None)
    keep(tmp_path, "train_srgan", None)
    assert list(tmp_path.iterdir()) == []


def test_another_graph_has_a_name_of_its_content(changed: Path, registry: Registry) -> None:
    name, workflow = workflow_to_open(str(changed))
    assert name.startswith("upscale-")
    assert workflow is not None
    assert to_api(workflow, registry) == Graph.load(changed)
    assert workflow_to_open(str(changed))[0] == name


def test_a_workflow_is_shown_as_it_is(tmp_path: Path, registry: Registry) -> None:
    workflow = to_workflow(templates()["upscale"], registry)
    workflow["nodes"][0]["pos"] = [-1234, 77]
    (tmp_path / "my work.json").write_text(json.dumps(workflow), encoding="utf-8")
    name, found = workflow_to_open(str(tmp_path / "my work.json"))
    assert name.startswith("my-work-")
    assert found == workflow
    (tmp_path / "broken.json").write_text(json.dumps({**workflow, "links": []}), encoding="utf-8")
    with pytest.raises(GraphError, match="comes from nowhere"):
        workflow_to_open(str(tmp_path / "broken.json"))


def test_a_running_server_shows_it(server: Any, changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    result = CliRunner().invoke(app, ["open", str(changed), "--port", str(server.port)])
    assert result.exit_code == 0, result.output
    name, workflow = workflow_to_open(str(changed))
    assert opened == [f"{server.url}/?template={name}"]
    assert result.stdout == f"{opened[0]}\n"
    assert httpx2.get(f"{server.url}/templates/{name}.json").json() == workflow
    assert httpx2.get(f"{server.url}/templates/upscale.json").json() != workflow
    assert httpx2.get(f"{server.url}/templates/..%2F..%2Fsettings.json").status_code in (403, 404)


def test_where_nothing_answers_it_is_kept_for_the_server_that_is_started(
    changed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("sr_pipeline.cli._serve", lambda *given, **options: started.append((given, options)))
    folder, command = tmp_path / "here", ["open", str(changed), "--port", "9"]
    result = CliRunner().invoke(app, [*command, "--folder", str(folder), "--allow-folder", "photos"])
    assert result.exit_code == 0, result.output
    name, workflow = workflow_to_open(str(changed))
    [(given, options)] = started
    assert given == ("127.0.0.1", 9)
    wanted = {"folder": folder, "packs": (), "allowed": [Path("photos")], "token": None, "browser": True}
    assert options == {**wanted, "query": f"template={name}"}
    assert json.loads((folder / "user" / "workflows" / f"{name}.json").read_text(encoding="utf-8")) == workflow


def test_a_server_that_refuses_is_told(server: Any) -> None:
    with pytest.raises(UsageError, match=r"^open: http://127\.0\.0\.1:\d+/ answers 403; give another --port$"):
        give(f"{server.url}/", "../up", {})


def test_it_starts_a_server_and_a_browser_by_itself(changed: Path, tmp_path: Path, registry: Registry) -> None:
    """As somebody types it, with a token. The browser is a script that notes the address it is given."""
    browser, noted = tmp_path / "browser", tmp_path / "noted.txt"
    browser.write_text(f'#!/bin/sh\necho "$1" >> "{noted}"\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "sr_pipeline", "open", "--port", str(port), "--folder", str(tmp_path / "here")]
    stranger = {**os.environ, "BROWSER": str(browser), "OMP_NUM_THREADS": "1"}
    environment, known = stranger | {"SR_PIPELINE_TOKEN": "a&b"}, {"Authorization": "Bearer a&b"}
    name, workflow = workflow_to_open(str(changed))
    first = subprocess.Popen([*command, str(changed)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        [address] = wait_for(lambda: noted.exists() and noted.read_text().split())
        assert address == f"http://127.0.0.1:{port}/?template={name}&token=a%26b"
        assert httpx2.get(address, follow_redirects=True).status_code == 200
        assert httpx2.get(f"http://127.0.0.1:{port}/api/templates/{name}.json", headers=known).json() == workflow
        again = [*command, "train_srgan"]
        refused = subprocess.run(again, env=stranger, capture_output=True, text=True, timeout=60)
        assert refused.stderr == f"open: http://127.0.0.1:{port}/ answers 401; give its --token\n"
        second = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=60)
        assert (second.returncode, second.stdout) == (0, f"http://127.0.0.1:{port}/?template=train_srgan&token=a%26b\n")
        wait_for(lambda: noted.read_text().split() == [address, second.stdout.strip()])
    finally:
        first.send_signal(signal.SIGINT)
        said, _ = first.communicate(timeout=60)
    assert said == f"sr_pipeline is at {address} (Ctrl-C stops it)\n"
    shown = json.loads((tmp_path / "here" / "user" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert to_api(shown, registry) == Graph.load(changed)
