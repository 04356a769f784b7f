"""The command: where it listens, what it asks for, and what it says where a package is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sr_pipeline.cli import app
from sr_pipeline.errors import UsageError
from sr_pipeline.server import serve


def started(monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[dict[str, Any], Any, str]:
    """What the command would serve: the access, uvicorn's configuration, and what it said."""
    found: dict[str, Any] = {}

    def create_app(*given: Any) -> str:
        found["access"] = given[2]
        found["allowed"] = given[5]
        return "app"

    def run(server: Any, sockets: list[Any]) -> None:
        assert sockets == [found["listens"]]
        found["config"] = server.config
        server.started_at(4321)

    monkeypatch.setattr(serve, "listening", lambda *address: found.setdefault("listens", address))
    monkeypatch.setattr(serve, "create_app", create_app)
    monkeypatch.setattr(serve, "load_packs", lambda packs: packs)
    monkeypatch.setattr(serve._Server, "run", run)
    monkeypatch.setattr("webbrowser.open", lambda url: found.setdefault("opened", url))
    result = CliRunner().invoke(app, ["serve", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return found, found["access"], result.output


def test_it_listens_on_loopback_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    found, access, said = started(monkeypatch)
    assert found["listens"] == ("127.0.0.1", 8188)
    assert (access.loopback, access.token) == (True, None)
    assert said == "sr_pipeline is at http://127.0.0.1:4321/ (Ctrl-C stops it)\n"
    assert "opened" not in found


def test_another_address_gets_a_token_which_the_printed_address_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    found, access, said = started(monkeypatch, "--host", "0.0.0.0", "--open", "--allow-host", "lab")
    assert access.loopback is False
    assert access.hosts == {"lab"}
    assert len(access.token) >= 32
    assert f"?token={access.token}" in said
    assert found["opened"] == f"http://0.0.0.0:4321/?token={access.token}"
    again = started(monkeypatch, "--host", "::", "--token", "mine")
    assert again[1].token == "mine"
    assert "http://[::]:4321/?token=mine " in again[2]


def test_graphs_may_read_the_folders_that_are_named_from_where_it_was_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--folder", "work", "--allow-folder", "photos", "--allow-folder", "/data")
    found, _, said = started(monkeypatch, *options)
    assert found["allowed"] == [tmp_path / "photos", Path("/data")]
    assert said.endswith(f"{tmp_path / 'work'} is a new folder\n")
    monkeypatch.chdir(tmp_path)
    assert "new folder" not in started(monkeypatch, *options)[2]


def test_an_address_that_is_none_or_not_free_is_told() -> None:
    with serve.listening("localhost", 0) as taken:
        port = taken.getsockname()[1]
        for host, why in (
            (
                "127.0.0.1",
                rf"{port}: it cannot listen there: .*in use.*; stop what listens there, or give another port",
            ),
            ("nowhere.invalid", rf"{port}: it cannot listen there: .+; give an address of this machine, 127.0.0.1 for"),
        ):
            with pytest.raises(UsageError, match=f"^--host {host} --port {why}"):
                serve.listening(host, port)


def test_it_does_not_trust_headers_of_a_proxy_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    config = started(monkeypatch)[0]["config"]
    assert config.proxy_headers is False
    assert config.limit_concurrency == 1024
    assert config.ws_max_size == 2**20


def test_a_missing_package_is_told_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sr_pipeline.server.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UsageError, match=r"uvicorn is missing; pip install 'sr-pipeline\[server,ui\]'"):
        CliRunner().invoke(app, ["serve"], catch_exceptions=False)


def test_help_imports_nothing_of_the_server() -> None:
    code = "import sys, sr_pipeline.cli; print([m for m in ('starlette', 'uvicorn', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
