"""What people do: open a graph, change it, run it, watch it, cancel it, mend it, save it, come back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from safetensors.torch import load_file

from browser.editor import TINY
from sr_pipeline.check import with_settings
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.server.workflow import read_prompt, templates, to_api

if TYPE_CHECKING:
    from browser.editor import Editor

PATIENCE = 60_000
"""Milliseconds that a test waits for what comes at once on an idle machine."""


VIEW = """([scale, x, y]) => {
    const {ds, canvas} = app.canvas;
    ds.scale = scale;
    ds.offset = [canvas.clientWidth / 2 / scale - x, canvas.clientHeight / 2 / scale - y];
    app.canvas.setDirty(true, true);
}"""
"""The graph so large, with this point of it in the middle."""


@pytest.fixture(autouse=True)
def idle(address: str) -> Iterator[None]:
    """Nothing runs when a test starts."""
    yield
    httpx2.post(f"{address}queue", json={"clear": True}, timeout=60)
    httpx2.post(f"{address}interrupt", timeout=60)
    httpx2.post(f"{address}settings", json={"Comfy.RightSidePanel.IsOpen": False}, timeout=60)


def tiny(graph: Graph, registry: Registry) -> Graph:
    return with_settings(graph, registry, [f"{n}.{i}={v}" for n, given in TINY.items() for i, v in given.items()])


def test_train_srgan_opens_from_the_templates_with_all_its_wires(editor: Editor, registry: Registry) -> None:
    editor.start()
    cards = editor.page.locator("[data-testid^='template-workflow-']")
    cards.last.wait_for()
    assert cards.count() == len(templates())
    editor.look("templates")
    editor.page.get_by_test_id("template-workflow-train_srgan").click()
    editor.loaded()
    editor.look("train_srgan")
    graph = templates()["train_srgan"]
    assert editor.ask("app.rootGraph._nodes.length") == len(graph.nodes)
    assert editor.ask("app.rootGraph._nodes.filter(n => n.has_errors || !n.comfyClass).length") == 0
    posted = editor.posted()
    for found in (
        to_api(posted["workflow"], registry),
        read_prompt(posted["output"], posted["workflow"], registry).graph,
    ):
        assert found == graph
        assert list(found.nodes) == list(graph.nodes)


def test_nodes_do_not_overlap_in_the_editor(editor: Editor) -> None:
    """By the sizes that the editor gives them."""
    editor.open("train_srgan")
    boxes = editor.ask("app.rootGraph._nodes.map(n => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30])")
    for n, (x, y, width, height) in enumerate(boxes):
        for x2, y2, width2, height2 in boxes[:n]:
            assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y


def test_a_run_from_the_browser_has_the_bits_of_the_command_line(
    editor: Editor, registry: Registry, folder: Path, tmp_path: Path
) -> None:
    editor.open("train_srgan")
    editor.set(TINY)
    before = set(folder.glob("runs/*"))
    editor.run()
    [made] = finished(folder, before)
    graph = tiny(templates()["train_srgan"], registry)
    wanted = run(graph, registry=registry, device="cpu", threads=1, run_dir=tmp_path / "run")  # as the server has
    assert Graph.load(made / "graph.json") == Graph.load(wanted.run_dir / "graph.json")
    for name in ("metrics.csv", "previews/00000002.png"):
        assert (made / name).read_bytes() == (wanted.run_dir / name).read_bytes()
    tensors, others = (load_file(path / "generator.safetensors") for path in (made, wanted.run_dir))
    assert {n: t.numpy().tobytes() for n, t in tensors.items()} == {n: t.numpy().tobytes() for n, t in others.items()}


def finished(folder: Path, before: set[Path]) -> list[Path]:
    """The folders of the runs since then, once their last event is told."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        new = sorted(set(folder.glob("runs/train_srgan-*")) - before)
        events = [path / "events.jsonl" for path in new]
        if new and all(file.is_file() and '"type": "done"' in file.read_text(encoding="utf-8") for file in events):
            return new
        time.sleep(0.2)
    raise AssertionError("no run ended")


