"""A server, a browser, and a window of it. Only ``make test-browser`` runs these tests, and keeps their pictures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from browser.editor import Editor

ARTEFACTS = os.environ.get("SR_PIPELINE_BROWSER")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not ARTEFACTS:
            item.add_marker(pytest.mark.skip(reason="only in make test-browser"))


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Where pictures of the windows are kept."""
    path = Path(ARTEFACTS or "").resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """Of a server that runs on a free port."""
    command = [sys.executable, "-m", "sr_pipeline", "serve", "--port", "0", "--device", "cpu", "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://[^ ]*?/", said)
        assert found, said
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        yield found[0]
        process.terminate()
        process.wait(60)
        drain.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, as the system has it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def editor(browser: Browser, address: str, artefacts: Path) -> Iterator[Editor]:
    """A new window, of somebody who was never here. It asks nobody but the server, and tells of no error."""
    from browser.editor import Editor

    context = browser.new_context(viewport={"width": 1600, "height": 900})
    window = Editor(context.new_page(), address, artefacts)
    yield window
    context.close()
    assert window.asked == {address.rstrip("/")}
    assert window.told == []
