"""What the routes share: one server's parts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starlette.requests import HTTPConnection

from sr_pipeline.files import written_beside
from sr_pipeline.graph import Graph
from sr_pipeline.jsontext import read_json
from sr_pipeline.registry import Registry
from sr_pipeline.server.answers import Json
from sr_pipeline.server.dispatch import Dispatcher
from sr_pipeline.server.folders import Folders
from sr_pipeline.server.hub import Hub
from sr_pipeline.server.jobs import Jobs
from sr_pipeline.server.objects import object_info
from sr_pipeline.server.workflow import templates, to_workflow

DEFAULTS = {"Comfy.Notification.ShowVersionUpdates": False, "Comfy.DisableFloatRounding": True}
"""Settings of the front end: it asks nobody for new versions, and leaves a learning rate as it is written."""
FIXED = frozenset({"Comfy.Notification.ShowVersionUpdates", "Comfy.TutorialCompleted"})
"""Not kept when the front end stores them: with the tutorial done, it would open a diffusion graph, not templates."""
MAX_SETTINGS = 2**20
"""Characters of all settings together."""


@dataclass
class State:
    """One server."""

    registry: Registry
    folders: Folders
    jobs: Jobs
    hub: Hub
    dispatcher: Dispatcher
    settings: dict[str, Any] = field(default_factory=dict)
    workflows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> dict[str, Any]:
        return object_info(self.registry)

    @cached_property
    def object_info(self) -> bytes:
        return bytes(Json(self.nodes).body)

    @cached_property
    def templates(self) -> dict[str, Graph]:
        return templates()

    def workflow(self, name: str) -> dict[str, Any] | None:
        """The template of a name, laid out."""
        if name in self.templates and name not in self.workflows:
            self.workflows[name] = to_workflow(self.templates[name], self.registry)
        return self.workflows.get(name)

    def load(self) -> None:
        """Take in what earlier servers kept."""
        self.folders.make()
        self.jobs.load()
        try:
            kept = read_json(self.folders.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # there is none, or it is damaged
            kept = {}
        self.settings = {**(kept if isinstance(kept, dict) else {}), **DEFAULTS}

    def store(self, settings: dict[str, Any]) -> bool:
        """Keep settings; false where they would be too many."""
        stored = self.settings | {name: value for name, value in settings.items() if name not in FIXED}
        text = json.dumps(stored)
        if len(text) > MAX_SETTINGS:
            return False
        self.settings = stored
        with written_beside(self.folders.settings, sync=False) as beside:
            beside.write_text(text, encoding="utf-8")
        return True


def state_of(connection: HTTPConnection) -> State:
    state: State = connection.app.state.server
    return state
