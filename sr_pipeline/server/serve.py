"""Start the server on an address, and say where it is."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlencode

import uvicorn

from sr_pipeline.errors import UsageError
from sr_pipeline.registry import load_packs
from sr_pipeline.server.app import create_app
from sr_pipeline.server.bundles import BundlingSocket
from sr_pipeline.server.patience import PatientHttp
from sr_pipeline.server.security import Access

MAX_CONNECTIONS = 1024
MAX_MESSAGE = 2**20


def serve(
    host: str = "127.0.0.1",
    port: int = 8188,
    *,
    folder: str | Path = ".",
    device: str = "auto",
    packs: Sequence[str] = (),
    token: str | None = None,
    hosts: Sequence[str] = (),
    allowed: Sequence[Path] = (),
    browser: bool = False,
    query: str = "",
    say: Callable[[str], None] = print,
) -> None:
    """Serve until a signal says to stop; then what runs is saved, and offered to go on with at the next start.

    Args:
        host: the address; any other than loopback needs a token, and gets one if none is given.
        port: 0 is a free one.
        folder: where it works: runs/, input/ and user/ are in it, and relative paths of graphs start there.
        device: on which runs compute: auto, cpu, cuda or cuda:N.
        packs: more nodes: modules or .py files.
        token: what each request must bring.
        hosts: names by which the server is called beside its address.
        allowed: folders that graphs may read beside that where it works.
        browser: open the editor.
        query: of the address that is opened, ``template=train_srgan`` for one.
        say: where the address is told.

    Raises:
        UsageError: it cannot listen there.
    """
    where = listening(host, port)
    loopback = is_loopback(host)
    token = token or (None if loopback else secrets.token_urlsafe(24))
    access = Access(loopback, frozenset(hosts), token)
    registry, packs = load_packs(packs), [absolute(pack) for pack in packs]
    allowed = [path.resolve() for path in allowed]
    new = not Path(folder).exists()
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # which the worker process takes over
    app = create_app(registry, Path.cwd(), access, packs, device, allowed)
    server = _Server(config_of(app, host, port))
    asked = "&".join(part for part in (query, urlencode({"token": token}) if token else "") if part)

    def started(bound: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{bound}/" + (f"?{asked}" if asked else "")
        say(f"sr_pipeline is at {url} (Ctrl-C stops it)")
        if new:
            say(f"{Path.cwd()} is a new folder")
        if browser:
            webbrowser.open(url)

    server.started_at = started
    server.run([where])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UsageError: there is no such address, or it is not free.
    """
    try:
        family, *_, address = min(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # IPv4 before IPv6
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        fix = "stop what listens there, or give another port: 0 is a free one"
        mend = fix if taken else "give an address of this machine, 127.0.0.1 for one, and a port from 1024 on"
        raise UsageError(f"--host {host} --port {port}", f"it cannot listen there: {error.strerror}", mend) from None


def absolute(pack: str) -> str:
    """A pack's name as it reads from any folder."""
    return str(Path(pack).resolve()) if pack.endswith(".py") else pack


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def config_of(app: object, host: str, port: int) -> uvicorn.Config:
    """How uvicorn serves the application: bounded in all directions."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host,
        port,
        http=PatientHttp,
        ws=BundlingSocket,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )


class _Server(uvicorn.Server):
    started_at: Callable[[int], None]

    async def startup(self, sockets: object = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self.started_at(self.servers[0].sockets[0].getsockname()[1])
