"""Requests that must fail, each with its status: other sites, other machines, other folders, malformed, too slow."""

from __future__ import annotations

import base64
import select
import socket
import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from server.conftest import PATIENCE, SITE, TOKEN, Server, locked, picture
from sr_pipeline.server import patience, security


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"host": "evil.example"}),
        ("GET", {"host": "evil.example:8188"}),
        ("GET", {"host": "127.0.0.1.evil.example"}),
        ("GET", {"host": "localhost.evil.example"}),
        ("GET", {"host": "192.168.0.7:8188"}),
        ("GET", {"host": "0.0.0.0:8188"}),
        ("GET", {"host": "evil.example@127.0.0.1"}),
        ("GET", {"host": ""}),
        ("POST", {"origin": "http://evil.example"}),
        ("POST", {"origin": "null"}),
        ("POST", {"origin": "http://127.0.0.1:9999"}),
        ("POST", {"origin": "http://localhost:8188"}),
        ("POST", {"origin": f"http://{SITE}.evil.example"}),
        ("POST", {"origin": f"ftp://{SITE}"}),
        ("POST", {"origin": ""}),
        ("GET", {"origin": "null"}),
        ("POST", {"sec-fetch-site": "cross-site"}),
        ("GET", {"sec-fetch-site": "same-site"}),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),
    ],
)
def test_other_sites_get_nothing(client: TestClient, method: str, headers: dict[str, str]) -> None:
    answer = client.request(method, "/queue", headers=headers, content=b"{}" if method == "POST" else b"")
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] in ("host", "origin", "fetch_site")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:9000"},
        {"host": "[::1]:8188"},
        {"origin": f"http://{SITE}", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
    ],
)
def test_our_own_pages_and_programs_are_answered(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/queue", headers=headers).status_code == 200


def test_a_link_on_another_page_may_open_the_editor(client: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200


TRAVERSALS = [
    ("/view?filename=secret.txt&subfolder=..", 403),
    ("/view?filename=../../secret.txt", 403),
    ("/view?filename=..%2f..%2fsecret.txt", 403),
    ("/view?filename=%2e%2e/%2e%2e/secret.txt", 403),
    ("/view?filename=..%5c..%5csecret.txt", 403),
    ("/view?filename=%252e%252e%252fsecret.txt", 404),
    ("/view?filename=/etc/passwd", 403),
    ("/view?filename=C:%5cWindows%5cwin.ini", 403),
    ("/view?filename=C:/Windows/win.ini", 403),
    ("/view?filename=a/link.txt", 403),
    ("/view?filename=secret.txt&subfolder=out", 403),
    ("/view?filename=.queue.json", 403),
    ("/view?filename=metrics.csv%00.png&subfolder=a", 403),
    ("/view?filename=", 403),
    ("/view?filename=a", 404),
    ("/view?filename=%2e", 403),
    ("/view?filename=metrics.csv&subfolder=a//", 403),
    ("/view?filename=" + "a" * 5000, 403),
    ("/view?filename=x&type=temp", 400),
    ("/view?filename=x&type=../..", 400),
    ("/api/userdata/..%2f..%2fsecret.txt", 403),
    ("/api/userdata/%2e%2e/%2e%2e/secret.txt", 403),
    ("/api/userdata/%2fetc%2fpasswd", 403),
    ("/api/userdata/.settings.json", 403),
    ("/api/userdata/workflows%2flink.json", 403),
    ("/api/userdata?dir=..", 403),
    ("/api/userdata?dir=workflows/../..", 403),
    ("/api/userdata?dir=nothing", 404),
    ("/api/userdata/workflows%2f..%2f..%2f..%2fsecret.txt", 403),
    ("/api/userdata/workflows/%252e%252e/%252e%252e/secret.txt", 403),
    ("/api/userdata/workflows%00.json", 403),
    ("/api/userdata?dir=/etc", 404),
    ("/templates/..%2f..%2fsecret.json", 404),
    ("/templates/..%2f.settings.json", 404),
    ("/templates/link.json", 404),
    ("/templates/..%5c.settings.json", 404),
    ("/templates/..%2f..%2fsecret.webp", 404),
    ("/extensions/sr_pipeline/..%2f..%2fserve.py", 404),
    ("/extensions/sr_pipeline/%2e%2e/serve.py", 404),
    ("/extensions/..%2f..%2f..%2fsecret.txt", 404),
    ("/..%2f..%2f..%2f..%2fetc%2fpasswd", 404),
    ("/assets/%2e%2e/%2e%2e/__init__.py", 404),
]


@pytest.mark.parametrize(("path", "status"), TRAVERSALS)
def test_nothing_outside_of_the_folders_is_read(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert "secret" not in answer.text.replace("secret.", "")


@pytest.mark.parametrize("name", ["..%2f..%2fnew.json", "%2ftmp%2fnew.json", "workflows%2flink.json", ".settings.json"])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_nothing_outside_of_the_folders_is_written(client: TestClient, folder: Path, method: str, name: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    assert client.request(method, f"/userdata/{name}", content=b"{}").status_code == 403
    assert sorted(folder.parent.rglob("*")) == before
    assert (folder.parent / "secret.txt").read_text() == "secret"


@pytest.mark.parametrize(
    ("name", "data", "form", "status"),
    [
        ("../out.png", picture(), {}, 403),
        ("/tmp/out.png", picture(), {}, 403),
        ("..\\out.png", picture(), {}, 403),
        (".hidden.png", picture(), {}, 403),
        ("cat.png", picture(), {"subfolder": "../user"}, 403),
        ("cat.png", picture(), {"type": "output"}, 400),
        ("cat.exe", picture(), {}, 415),
        ("cat.html", picture(), {}, 415),
        ("cat.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", {}, 415),
        ("cat.png", b"MZ not a picture", {}, 415),
        ("cat.png", b"", {}, 415),
        ("cat.gif", picture("GIF"), {}, 415),
        ("cat.avif", picture("AVIF").replace(b"av1C", b"none"), {}, 415),
    ],
)
def test_uploads_that_are_no_pictures_or_lead_out(
    client: TestClient, folder: Path, name: str, data: bytes, form: dict[str, str], status: int
) -> None:
    answer = client.post("/upload/image", files={"image": (name, data)}, data=form)
    assert answer.status_code == status, answer.text
    assert not list((folder / "input").iterdir())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Token {TOKEN}"},
        {"authorization": "Basic " + base64.b64encode(b"user:wrong").decode()},
        {"authorization": "Basic !!!"},
        {"cookie": "sr_pipeline_token=wrong"},
        {"cookie": f"token={TOKEN}"},
    ],
)
def test_without_the_token_nothing_is_answered(guarded: Starlette, headers: dict[str, str]) -> None:
    client = TestClient(guarded, "http://192.168.0.7:8188", raise_server_exceptions=False)
    assert client.get("/queue", headers=headers).status_code == 401
    assert client.get("/", headers=headers).status_code == 401
    assert client.post("/prompt?token=" + TOKEN, headers=headers).status_code == 401
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("ws://192.168.0.7:8188/ws", headers=headers),
    ):
        pass
    assert refused.value.status_code == 401


@pytest.mark.parametrize("name", ["metrics.csv", "page.html", "page.svg", "page.xhtml", "page"])
def test_what_is_no_picture_is_a_download_that_can_do_nothing(client: TestClient, name: str) -> None:
    answer = client.get(f"/view?filename={name}&subfolder=a")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert locked(answer)


# over a real connection


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403)],
)
def test_other_sites_get_no_socket(server: Server, headers: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus, match=str(status)), connect(f"ws{server.url[4:]}/ws", additional_headers=headers):
        pass


