"""Requests that have not the form of one or ask for too much, the token's ways in, and what a page may do."""

from __future__ import annotations

import base64
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient, WebSocketDenialResponse

from server.conftest import SITE, TOKEN, locked, picture
from sr_pipeline.server import hub, security


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("workflows%2fmine.json/move/..%2f..%2fnew.json", 403),
        ("..%2f..%2fsecret.txt/move/workflows%2fnew.json", 403),
        ("workflows%2fmine.json/move/workflows%2fnew.exe", 415),
        ("workflows%2fmine.json/move/.settings.json", 403),
        ("workflows%2fmine.json/move/workflows%2flink.json?overwrite=true", 403),
        ("workflows%2flink.json/move/workflows%2fnew.json", 403),
        (".settings.json/move/workflows%2fnew.json", 403),
        ("workflows%2fmine.json/move/workflows%2fmine.json", 409),
        ("workflows%2fmine.json/move/workflows%2fmine.json%2fx.json", 409),
        ("workflows%2fnone.json/move/workflows%2fnew.json", 404),
    ],
)
def test_nothing_is_moved_out_or_in(client: TestClient, path: str, status: int) -> None:
    assert client.post(f"/userdata/{path}").status_code == status


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", "/prompt", b"", {}, 400),
        ("POST", "/prompt", b"{", {}, 400),
        ("POST", "/prompt", b"\xff\xfe", {}, 400),
        ("POST", "/prompt", b"[" * 100_000, {}, 400),
        ("POST", "/prompt", b'{"prompt": {"a": NaN}}', {}, 400),
        ("POST", "/prompt", b'{"prompt": {"a": {"class_type": "mean", "inputs": {"x": 1e999}}}}', {}, 400),
        ("POST", "/settings/x", b"1e999", {}, 400),
        ("POST", "/settings", b'{"x": [1e999]}', {}, 400),
        ("POST", "/userdata/workflows%2fx.json", b"1e999", {}, 400),
        ("POST", "/prompt", b"prompt=1", {"content-type": "application/x-www-form-urlencoded"}, 400),
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


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_a_form_of_another_site_is_refused_whatever_is_in_it(client: TestClient, headers: dict[str, str]) -> None:
    """What a page can send without asking."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
        answer = client.post("/settings/x", content=b"1", headers={**headers, "content-type": kind})
        assert answer.status_code == 403
    assert client.get("/settings/x").json() is None
    assert client.post("/settings", content=b"{}", headers={"content-type": "text/plain"}).status_code == 200


def test_a_body_that_grows_too_large_is_cut_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_BYTES", 1000)
    for content in (iter([b" " * 600, b" " * 600]), b" " * 1200):
        answer = client.post("/prompt", content=content)
        assert answer.status_code == 413
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


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


def test_the_address_with_the_token_opens_a_socket(guarded: Starlette) -> None:
    """Which follows no redirection."""
    client = TestClient(guarded, "http://192.168.0.7:8188")
    socket = client.websocket_connect(f"ws://192.168.0.7:8188/ws?clientId=me&token={TOKEN}")
    with suppress(CancelledError), socket as opened:  # the test's client cancels the server's side as it leaves
        assert opened.receive_json()["data"]["sid"] == "me"
    evil = {"origin": "http://evil.example"}
    for query, headers, status in (("wrong", {}, 401), (TOKEN, evil, 403)):
        socket = client.websocket_connect(f"ws://192.168.0.7:8188/ws?token={query}", headers=headers)
        with pytest.raises(WebSocketDenialResponse) as refused, socket:
            pass
        assert refused.value.status_code == status


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


def test_a_picture_with_a_page_in_it_is_a_picture(client: TestClient, folder: Path) -> None:
    """What a browser might take for a page, if it looked at the bytes."""
    data = picture() + b"<html><script>alert(1)</script>"
    uploaded = client.post("/upload/image", files={"image": ("both.png", data)}).json()
    answer = client.get("/view", params={"filename": uploaded["name"], "type": "input"})
    (folder / "input" / uploaded["name"]).unlink()
    assert answer.headers["content-type"] == "image/png"
    assert locked(answer)


def test_a_text_with_a_page_in_it_is_json(client: TestClient, folder: Path) -> None:
    page = b'"<html><script>alert(1)</script>"'
    assert client.post("/userdata/workflows%2fpage.json", content=page).status_code == 200
    for path in ("/userdata/workflows%2fpage.json", "/templates/page.json"):
        answer = client.get(path)
        assert (answer.content, answer.headers["content-type"]) == (page, "application/json")
        assert locked(answer)
    (folder / "user/workflows/page.json").unlink()


def test_our_own_pages_get_a_socket(client: TestClient) -> None:
    """Also where the protocol below knows nothing of bundles."""
    socket = client.websocket_connect(f"ws://{SITE}/ws?clientId=me", headers={"origin": f"http://{SITE}"})
    with suppress(CancelledError), socket as opened:  # the test's client cancels the server's side as it leaves
        first = opened.receive_json()
    assert (first["type"], first["data"]["sid"]) == ("status", "me")


def test_so_many_sockets_and_no_more(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_SOCKETS", 0)
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(f"ws://{SITE}/ws"):
        pass
    assert refused.value.status_code == 503


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8188", "127.0.0.1.evil.example", "0.0.0.0:8188"])
def test_a_name_that_leads_here_gets_no_socket(client: TestClient, host: str) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/ws", headers={"host": host, "origin": f"http://{host}"}),
    ):
        pass
    assert refused.value.status_code == 403
