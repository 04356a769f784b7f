"""The open web sockets: each gets every message, and a slow one holds nobody up."""

from __future__ import annotations

import asyncio
import json
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sr_pipeline.server.answers import HttpError
from sr_pipeline.server.bundles import send_bundle, takes_bundles
from sr_pipeline.server.frames import Frame, message

MAX_WAITING = 2000
"""Messages that a client may be behind before it is let go; it comes back and is told the state."""
MAX_SOCKETS = 500
SEND_SECONDS = 30.0
MAX_BUNDLE = 256 * 2**10
"""Bytes in one write, but for the last message in it."""
PAUSE = 0.01
"""Seconds between two bundles for a client, times the number of clients."""
SLOTS = 40
FEATURES = {"supports_preview_metadata": True, "max_upload_size": 64 * 2**20}


class Client:
    """One socket and what waits to be sent to it."""

    def __init__(self, socket: WebSocket, sid: str) -> None:
        self.socket, self.sid = socket, sid
        self.told_features = False
        self.waiting: dict[object, Frame] = {}
        self.ready = asyncio.Event()

    def put(self, frame: Frame) -> None:
        if frame.told_features and not self.told_features:
            return
        key = frame.key or object()
        self.waiting.pop(key, None)
        self.waiting[key] = frame
        self.ready.set()

    async def send_all(self, pause: Callable[[], float]) -> None:
        """Send what waits, a bundle after each pause, for as long as the socket lives."""
        while len(self.waiting) <= MAX_WAITING:
            await self.ready.wait()
            await asyncio.sleep(pause())
            self.ready.clear()
            async with asyncio.timeout(SEND_SECONDS):
                while self.waiting:
                    await self._send_some()

    async def _send_some(self) -> None:
        """What waits, or so much of it as goes well into one write."""
        if not takes_bundles(self.socket):
            data = self._next().data
            await (self.socket.send_text(data) if isinstance(data, str) else self.socket.send_bytes(data))
            return
        bundle = bytearray()
        while self.waiting and len(bundle) < MAX_BUNDLE:
            bundle += self._next().wire
        await send_bundle(self.socket, bytes(bundle))

    def _next(self) -> Frame:
        return self.waiting.pop(next(iter(self.waiting)))


class Hub:
    """All sockets."""

    def __init__(self) -> None:
        self.clients: set[Client] = set()

    def send(self, frame: Frame) -> None:
        for client in self.clients:
            client.put(frame)

    def _pause(self) -> float:
        """Many windows are each told less often: of what ticks, a window misses all but the newest. Never all at once,
        because a question that comes in between would wait; nor each by itself, because waking up costs as much as
        sending: those that are due in one slot of the pause are told together."""
        pause, now = min(2.0, PAUSE * max(1, len(self.clients))), time.monotonic()
        slot = pause / SLOTS
        due = math.ceil((now + pause * random.uniform(0.5, 1.5)) / slot) * slot
        return due - now

    async def serve(
        self, socket: WebSocket, hello: Callable[[str], Iterable[Frame]], state: Callable[[], Iterable[Frame]]
    ) -> None:
        """A socket from its opening to its end: greeted, told the state of what runs, then every message.

        Args:
            socket: not yet accepted.
            hello: the first frames, by the socket's id.
            state: what shows a run that is under way.
        """
        if len(self.clients) >= MAX_SOCKETS:
            await socket.send_denial_response(HttpError(503, "full", f"{MAX_SOCKETS} sockets are open").answer())
            return
        await socket.accept()
        client = Client(socket, _sid(socket))
        for frame in (*hello(client.sid), *state()):
            client.put(frame)
        self.clients.add(client)
        sender = asyncio.ensure_future(client.send_all(self._pause))
        receiver = asyncio.ensure_future(self._receive(client, state))
        try:
            await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.clients.discard(client)
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)
        if socket.application_state == WebSocketState.CONNECTED and socket.client_state == WebSocketState.CONNECTED:
            await socket.close(1013)

    async def _receive(self, client: Client, state: Callable[[], Iterable[Frame]]) -> None:
        try:
            while True:
                told = await client.socket.receive()
                if told["type"] == "websocket.disconnect":
                    return
                found = _object(told.get("text"))
                if found is None:
                    await client.socket.close(1003 if told.get("text") is None else 1007)
                    return
                if found.get("type") == "feature_flags":
                    client.told_features = True
                    for frame in (message("feature_flags", FEATURES), *(f for f in state() if f.told_features)):
                        client.put(frame)
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: closed from this side in the meantime
            return


def _sid(socket: WebSocket) -> str:
    asked = socket.query_params.get("clientId", "")
    return asked if 0 < len(asked) <= 64 and asked.isprintable() else secrets.token_hex(16)


def _object(text: str | None) -> dict[str, Any] | None:
    """What a client says, if it is an object of JSON."""
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
