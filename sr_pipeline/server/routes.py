"""All routes in one table: the application and its OpenAPI description are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from sr_pipeline.server import file_routes as files
from sr_pipeline.server import info_routes as info
from sr_pipeline.server import run_routes as runs

Handler = Callable[[Request], Response] | Callable[[Request], Awaitable[Response]]

EXTENSIONS = "/extensions/sr_pipeline"
"""Where what our server adds to the front end is: the files in ``static``."""

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 1000}
FLAG: dict[str, Any] = {"type": "string", "enum": ["true", "false"]}
OBJECT: dict[str, Any] = {"type": "object"}
IDS: dict[str, Any] = {"type": "array", "items": TEXT}
CHOOSE: dict[str, Any] = {"type": "object", "properties": {"clear": {"type": "boolean"}, "delete": IDS}}
PROMPT: dict[str, Any] = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "client_id": TEXT,
        "prompt_id": TEXT,
        "number": {"type": "number"},
        "front": {"type": "boolean"},
        "partial_execution_targets": IDS,
        "extra_data": OBJECT,
        "prompt": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["class_type"],
                "properties": {"class_type": TEXT, "inputs": OBJECT, "_meta": OBJECT},
            },
        },
    },
}


@dataclass(frozen=True)
class Endpoint:
    """A route, with what it takes."""

    method: str
    path: str
    handler: Handler
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    body: dict[str, Any] | None = None
    form: dict[str, Any] | None = None


ENDPOINTS = (
    Endpoint("POST", "/prompt", runs.post_prompt, body=PROMPT),
    Endpoint("GET", "/prompt", runs.get_prompt),
    Endpoint("GET", "/queue", runs.get_queue),
    Endpoint("POST", "/queue", runs.post_queue, body=CHOOSE),
    Endpoint("GET", "/history", runs.get_history, (("max_items", COUNT),)),
    Endpoint("POST", "/history", runs.post_history, body=CHOOSE),
    Endpoint("GET", "/history/{prompt_id}", runs.get_history_of),
    Endpoint("GET", "/jobs", runs.get_jobs, (("status", TEXT), ("limit", COUNT), ("offset", COUNT))),
    Endpoint("POST", "/jobs/cancel", runs.cancel_jobs, body={"type": "object", "properties": {"job_ids": IDS}}),
    Endpoint("GET", "/jobs/{job_id}", runs.get_job),
    Endpoint("POST", "/jobs/{job_id}/cancel", runs.cancel_job),
    Endpoint("POST", "/interrupt", runs.interrupt, body={"type": "object", "properties": {"prompt_id": TEXT}}),
    Endpoint("POST", "/free", runs.free, body=OBJECT),
    Endpoint("GET", "/resume", runs.get_resume),
    Endpoint("POST", "/resume", runs.post_resume, body={"type": "object", "properties": {"prompt_id": TEXT}}),
    Endpoint(
        "GET", "/view", files.get_view, (("filename", TEXT), ("subfolder", TEXT), ("type", TEXT), ("preview", TEXT))
    ),
    Endpoint(
        "POST",
        "/upload/image",
        files.upload_image,
        form={
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "type": TEXT,
                "subfolder": TEXT,
                "overwrite": FLAG,
            },
        },
    ),
    Endpoint(
        "GET",
        "/userdata",
        files.list_userdata,
        (("dir", TEXT), ("recurse", FLAG), ("split", FLAG), ("full_info", FLAG)),
    ),
    Endpoint("POST", "/userdata/{name:path}/move/{target:path}", files.move_userdata, (("overwrite", FLAG),)),
    Endpoint("GET", "/userdata/{name:path}", files.get_userdata),
    Endpoint(
        "POST", "/userdata/{name:path}", files.post_userdata, (("overwrite", FLAG), ("full_info", FLAG)), body=OBJECT
    ),
    Endpoint("DELETE", "/userdata/{name:path}", files.delete_userdata),
    Endpoint("GET", "/object_info", info.get_object_info),
    Endpoint("GET", "/object_info/{node_class}", info.get_object_info_of),
    Endpoint("GET", "/system_stats", info.get_system_stats),
    Endpoint("GET", "/users", info.get_users),
    Endpoint("GET", "/settings", info.get_settings),
    Endpoint("POST", "/settings", info.post_settings, body=OBJECT),
    Endpoint("GET", "/settings/{id}", info.get_setting),
    Endpoint("POST", "/settings/{id}", info.post_setting, body={}),
    Endpoint("GET", "/features", info.get_features),
    *(Endpoint("GET", f"/{name}", info.always({})) for name in ("i18n", "global_subgraphs", "node_replacements")),
    *(Endpoint("GET", f"/{name}", info.always([])) for name in ("embeddings", "models")),
    Endpoint("GET", "/extensions", info.always([f"{EXTENSIONS}/{name}.js" for name in ("export", "resume")])),
    Endpoint("GET", "/models/{folder}", info.always([])),
    Endpoint("GET", "/experiment/models", info.always([])),
    Endpoint("GET", "/workflow_templates", info.always({})),
    Endpoint("GET", "/templates/index.json", info.get_template_index),
    Endpoint("GET", "/templates/{name}.json", info.get_template),
    Endpoint("GET", "/templates/{name}.webp", info.get_thumbnail),
    Endpoint("GET", "/user.css", info.get_user_css),
)


def routes() -> Iterator[BaseRoute]:
    """Each endpoint twice: under /api, as the front end calls it, and bare, as older clients do."""
    yield Mount("/api", routes=[_route(e) for e in ENDPOINTS])
    yield from map(_route, ENDPOINTS)


def _route(endpoint: Endpoint) -> Route:
    return Route(endpoint.path, endpoint.handler, methods=[endpoint.method])
