"""A real server on a free port of the loopback address, and a client of it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from websockets.sync.client import ClientConnection, connect

from sr_pipeline.registry import Registry
from sr_pipeline.server.app import create_app
from sr_pipeline.server.security import Access

PACK = Path(__file__).parent / "pack.py"
PATIENCE = 60.0
"""Seconds that a test waits for what takes a fraction of one on an idle machine."""
SITE = "127.0.0.1:8188"
TOKEN = "long-and-secret"


@dataclass
class Server:
    """A process that serves, and how to ask it."""

    process: subprocess.Popen[str]
    port: int
    folder: Path
    http: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, prompt: Any, **more: Any) -> httpx2.Response:
        return self.http.post("/prompt", json={"prompt": prompt, **more})

    def queued(self, prompt: Any, **more: Any) -> str:
        """The id of a prompt that was taken."""
        answer = self.post(prompt, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["prompt_id"])

    def job(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/jobs/{id_}").json()
        return found

    def ended(self, id_: str) -> dict[str, Any]:
        """A run's job, once it is over."""
        wait_for(lambda: self.job(id_)["execution_end_time"])
        return self.job(id_)

    def run_dir(self, id_: str) -> Path:
        """The folder of a run that has started."""
        messages = self.http.get(f"/history/{id_}").json()[id_]["status"]["messages"]
        return self.folder / next(Path(data["run_dir"]) for kind, data in messages if kind == "run_started")

    @contextmanager
    def socket(self, features: bool = True, client: str = "") -> Iterator[Ear]:
        url = f"ws://127.0.0.1:{self.port}/ws" + (f"?clientId={client}" if client else "")
        with connect(url, max_size=None, open_timeout=PATIENCE) as connection:
            if features:
                connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            yield Ear(connection)

    def stop(self) -> int:
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@dataclass
class Ear:
    """What a socket hears."""

    connection: ClientConnection
    heard: list[dict[str, Any]] = field(default_factory=list)

    def next(self) -> dict[str, Any]:
        """The next message; a binary frame as ``{"type": "text" or "preview", "data": ...}``."""
        data = self.connection.recv(PATIENCE)
        found = json.loads(data) if isinstance(data, str) else _unpacked(data)
        self.heard.append(found)
        return dict(found)

    def until(self, kind: str, **content: Any) -> dict[str, Any]:
        """The first message of a kind whose data has all this."""
        while True:
            told = self.next()
            if told["type"] == kind and all(told["data"].get(k) == v for k, v in content.items()):
                return told

    def kinds(self) -> list[str]:
        return [told["type"] for told in self.heard]


def _unpacked(data: bytes) -> dict[str, Any]:
    kind, length = int.from_bytes(data[:4]), int.from_bytes(data[4:8])
    head, rest = data[8 : 8 + length], data[8 + length :]
    if kind == 3:
        return {"type": "text", "data": {"node": head.decode(), "text": rest.decode()}}
    assert kind == 4
    return {"type": "preview", "data": {**json.loads(head), "picture": rest}}


def wait_for(question: Callable[[], Any]) -> Any:
    """The first answer that is not false."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := question():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """A server of its own, with the tests' nodes."""
    command = [sys.executable, "-m", "sr_pipeline", "serve", "--port", "0", "--device", "cpu", "--pack", str(PACK)]
    process = subprocess.Popen(
        [*command, "--folder", str(folder), *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.search(r"http://[^ ]*?:(\d+)/", said)
    assert found, said
    drain = threading.Thread(target=process.stdout.read, daemon=True)
    drain.start()
    server = Server(process, int(found[1]), folder)
    try:
        yield server
    finally:
        if process.poll() is None:
            server.stop()
        server.http.close()
        drain.join(PATIENCE)
        process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with serving(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder with a run, a workflow, an upload, a secret beside it, and links that lead out."""
    root = tmp_path_factory.mktemp("doors")
    (root / "secret.txt").write_text("secret")
    work = root / "work"
    for name in ("runs/a/checkpoints", "input", "user/workflows"):
        (work / name).mkdir(parents=True)
    (work / "runs/a/metrics.csv").write_text("step,name,value\n")
    for name in ("page.html", "page.svg", "page.xhtml", "page"):
        (work / "runs/a" / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (work / "runs/.queue.json").write_text("[]")
    (work / "user/workflows/mine.json").write_text("{}")
    (work / "user/.settings.json").write_text("{}")
    (work / "runs/a/link.txt").symlink_to(root / "secret.txt")
    (work / "runs/out").symlink_to(root)
    (work / "user/workflows/link.json").symlink_to(root / "secret.txt")
    return work


def application(registry: Registry, folder: Path, **access: Any) -> Starlette:
    return create_app(registry, folder, Access(**access))


@pytest.fixture(scope="module")
def client(registry: Registry, folder: Path) -> TestClient:
    return TestClient(application(registry, folder), f"http://{SITE}", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def guarded(registry: Registry, folder: Path) -> Starlette:
    return application(registry, folder, loopback=False, token=TOKEN, hosts=frozenset({"lab.example"}))


def picture(kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(out, kind)
    return out.getvalue()


def locked(answer: httpx2.Response) -> bool:
    """Whether what is answered can do nothing in a page, whatever is in it."""
    policy, sniff = answer.headers["content-security-policy"], answer.headers["x-content-type-options"]
    return answer.status_code == 200 and "sandbox" in policy and "default-src 'none'" in policy and sniff == "nosniff"
