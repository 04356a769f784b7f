"""What a running job looks like in the editor: events as ComfyUI's messages, and all of it again on a reload."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sr_pipeline.server.frames import Frame, message, preview_frame, text_frame
from sr_pipeline.tracker import duration, rate

MAX_IMAGES = 64
"""Pictures of one node that a job remembers: the newest."""


@dataclass
class Live:
    """The state of one run as its nodes show it.

    ``names`` are the ids of the graph's nodes as the client knows them, ``stepping`` the nodes that show the progress
    of the steps.
    """

    prompt_id: str
    names: Mapping[str, str]
    stepping: tuple[str, ...]
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    numbers: dict[str, dict[str, str]] = field(default_factory=dict)
    progress_text: str = ""
    previews: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    current: str | None = None
    step: int = 0
    began: float = field(default_factory=time.time)

    def start(self) -> Iterator[Frame]:
        yield message("execution_start", self._of(timestamp=round(self.began * 1000)))

    def hear(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        """The messages that an event of the engine, or of the worker, makes."""
        handler = getattr(self, f"_on_{event['type']}", None)
        if handler is not None:
            yield from handler(event)

    def show(self, node: str, picture: bytes) -> Iterator[Frame]:
        """A picture in a node of the graph."""
        if node in self.names:
            self.previews[node] = picture
            yield preview_frame(self.names[node], self.prompt_id, picture)

    def replay(self) -> Iterator[Frame]:
        """All that a window that comes late needs to look like the others."""
        yield from self.start()
        yield message("execution_cached", self._of(nodes=self.cached, timestamp=round(self.began * 1000)))
        if self.current:
            yield from self._executing(self.current)
        yield from self._states()
        yield from self._texts(self.numbers)
        for node, picture in self.previews.items():
            yield preview_frame(self.names[node], self.prompt_id, picture)

    def outputs(self) -> dict[str, dict[str, Any]]:
        """What each node has to show in the end, by the client's ids: pictures that were written, and numbers."""
        nodes = [node for node in self.names if node in self.images or node in self.numbers]
        found: dict[str, dict[str, Any]] = {}
        for node in nodes:
            shown: dict[str, Any] = found.setdefault(self.names[node], {})
            if self.images.get(node):
                shown["images"] = self.images[node]
            if self.numbers.get(node):
                shown["text"] = ["\n".join(self.numbers[node].values())]
        return found

    def _on_cached(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        self.cached = [self.names[node] for node in event["nodes"]]
        yield message("execution_cached", self._of(nodes=self.cached, timestamp=round(time.time() * 1000)))

    def _on_node_started(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        self._finish_running()
        self._set(event["node"], 0, 1)
        yield from self._executing(event["node"])
        yield from self._states()

    def _on_node_progress(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        node, done, total = event["node"], event["done"], max(event["total"], 1)
        if node in self.names:
            self._set(node, done, total)
            yield self._bar(node, done, total)
            yield from self._states()

    def _on_progress(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        self.step = event["step"]
        total = event["total"] or self.step
        if self.current not in self.stepping and self.stepping:
            self._finish_running()
            yield from self._executing(self.stepping[0])
        for node in self.stepping:
            self._set(node, self.step, total)
        left = f", {duration((total - self.step) / event['rate'])} left" if event["total"] and event["rate"] else ""
        of = f" of {event['total']}" if event["total"] else ""
        self.progress_text = f"step {self.step}{of}, {rate(event['rate'])}{left}"
        if self.stepping:
            yield self._bar(self.stepping[0], self.step, total)
        yield from self._states()
        if self.stepping:
            yield text_frame(self.names[self.stepping[0]], self.progress_text)

    def _on_scalars(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        changed: dict[str, None] = {}
        for name, (step, value) in event["values"].items():
            node, label = self._owner(name)
            if node:
                text = f"{label} {value:.5g}" if label else f"{value:.5g}"
                self.numbers.setdefault(node, {})[label] = f"{text} (step {step})" if step else text
                changed[node] = None
        yield from self._texts(changed)

    def _on_text(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        """What an output node returned, where it told no numbers of its own."""
        if event["node"] not in self.numbers:
            self.numbers[event["node"]] = {"": event["text"]}
            yield from self._texts([event["node"]])

    def _on_picture(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        """A picture that was written into the run's folder: remembered; ``show`` sends it."""
        if event["node"] in self.names:
            images = self.images.setdefault(event["node"], [])
            images[:] = [*[i for i in images if i != event["image"]][1 - MAX_IMAGES :], event["image"]]
        yield from ()

    def _on_warning(self, event: Mapping[str, Any]) -> Iterator[Frame]:
        self.warnings = [*self.warnings, f"{event['where']}: {event['text']}"][-100:]
        node, _ = self._owner(event["where"])
        if node:
            self.numbers.setdefault(node, {})["!"] = f"warning: {event['text']}"
            yield from self._texts([node])

    def _owner(self, name: str) -> tuple[str, str]:
        """The node of a scalar's name ``node`` or ``node/label``, and the label."""
        if name in self.names:
            return name, ""
        node, _, label = name.rpartition("/")
        return (node, label) if node in self.names else ("", "")

    def _of(self, **data: Any) -> dict[str, Any]:
        return {"prompt_id": self.prompt_id, **data}

    def _executing(self, node: str) -> Iterator[Frame]:
        self.current = node
        if name := self.names.get(node):
            yield message("executing", self._of(node=name, display_node=name))

    def _bar(self, node: str, value: int, total: int) -> Frame:
        return message("progress", self._of(node=self.names[node], value=value, max=total), f"progress {node}")

    def _states(self) -> Iterator[Frame]:
        yield message("progress_state", self._of(nodes=self.states), "progress_state")

    def _texts(self, nodes: Iterable[str]) -> Iterator[Frame]:
        for node in nodes:
            yield text_frame(self.names[node], "\n".join(self.numbers[node].values()))

    def _set(self, node: str, value: int, total: int) -> None:
        name = self.names.get(node)
        if name is not None:
            ids = {"node_id": name, "display_node_id": name, "real_node_id": name, "parent_node_id": None}
            self.states[name] = self._of(value=value, max=total, state="running", **ids)

    def _finish_running(self) -> None:
        for state in self.states.values():
            if state["state"] == "running":
                state["state"], state["value"] = "finished", state["max"]
