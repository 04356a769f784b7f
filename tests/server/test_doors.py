"""Requests that must fail, each with its status: other sites, other machines, other folders, too much, too slowly."""

from __future__ import annotations

import base64
import io
import socket
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from server.conftest import Server
from sr_pipeline.registry import Registry
from sr_pipeline.server import patience, security
from sr_pipeline.server.app import create_app
from sr_pipeline.server.security import Access

SITE = "127.0.0.1:8188"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder with a run, a workflow, an upload, a secret beside it, and links that lead out."""
    root = tmp_path_factory.mktemp("doors")
    (root / "secret.txt").write_text("secret")
    work = root / "work"
    for name in ("runs/a/checkpoints", "input", "user/workflows"):
        (work / name).mkdir(parents=True)
    (work / "runs/a/metrics.csv").write_text("step,name,value\n")
    (work / "runs/.queue.json").write_text("[]")
    (work / "user/workflows/mine.json").write_text("{}")
    (work / "user/.settings.json").write_text("{}")
    (work / "runs/a/link.txt").symlink_to(root / "secret.txt")
    (work / "runs/out").symlink_to(root)
    (work / "user/workflows/link.json").symlink_to(root / "secret.txt")
    return work


def application(registry: Registry, folder: Path, **access: Any) -> Starlette:
    return create_app(registry, folder, Access(**access))


@pytest.fixture(scope="module")
def client(registry: Registry, folder: Path) -> TestClient:
    return TestClient(application(registry, folder), f"http://{SITE}", raise_server_exceptions=False)


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
    ("/templates/..%2f..%2fsecret.json", 404),
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
    ("path", "status"),
    [
        ("workflows%2fmine.json/move/..%2f..%2fnew.json", 403),
        ("..%2f..%2fsecret.txt/move/workflows%2fnew.json", 403),
        ("workflows%2fmine.json/move/workflows%2fnew.exe", 415),
        ("workflows%2fnone.json/move/workflows%2fnew.json", 404),
    ],
)
def test_nothing_is_moved_out_or_in(client: TestClient, path: str, status: int) -> None:
    assert client.post(f"/userdata/{path}").status_code == status


def picture(kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(out, kind)
    return out.getvalue()


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
    ],
)
def test_uploads_that_are_no_pictures_or_lead_out(
    client: TestClient, folder: Path, name: str, data: bytes, form: dict[str, str], status: int
) -> None:
    answer = client.post("/upload/image", files={"image": (name, data)}, data=form)
    assert answer.status_code == status, answer.text
    assert not list((folder / "input").iterdir())


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", "/prompt", b"", {}, 400),
        ("POST", "/prompt", b"{", {}, 400),
        ("POST", "/prompt", b"\xff\xfe", {}, 400),
        ("POST", "/prompt", b"[" * 100_000, {}, 400),
        ("POST", "/prompt", b'{"prompt": {"a": NaN}}', {}, 400),
        ("POST", "/prompt", b"prompt=1", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/prompt", b"--x", {"content-type": "multipart/form-data; boundary=x"}, 415),
        ("POST", "/upload/image", b"{}", {"content-type": "application/json"}, 415),
        ("POST", "/upload/image", b"nothing", {"content-type": "multipart/form-data"}, 400),
        ("POST", "/queue", b"[]", {}, 400),
        ("POST", "/queue", b'{"delete": [1]}', {}, 400),
        ("POST", "/userdata/workflows%2fx.json", b"{", {}, 400),
        ("POST", "/userdata/workflows%2fx.js", b"{}", {}, 415),
        ("GET", "/jobs?status=dancing", b"", {}, 400),
        ("GET", "/jobs?limit=-1", b"", {}, 400),
        ("GET", "/jobs?limit=9999999999999999999999", b"", {}, 400),
        ("GET", "/jobs/none", b"", {}, 404),
        ("POST", "/jobs/none/cancel", b"", {}, 404),
        ("POST", "/resume", b'{"prompt_id": "none"}', {}, 404),
        ("PUT", "/prompt", b"{}", {}, 405),
        ("DELETE", "/queue", b"", {}, 405),
        ("POST", "/object_info", b"{}", {}, 405),
        ("POST", "/customnode/install", b'{"url": "https://evil.example/pack"}', {}, 405),
        ("POST", "/manager/queue/install", b"{}", {}, 405),
        ("POST", "/prompt", b"{}", {"content-length": "99999999999"}, 413),
        ("POST", "/settings", b'{"a": "' + b"x" * 2**20 + b'"}', {}, 413),
    ],
)
def test_what_has_not_the_form_of_a_request(
    client: TestClient, method: str, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    if status != 405 or "install" not in path:
        assert set(answer.json()["error"]) == {"type", "message", "details", "extra_info"}


def test_a_body_that_grows_too_large_is_cut_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_BYTES", 1000)
    assert client.post("/prompt", content=iter([b" " * 600, b" " * 600])).status_code == 413


TOKEN = "long-and-secret"


@pytest.fixture(scope="module")
def guarded(registry: Registry, folder: Path) -> Starlette:
    return application(registry, folder, loopback=False, token=TOKEN, hosts=frozenset({"lab.example"}))


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


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": "Basic " + base64.b64encode(f"user:{TOKEN}".encode()).decode()},
        {"cookie": f"sr_pipeline_token={TOKEN}"},
        {"authorization": f"Bearer {TOKEN}", "host": "lab.example:8188"},
    ],
)
def test_with_the_token_all_is(guarded: Starlette, headers: dict[str, str]) -> None:
    client = TestClient(guarded, "http://192.168.0.7:8188")
    assert client.get("/queue", headers=headers).status_code == 200


def test_the_token_does_not_open_the_door_to_other_names(guarded: Starlette) -> None:
    client = TestClient(guarded, "http://evil.example:8188")
    assert client.get("/queue", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 403


def test_the_address_with_the_token_becomes_a_cookie_for_this_site_alone(guarded: Starlette) -> None:
    client = TestClient(guarded, "http://192.168.0.7:8188", follow_redirects=False)
    answer = client.get("/?template=train_srgan&token=" + TOKEN)
    assert answer.status_code == 307
    assert answer.headers["location"] == "/?template=train_srgan"
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert client.get("/queue").status_code == 200


def test_pages_may_load_from_here_alone(client: TestClient) -> None:
    headers = client.get("/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert "unsafe-eval'" not in policy["script-src"].replace("wasm-unsafe-eval'", "")
    assert "'unsafe-inline'" not in policy["script-src"]
    assert not [
        source for sources in policy.values() for source in sources.split() if "http" in source or source == "*"
    ]
    assert headers["x-content-type-options"] == "nosniff"


def test_what_is_no_picture_is_a_download_that_can_do_nothing(client: TestClient) -> None:
    answer = client.get("/view?filename=metrics.csv&subfolder=a")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in answer.headers["content-security-policy"]


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


def test_a_socket_that_reads_nothing_holds_nobody_up(server: Server) -> None:
    with connect(f"ws{server.url[4:]}/ws"):
        for _ in range(50):
            assert server.http.get("/queue").status_code == 200


def test_a_client_that_is_slow_with_its_head_or_its_body_is_let_go(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert patience.HEAD_SECONDS <= 30
    assert security.BODY_SECONDS <= 30
    head = b"POST /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"
    with (
        socket.create_connection(("127.0.0.1", server.port), 60) as no_head,
        socket.create_connection(("127.0.0.1", server.port), 60) as no_body,
    ):
        no_head.sendall(b"GET /queue HTTP/1.1\r\nHost: ")
        no_body.sendall(head)
        assert server.http.get("/queue").status_code == 200
        assert no_head.recv(100).startswith(b"HTTP/1.1 408")
        assert no_body.recv(100).startswith(b"HTTP/1.1 408")
