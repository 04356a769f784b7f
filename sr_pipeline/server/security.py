"""The doors: whose requests are answered. A page of another site must get nothing, and nobody from another machine
without the token."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sr_pipeline.server.answers import MAX_BYTES, HttpError

COOKIE = "sr_pipeline_token"
MAX_UPLOAD = 64 * 2**20
BODY_SECONDS = 10.0
BODY_RATE = 16 * 2**10
"""A body must have come after so many seconds, and one more for so many bytes of it: a trickle keeps no place."""


@dataclass(frozen=True)
class Access:
    """Who is let in.

    ``hosts`` are names by which the server may be called beside addresses: a name that somebody else's DNS points here
    is none of them. ``token``, where there is one, must come with each request.
    """

    loopback: bool = True
    hosts: frozenset[str] = frozenset()
    token: str | None = None

    def knows_host(self, name: str) -> bool:
        if name in ("localhost", *self.hosts):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback


class Doors:
    """Refuses by Host, Origin, Fetch metadata and token, before anything else looks at a request."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request = Request({**scope, "type": "http", "method": scope.get("method", "GET")})
        refusal = self._refusal(request, opens_socket=scope["type"] == "websocket")
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, request: Request, opens_socket: bool) -> Response | None:
        hosts = request.headers.getlist("host")
        host = _hostname(hosts[0]) if len(hosts) == 1 else ""
        if not self.access.knows_host(host):
            return HttpError(403, "host", "this host name is not served", "call the server by its address").answer()
        if not _same_origin(request.headers, hosts[0]):
            return HttpError(403, "origin", "a page of another site may not use this server").answer()
        if not _no_cross_site(request):
            return HttpError(403, "fetch_site", "a page of another site may not use this server").answer()
        return self._token(request, opens_socket)

    def _token(self, request: Request, opens_socket: bool) -> Response | None:
        if self.access.token is None:
            return None
        asked = request.query_params.get("token")
        if asked is not None and request.method == "GET" and _equal(asked, self.access.token):
            if opens_socket:  # which follows no redirection
                return None
            response = RedirectResponse(str(request.url.remove_query_params("token")).partition(request.url.netloc)[2])
            response.set_cookie(COOKIE, self.access.token, httponly=True, samesite="strict")
            return response
        if any(_equal(given, self.access.token) for given in _given_tokens(request)):
            return None
        refused = HttpError(401, "token", "a token is needed", "open the address that the server printed").answer()
        refused.headers["www-authenticate"] = 'Basic realm="sr-pipeline"'
        return refused


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "") if re.fullmatch(r"[\w.:\[\]-]+", host, re.ASCII) else ""
    except ValueError:
        return ""


def _same_origin(headers: Headers, host: str) -> bool:
    """A browser tells whose page asks; where nothing is told, no page does."""
    origins = headers.getlist("origin")
    return not origins or (
        len(origins) == 1 and origins[0].lower() in (f"http://{host}".lower(), f"https://{host}".lower())
    )


def _no_cross_site(request: Request) -> bool:
    """A link on another page may open the editor, and nothing else."""
    if request.headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    opened = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    return opened and request.url.path == "/"


def _given_tokens(request: Request) -> Iterable[str]:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield value
    elif kind.lower() == "basic":
        try:
            yield base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return
    if cookie := request.cookies.get(COOKIE):
        yield cookie


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


class TooLargeError(Exception):
    """A body is larger than its route takes."""


class TooSlowError(Exception):
    """A client sends its body too slowly."""


class Limits:
    """Bounds a body's size and its sender's patience, and sends headers that keep a browser to this server."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = MAX_UPLOAD if scope["path"].endswith("/upload/image") else MAX_BYTES
        too_large = HttpError(413, "too_large", f"at most {limit} bytes are taken").answer()
        length = Headers(scope=scope).get("content-length", "0")
        began = False

        async def told(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                self._add_headers(MutableHeaders(scope=message))
            await send(message)

        if not length.isascii() or not length.isdigit() or int(length) > limit:
            await too_large(scope, receive, told)
            return
        try:
            await self.app(scope, _bounded(receive, limit), told)
        except TooLargeError:
            await too_large(scope, receive, told)
        except TooSlowError:
            if not began:
                await HttpError(408, "too_slow", "the body did not come in time").answer()(scope, receive, told)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers.setdefault("content-security-policy", self.policy)
        headers["x-content-type-options"] = "nosniff"
        headers["referrer-policy"] = "no-referrer"
        headers["cross-origin-opener-policy"] = "same-origin"
        headers["cross-origin-resource-policy"] = "same-origin"
        headers["x-frame-options"] = "DENY"


def _bounded(receive: Receive, limit: int) -> Receive:
    taken, whole, began = 0, False, time.monotonic()

    async def bounded() -> Message:
        nonlocal taken, whole
        left = None if whole else began + BODY_SECONDS + taken / BODY_RATE - time.monotonic()
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError:
            raise TooSlowError from None
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > limit:
                raise TooLargeError
        return message

    return bounded


def content_policy(page: str) -> str:
    """The Content-Security-Policy of a page: this server alone, and the scripts that stand in the page itself."""
    scripts = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", page, re.DOTALL)
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        "default-src 'self'; "
        f"script-src 'self' 'wasm-unsafe-eval'{hashes}; "
        "style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "connect-src 'self' blob: data:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )
