"""HTTP for clients that are slow on purpose: a connection that sends no whole head in time is closed."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0


class PatientHttp(HttpToolsProtocol):
    """uvicorn's protocol, which alone would wait for ever for the end of a head."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._alarm = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def on_headers_complete(self) -> None:
        self._alarm.cancel()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._alarm.cancel()

    def on_message_begin(self) -> None:
        self._alarm.cancel()
        self._alarm = self.loop.call_later(HEAD_SECONDS, self._too_slow)
        super().on_message_begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._alarm.cancel()
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            body = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(body)
            self.transport.close()
