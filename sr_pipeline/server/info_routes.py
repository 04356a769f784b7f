"""Routes that tell: the nodes, the machine, settings, templates, and what older or larger servers would have."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from sr_pipeline import __version__
from sr_pipeline.errors import GraphError
from sr_pipeline.server.answers import Json, fail, json_body, json_object
from sr_pipeline.server.file_routes import SANDBOX
from sr_pipeline.server.folders import OutOfFolderError, inside
from sr_pipeline.server.hub import FEATURES
from sr_pipeline.server.state import state_of
from sr_pipeline.server.thumbnails import draw

MODULE = "sr_pipeline"
TORCH = version("torch")


async def get_object_info(request: Request) -> Response:
    """All nodes: their sockets, bounds, choices and help."""
    return Response(state_of(request).object_info, media_type="application/json")


async def get_object_info_of(request: Request) -> Response:
    nodes, name = state_of(request).nodes, request.path_params["node_class"]
    return Json({name: nodes[name]} if name in nodes else {})


async def get_system_stats(request: Request) -> Response:
    page, total, free = (_sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    system = {
        "os": sys.platform,
        "ram_total": page * total,
        "ram_free": page * free,
        "comfyui_version": f"sr_pipeline {__version__}",
        "python_version": platform.python_version(),
        "pytorch_version": TORCH,
        "embedded_python": False,
        "argv": [],
    }
    return Json({"system": system, "devices": state_of(request).dispatcher.devices})


def _sysconf(name: str) -> int:
    try:
        return os.sysconf(name)
    except (AttributeError, ValueError, OSError):  # not on this system
        return 0


async def get_users(_: Request) -> Response:
    return Json({"storage": "server", "migrated": True})


async def get_settings(request: Request) -> Response:
    return Json(state_of(request).settings)


async def get_setting(request: Request) -> Response:
    return Json(state_of(request).settings.get(request.path_params["id"]))


async def post_settings(request: Request) -> Response:
    return _store(request, await json_object(request))


async def post_setting(request: Request) -> Response:
    return _store(request, {request.path_params["id"]: await json_body(request)})


def _store(request: Request, settings: dict[str, Any]) -> Response:
    if not state_of(request).store(settings):
        fail(413, "too_large", "these are too many settings")
    return Response()


async def get_features(_: Request) -> Response:
    return Json(FEATURES)


def always(content: Any) -> Callable[[Request], Awaitable[Response]]:
    """An answer for what this server has none of."""

    async def answer(_: Request) -> Response:
        return Json(content)

    return answer


async def get_user_css(_: Request) -> Response:
    return Response("", media_type="text/css")


def get_template_index(request: Request) -> Response:
    """The shipped graphs, as the front end's dialog lists them."""
    found = [
        {
            "name": name,
            "title": name.replace("_", " "),
            "description": ", ".join(dict.fromkeys(e.class_type for e in graph.nodes.values())),
            "mediaType": "image",
            "mediaSubtype": "webp",
        }
        for name, graph in state_of(request).templates.items()
    ]
    return Json([{"moduleName": "default", "title": MODULE, "type": "image", "templates": found}])


def get_template(request: Request) -> Response:
    """A shipped graph as the editor's workflow, laid out; or a workflow of the user's, which ``open`` puts there."""
    name, state = request.path_params["name"], state_of(request)
    try:
        path = inside(state.folders.user / "workflows", f"{name}.json")
    except OutOfFolderError:
        path = None
    if name not in state.templates and path and path.is_file():
        return FileResponse(path, media_type="application/json", headers={"content-security-policy": SANDBOX})
    return Json(_workflow(request, name))


def get_thumbnail(request: Request) -> Response:
    """The picture of a template: its nodes, where they stand. The front end adds -1 and -2 to the name."""
    name = request.path_params["name"].removesuffix("-1").removesuffix("-2")
    return Response(draw(_workflow(request, name)), media_type="image/webp")


def _workflow(request: Request, name: str) -> dict[str, Any]:
    try:
        return state_of(request).workflow(name) or fail(404, "no_template", "there is no such template")
    except GraphError as error:  # of a pack that was installed in part
        fail(409, "faulty_template", "this graph is faulty", str(error))