@pytest.mark.parametrize(
    ("sent", "code"),
    [("{", 1007), ("[]", 1007), (b"\0\0\0\1", 1003), ("x" * (2**20 + 1), 1009), ("[" * 100_000, 1007)],
)
def test_malformed_messages_close_their_socket(server: Server, sent: str | bytes, code: int) -> None:
    with connect(f"ws{server.url[4:]}/ws") as connection:
        connection.send(sent)
        with pytest.raises(ConnectionClosed, match=str(code)):
            list(iter(lambda: connection.recv(30), None))


def raw(server: Server, data: bytes, seconds: float = 30.0) -> bytes:
    """What the server answers to bytes."""
    with socket.create_connection(("127.0.0.1", server.port), seconds) as connection:
        connection.sendall(data)
        found = b""
        while b"\r\n\r\n" not in found and (part := connection.recv(65536)):
            found += part
        return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET /queue HTTP/1.1\r\n\r\n", b"403"),
        (b"GET /queue HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (
            b"POST /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"400",
        ),
        (b"POST /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"400"),
        (b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"400"),
    ],
)
def test_malformed_requests(server: Server, data: bytes, status: bytes) -> None:
    assert raw(server, data).split(b" ")[1] == status


def test_a_client_that_is_slow_with_its_head_or_its_body_is_let_go(server: Server) -> None:
    """A byte now and then is not enough either."""
    assert patience.HEAD_SECONDS <= 30
    assert security.BODY_SECONDS <= 30
    body = b"POST /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000\r\n\r\n"
    starts = [b"GET /queue HTTP/1.1\r\nHost: ", b"GET /queue HTTP/1.1\r\nX-Slow: ", body + b"{", body + b" "]
    opened = [socket.create_connection(("127.0.0.1", server.port), PATIENCE) for _ in starts]
    for connection, start in zip(opened, starts, strict=True):
        connection.sendall(start)
    assert server.http.get("/queue").status_code == 200
    answers: dict[socket.socket, bytes] = {}
    began = time.monotonic()
    while waiting := [connection for connection in opened if connection not in answers]:
        assert time.monotonic() - began < PATIENCE
        for connection in {opened[1], opened[3]}.intersection(waiting):
            connection.sendall(b" ")
        for connection in select.select(waiting, (), (), 1.0)[0]:  # one answered already would end each wait at once
            answers[connection] = connection.recv(4096)
    assert {answer[:12] for answer in answers.values()} == {b"HTTP/1.1 408"}
    for connection in opened[2:]:  # which reached the application
        assert b"default-src 'self'" in answers[connection]
        assert b"x-content-type-options: nosniff" in answers[connection]
    for connection in opened:
        connection.close()
