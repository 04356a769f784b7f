"""The ASGI application."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from sr_pipeline.registry import Registry
from sr_pipeline.server.answers import HttpError, Json
from sr_pipeline.server.dispatch import Dispatcher
from sr_pipeline.server.folders import Folders
from sr_pipeline.server.frames import Frame, message
from sr_pipeline.server.hub import Hub
from sr_pipeline.server.jobs import Jobs
from sr_pipeline.server.openapi import describe
from sr_pipeline.server.routes import EXTENSIONS, routes
from sr_pipeline.server.security import Access, Doors, Limits, content_policy
from sr_pipeline.server.state import State, state_of

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>sr_pipeline</title>
<h1>sr_pipeline is running</h1>
<p>The graph editor is not installed. To get it: <code>pip install 'sr-pipeline[ui]'</code>, then start the server anew.
<p>The interface for programs works: see <a href="openapi.json">openapi.json</a>.
"""


def create_app(
    registry: Registry,
    root: Path,
    access: Access,
    packs: Iterable[str] = (),
    device: str = "auto",
    allowed: Iterable[Path] = (),
) -> Starlette:
    """The application over a registry.

    Args:
        registry: the nodes; a graph cannot add any.
        root: the folder that holds runs/, input/ and user/.
        access: who is let in.
        packs: what the worker process loads beside the installed packs.
        device: on which runs compute.
        allowed: folders that graphs may read beside the root.

    Raises:
        NodeDeclarationError: a node is faulty.
    """
    list(registry.values())  # all are read now: each page of the editor shows all, and several threads ask
    folders, hub = Folders(root, tuple(allowed)), Hub()
    jobs = Jobs(folders.queue)
    dispatcher = Dispatcher(jobs, hub, folders, tuple(packs), device)
    state = State(registry, folders, jobs, hub, dispatcher)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        state.load()
        dispatcher.start()
        gc.freeze()  # torch's objects live for ever, and a search through them would hold up answers for half a second
        yield
        await dispatcher.close()
        await run_in_threadpool(jobs.flush)

    editor = editor_folder()
    page = (editor / "index.html").read_text(encoding="utf-8") if editor else PAGE
    guards = [Middleware(Limits, policy=content_policy(page)), Middleware(Doors, access=access)]
    app = Starlette(
        routes=[*_own_routes(), *routes(), *_editor_routes(editor)],
        middleware=guards,
        exception_handlers={HttpError: _failed, HTTPException: _refused},
        lifespan=lifespan,
    )
    app.state.server = state
    return app


def editor_folder() -> Path | None:
    """The files of ComfyUI's front end, if it is installed. It is served as it is, and never a part of this package."""
    spec = importlib.util.find_spec("comfyui_frontend_package")
    folder = Path(spec.origin).parent / "static" if spec and spec.origin else None
    return folder if folder and (folder / "index.html").is_file() else None


def _own_routes() -> Iterable[BaseRoute]:
    yield Route("/openapi.json", lambda _: Json(describe()))
    yield Mount(EXTENSIONS, StaticFiles(directory=Path(__file__).parent / "static"))
    for prefix in ("", "/api"):
        yield WebSocketRoute(f"{prefix}/ws", serve_socket)


def _editor_routes(editor: Path | None) -> Iterable[BaseRoute]:
    if editor is None:
        yield Route("/", lambda _: HTMLResponse(PAGE))
    else:
        yield Mount("/", StaticFiles(directory=editor, html=True))


async def serve_socket(socket: WebSocket) -> None:
    """A window of the editor, or a client that listens."""
    server = state_of(socket)

    def hello(sid: str) -> Iterable[Frame]:
        queue = {"exec_info": {"queue_remaining": server.jobs.remaining}}
        yield message("status", {"status": queue, "sid": sid})

    def running() -> Iterable[Frame]:
        if (job := server.jobs.running) and job.live:
            yield from job.live.replay()
        for stopped in server.jobs.stopped:
            text = f"{stopped.graph.source} was stopped and can be gone on with: POST /resume"
            told = message("notification", {"id": stopped.id, "value": text}, f"stopped {stopped.id}")
            yield replace(told, told_features=True)

    await server.hub.serve(socket, hello, running)


async def _failed(_: Request, failure: Exception) -> Response:
    assert isinstance(failure, HttpError)
    return failure.answer()


async def _refused(_: Request, refused: Exception) -> Response:
    """What the router itself refuses, in the same shape."""
    assert isinstance(refused, HTTPException)
    answer = HttpError(refused.status_code, "refused", refused.detail).answer()
    answer.headers.update(refused.headers or {})
    return answer
