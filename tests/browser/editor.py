"""A window of the editor, used as a person uses it: by its buttons, the mouse and the keyboard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Request

PATIENCE = 120.0
"""Seconds that a test waits for what takes a few on an idle machine."""

TINY: dict[str, dict[str, Any]] = {
    "generator": {"blocks": 1, "channels": 4},
    "discriminator": {"crop": 32, "channels": 2, "dense": 4},
    "hr": {"size": 32, "batch": 2, "steps": 2},
    "pairs": {"crop": 32},
    "preview": {"every": 2},
    "content_loss": {"every": 1},
    "adversarial_loss": {"every": 1},
    "discriminator_loss": {"every": 1},
    "validate": {"every": 4},
}
"""Sizes at which train_srgan makes a step in a moment."""

_WORDS = """
    const of = id => app.rootGraph._nodes.find(n => n.properties.sr_pipeline.id === id);
    const text = id => ((of(id).widgets || []).find(w => w.name === '$$node-text-preview') || {value: ''}).value;
    const picture = id => ((of(id).imgs || [])[0] || {src: ''}).src;
"""
_PLACE = """([id, name]) => {
    const node = app.rootGraph._nodes.find(n => n.properties.sr_pipeline.id === id), canvas = app.canvas;
    canvas.ds.scale = 1;
    canvas.centerOnNode(node);
    canvas.draw(true, true);
    const widget = node.widgets.find(w => w.name === name);
    const [x, y] = canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]);
    const frame = canvas.canvas.getBoundingClientRect();
    return [frame.left + x, frame.top + y];
}"""
_KNOWN = ("user.css", "userdata?dir=subgraphs", "comfy.templates.json", "index_logo.json")
"""Files that the editor asks for and can do without; a browser tells of each that is not there."""


@dataclass
class Editor:
    """A page that shows the editor; its pictures go into ``artefacts``."""

    page: Page
    url: str
    artefacts: Path
    told: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("requestfinished", self._ask)
        self.page.on("requestfailed", self._ask)

    def _hear(self, message: ConsoleMessage) -> None:
        text = f"{message.text} {message.location.get('url')}"
        if message.type == "error" and not any(name in text for name in _KNOWN):
            self.told.append(text)

    def _ask(self, request: Request) -> None:
        """Note whom the page asked. What the server's policy forbade never left the browser."""
        if not request.url.startswith(("data:", "blob:")) and request.failure != "csp":
            self.asked.add("/".join(request.url.split("/")[:3]))

    def ask(self, script: str, argument: Any = None) -> Any:
        """What an expression comes to in the page: ``of('g_step')`` is the node that shows that node of our graph,
        ``text('g_step')`` what a run writes into it, ``picture('g_step')`` the address of the picture that it shows."""
        return self.page.evaluate(f"argument => {{ {_WORDS} return {script} }}", argument)

    def until(self, script: str, argument: Any = None) -> Any:
        """The first answer that is not false. (The editor's policy forbids the page to wait by itself.)"""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := self.ask(script, argument):
                return found
            self.page.wait_for_timeout(100)
        raise AssertionError(f"it did not come to pass: {script}")

    def start(self) -> None:
        """Open the editor, which at first shows the list of templates."""
        self.page.goto(self.url)
        self.page.get_by_test_id("template-workflows-content").wait_for(timeout=PATIENCE * 1000)

    def open(self, template: str) -> None:
        """Start, and choose a graph from the list."""
        self.start()
        self.page.get_by_test_id(f"template-workflow-{template}").click()
        self.loaded()

    def loaded(self) -> None:
        """Wait for the nodes of a graph of ours."""
        self.until("window.app && app.rootGraph && app.rootGraph._nodes.some(n => n.properties.sr_pipeline)")
        self.page.wait_for_timeout(500)

    def set(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set widgets, at once and without the mouse."""
        for id_, inputs in values.items():
            for name, value in inputs.items():
                self.ask(
                    "(of(argument[0]).widgets.find(w => w.name === argument[1]).value = argument[2], 1)",
                    [id_, name, value],
                )

    def type_into(self, id_: str, name: str, text: str) -> None:
        """Click on a widget, and type."""
        x, y = self.page.evaluate(_PLACE, [id_, name])
        self.page.mouse.click(x, y)
        box = self.page.locator(".graphdialog input, .graphdialog textarea").first
        box.fill(text)
        box.press("Enter")
        box.wait_for(state="detached", timeout=PATIENCE * 1000)

    def value(self, id_: str, name: str) -> Any:
        return self.ask("of(argument[0]).widgets.find(w => w.name === argument[1]).value", [id_, name])

    def text(self, id_: str) -> str:
        """The text that a run writes into a node."""
        return str(self.ask("text(argument)", id_))

    def fit(self) -> None:
        """Show the whole graph: the editor shows pictures in nodes that can be seen."""
        self.page.get_by_label("Fit View").first.click()

    def run(self) -> None:
        self.page.get_by_test_id("queue-button").click()

    def cancel(self) -> None:
        self.page.get_by_label("Cancel current run").first.click()

    def posted(self) -> dict[str, Any]:
        """What the editor would post: ``workflow`` and ``output``."""
        found: dict[str, Any] = json.loads(self.page.evaluate("app.graphToPrompt().then(JSON.stringify)"))
        return found

    def look(self, name: str) -> Path:
        """Keep a picture of the window."""
        path = self.artefacts / f"{name}.png"
        self.page.screenshot(path=path)
        return path
