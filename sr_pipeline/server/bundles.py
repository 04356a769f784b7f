"""Web sockets that are sent many messages in one write, each message made ready once for all sockets."""

from __future__ import annotations

from typing import Any

from starlette.websockets import WebSocket
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

BUNDLE = "sr_pipeline.bundle"
"""The extension of ASGI by which a socket says that it can be sent bundles, and the key of one in a message."""


class BundlingSocket(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which alone would frame each message anew for each socket, and write each by itself."""

    async def run_asgi(self) -> None:
        self.scope["extensions"] = {**(self.scope.get("extensions") or {}), BUNDLE: {}}
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        bundle = message.get(BUNDLE)
        if bundle is None:
            await super().send(message)
            return
        await self.writable.wait()
        if self.disconnected or self.close_sent or self.transport.is_closing():
            raise ClientDisconnected
        self.transport.write(bundle)


def takes_bundles(socket: WebSocket) -> bool:
    return BUNDLE in socket.scope.get("extensions", {})


async def send_bundle(socket: WebSocket, bundle: bytes) -> None:
    """Send whole messages as they go over the wire."""
    await socket.send({"type": "websocket.send", BUNDLE: bundle})
