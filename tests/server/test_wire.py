"""Bytes over a real connection that are no frames of a web socket."""

from __future__ import annotations

import base64
import os
import socket
import struct

import pytest
from websockets.sync.client import connect

from server.conftest import PATIENCE, Server


def frame(opcode: int, data: bytes = b"", fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A web socket's frame, as a client should send it or not. The mask is zero."""
    length = len(data)
    if length < 2**16:
        size = bytes([length]) if length < 126 else struct.pack(">BH", 126, length)
    else:
        size = struct.pack(">BQ", 127, length)
    size = bytes([size[0] | 0x80 * masked]) + size[1:]
    return bytes([0x80 * fin | reserved << 4 | opcode]) + size + b"\0\0\0\0" * masked + data


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(1, b"{}", masked=False), 1002),
        (frame(1, b"{}", reserved=4), 1002),
        (frame(3, b"{}"), 1002),
        (frame(11, b""), 1002),
        (frame(0, b"{}"), 1002),
        (frame(1, b"{", fin=False) + frame(1, b"}"), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(9, b"x", fin=False), 1002),
        (frame(1, b'"\xff"'), 1007),
        (b"\x81\xff" + struct.pack(">Q", 2**62), 1009),
        (b"\x81\xff" + struct.pack(">Q", 2**64 - 1), 1009),
        (frame(2, b"x" * 2**19, fin=False) + frame(0, b"x" * 2**19, fin=False) + frame(0, b"x"), 1009),
    ],
)
def test_bytes_that_are_no_frames_close_their_socket(server: Server, sent: bytes, code: int) -> None:
    """The close frame that comes back says why; and the server goes on."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(head.encode())
        while b"\r\n\r\n" not in found:
            found += connection.recv(65536)
        connection.sendall(sent)
        while part := connection.recv(65536):
            found += part
    closed = found.rpartition(struct.pack(">H", code))[0]
    assert closed[-2] == 0x88, found[-100:]
    assert server.http.get("/queue").status_code == 200


def test_a_socket_that_reads_nothing_holds_nobody_up(server: Server) -> None:
    with connect(f"ws{server.url[4:]}/ws"):
        for _ in range(50):
            assert server.http.get("/queue").status_code == 200
