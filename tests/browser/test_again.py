"""Graphs that leave the editor and come back to it, runs that were stopped and go on, and several windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from browser.editor import PATIENCE, TINY, Editor
from server.conftest import serving, wait_for
from server.pack import training
from sr_pipeline.check import with_settings
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.server.opening import give, workflow_to_open
from sr_pipeline.server.workflow import from_export, templates, to_api

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog

expect = pytest.importorskip("playwright.sync_api").expect


def test_an_export_has_our_ids_again_and_any_client_can_post_it(
    editor: Editor, registry: Registry, address: str, tmp_path: Path
) -> None:
    """By Export (API): the editor's numbers, all widgets filled in, lists as text."""
    editor.open("train_srgan")
    values = {**TINY, "perceptual": {"weight_2": 0.25}}
    editor.set(values)
    with editor.page.expect_download() as download:
        editor.page.evaluate("void app.extensionManager.command.execute('Comfy.ExportWorkflowAPI')")
        editor.page.get_by_role("dialog").get_by_role("textbox").press("Enter")
    download.value.save_as(tmp_path / "exported.json")
    exported = Graph.load(tmp_path / "exported.json")
    assert all(id_.isdecimal() for id_ in exported.nodes)
    changes = [f"{id_}.{name}={value}" for id_, given in values.items() for name, value in given.items()]
    wanted = with_settings(templates()["train_srgan"], registry, changes)
    found = from_export(exported, registry)
    assert (found, list(found.nodes)) == (wanted, list(wanted.nodes))
    answer = httpx2.post(f"{address}prompt", json={"prompt": json.loads(exported.to_json())}, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    wait_for(lambda: httpx2.get(f"{address}jobs/{answer.json()['prompt_id']}").json()["status"] == "completed")


def test_a_graph_file_is_opened_by_its_address(
    editor: Editor, registry: Registry, address: str, tmp_path: Path
) -> None:
    """As ``sr-pipeline open`` gives it to the server and to the browser."""
    graph = with_settings(templates()["quickstart"], registry, ["hr.batch=3"])
    graph.save(tmp_path / "mine.json")
    name, workflow = workflow_to_open(str(tmp_path / "mine.json"))
    assert give(address, name, workflow)
    editor.page.goto(f"{address}?template={name}")
    editor.loaded()
    assert editor.value("hr", "batch") == 3
    assert to_api(editor.posted()["workflow"], registry) == Graph.load(tmp_path / "mine.json")


def test_a_run_that_the_servers_end_stopped_is_offered_and_goes_on(
    browser: Browser, artefacts: Path, tmp_path: Path
) -> None:
    prompt = training(steps=20, seconds=0.2)
    with serving(tmp_path) as first, first.socket() as ear:
        id_ = first.queued(prompt)
        ear.until("preview", node_id="shade")
        first.stop()
    with serving(tmp_path) as second:
        context = browser.new_context(viewport={"width": 1600, "height": 900})
        window, asked = Editor(context.new_page(), f"{second.url}/", artefacts), list[str]()

        def agree(dialog: Dialog) -> None:
            asked.append(dialog.message)
            dialog.accept()

        window.page.on("dialog", agree)
        window.start()
        [offered] = second.http.get("/resume").json()["runs"]
        folder = offered["run_dir"]
        toast = window.page.get_by_test_id("toast")
        expect(toast.get_by_text(f"{folder}: the menu's sr_pipeline goes on with one")).to_be_visible()
        window.page.keyboard.press("Escape")
        choose(window)
        expect(toast.get_by_text("goes on", exact=True)).to_be_visible()
        window.look("resumed")
        assert asked == [f"Go on with {folder}?"]
        job: dict[str, Any] = wait_for(lambda: job if (job := second.job(id_))["status"] == "completed" else None)
        assert job["id"] == id_
        context.close()
        assert window.told == []
    events = [json.loads(line) for line in (tmp_path / "runs" / folder / "events.jsonl").read_text().splitlines()]
    assert 0 < next(event["step"] for event in events if event["type"] == "resumed") < 20


def choose(window: Editor) -> None:
    """In the menu of the editor."""
    window.page.locator("[class*=comfyui-logo]").first.click()
    window.page.get_by_text("sr_pipeline", exact=True).first.hover()
    window.page.get_by_text("Go on with a stopped run").first.click()


def test_several_windows_see_a_run_that_outlives_the_one_that_started_it(
    editor: Editor, browser: Browser, address: str, artefacts: Path
) -> None:
    first = Editor(browser.new_context(viewport={"width": 1600, "height": 900}).new_page(), address, artefacts)
    first.open("train_srgan")
    first.set(TINY)
    first.set({"hr": {"steps": 100_000}})
    first.fit()
    first.run()
    first.until("text('content_loss').includes('step') && picture('preview')")
    [running] = httpx2.get(f"{address}queue").json()["queue_running"]
    editor.open("train_srgan")
    editor.fit()
    editor.until("text('hr').includes('of 100000') && text('content_loss').includes('step')")
    seen = [editor.text("hr"), editor.until("picture('preview')")]
    editor.look("second_window")
    first.page.context.close()
    editor.until("text('hr') !== argument[0] && picture('preview') !== argument[1]", seen)
    assert httpx2.get(f"{address}jobs/{running[1]}").json()["status"] == "in_progress"
    editor.cancel()
    wait_for(lambda: httpx2.get(f"{address}jobs/{running[1]}").json()["status"] == "cancelled")
    assert first.told == []