def test_a_training_is_watched_reloaded_and_cancelled(editor: Editor, folder: Path) -> None:
    editor.open("train_srgan")
    editor.set(TINY)
    editor.type_into("hr", "steps", "100000")
    assert editor.value("hr", "steps") == 100000
    editor.fit()
    before = set(folder.glob("runs/*"))
    editor.run()
    editor.until("of('hr').progress > 0 && of('g_step').progress > 0")
    editor.until("text('content_loss').includes('step')")
    assert "of 100000" in editor.text("hr")
    assert float(editor.text("content_loss").split()[0]) > 0
    first = editor.until("picture('preview')")
    editor.until("picture('preview') !== argument", first)
    editor.until("text('validate').includes('psnr')")
    editor.look("training")
    text = editor.text("hr")
    editor.page.reload()
    editor.loaded()
    editor.fit()
    editor.until("text('hr').includes('of 100000')")
    assert editor.text("hr") != text
    editor.until("picture('preview')")
    editor.cancel()
    [made] = finished(folder, before)
    last = json.loads((made / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (last["type"], last["interrupted"]) == ("done", True)
    editor.until("!(of('hr').progress > 0)")


def test_a_wrong_value_is_marked_on_its_node(editor: Editor, folder: Path) -> None:
    editor.open("train_srgan")
    editor.set(TINY)
    editor.type_into("rate", "drop_at", '[1, "x"]')
    before = set(folder.glob("runs/*"))
    editor.run()
    wrong = editor.until("app.rootGraph._nodes.filter(n => n.has_errors).map(n => n.properties.sr_pipeline.id)[0]")
    assert wrong == "rate"
    title = templates()["train_srgan"].nodes["rate"].meta["title"]
    editor.page.get_by_role("button", name="View details").first.click()
    editor.page.get_by_text("1 node — 1 error").wait_for(timeout=PATIENCE)
    assert editor.page.get_by_text(f"{title} - drop_at").count() == 1
    editor.page.get_by_role("button", name=f"Info for {title} - drop_at").click()
    mend = 'drop_at: found [1, "x"], wanted list; item 1: write a whole number'
    editor.page.get_by_text(mend).wait_for(timeout=PATIENCE)
    editor.look("wrong_value")
    assert set(folder.glob("runs/*")) == before
    editor.told.clear()  # the answer 400, and that the server's policy kept the page from asking elsewhere


def test_a_graph_is_saved_and_opened_again(editor: Editor, registry: Registry, folder: Path) -> None:
    editor.open("train_srgan")
    editor.set(TINY)
    editor.type_into("perceptual", "weight_2", "0.25")
    editor.page.keyboard.press("Control+s")
    box = editor.page.get_by_role("dialog").get_by_role("textbox")
    box.fill("mine")
    box.press("Enter")
    path = folder / "user" / "workflows" / "mine.json"
    editor.until("app.extensionManager.workflow.activeWorkflow.path.includes('mine')")
    saved = to_api(json.loads(path.read_text(encoding="utf-8")), registry)
    wanted = with_settings(tiny(templates()["train_srgan"], registry), registry, ["perceptual.weight_2=0.25"])
    assert saved == wanted
    editor.page.reload()
    editor.loaded()
    editor.until("!!of('perceptual')")
    assert editor.value("perceptual", "weight_2") == 0.25
    assert to_api(editor.posted()["workflow"], registry) == wanted
    editor.look("saved")


def test_the_picture_of_the_readme(editor: Editor) -> None:
    """The quickstart as it trains: the preview, the losses with their curves, the two optimizer steps."""
    editor.open("quickstart")
    editor.set({"preview": {"every": 10}})
    editor.page.get_by_test_id("close-minimap-button").click()
    editor.ask("of('preview').setSize([300, 460])")
    editor.fit()
    editor.page.wait_for_timeout(1000)
    editor.page.evaluate(VIEW, [0.75, 2130, 1000])
    editor.run()
    editor.until("text('pixel_loss').includes('(step 6')")  # step 6, then the sixties
    editor.until("/step 6\\d/.test(text('pixel_loss')) && picture('preview') && picture('content_loss')")
    assert "psnr_y" in editor.until("text('validate')")
    editor.look("browser")
