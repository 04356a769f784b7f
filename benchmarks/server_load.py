"""What the server bears: 200 open sockets and 50 requests a second beside a training, on the same cores.

    python benchmarks/server_load.py [--seconds 60] [--rounds 2] [--sockets 200] [--rate 50] [--json] [--quick]

A server trains with one thread. One client opens the sockets and asks, in turn, our server and a stub: the same HTTP
stack that answers everything with one line and tells its sockets nothing. So what the client itself takes from the
training is in both, and the ratio of the median step times is what our server takes beyond it. An answer's time is from
the sending of the request to the end of its body. ``cpu`` is the share of one core that a process takes. It writes
server_load.json beside itself, except with --quick, and exits with 1 where an answer failed, p95 is over 50 ms, the
step is slowed by more than 5 %, or the server's memory grows by more than 8 MB after the first ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect

from sr_pipeline.node import node
from sr_pipeline.server.serve import config_of
from sr_pipeline.sockets import SILENT, Report, RunDir, Start

HERE = Path(__file__).resolve().parent
PATHS = ("/queue", "/api/jobs", "/prompt", "/history", "/api/settings", "/object_info/mse_loss", "/system_stats")
GOALS = {"p95_ms": 50.0, "slowed": 1.05, "growth_mb": 8.0}
NOWHERE = Path()


@node(category="benchmark")
def worked(steps: int = 10**6, size: int = 384, start: Start = 0) -> Iterator[float]:
    """A stream whose items are work for one thread."""
    x = torch.rand(size, size)
    for position in range(start, steps):
        for _ in range(8):
            x = (x @ x).softmax(1)
        yield position + x.sum().item()


@node(category="benchmark", output=True)
def stamped(value: float, run_dir: RunDir = NOWHERE, report: Report = SILENT) -> None:
    """The time of each step, in a file; and four numbers, as a training tells them."""
    with (run_dir / "stamps.txt").open("a") as file:
        file.write(f"{time.monotonic()}\n")
    for name in ("content", "adversarial", "discriminator", "pixels"):
        report.scalar(name, value)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON, nothing else")
    parser.add_argument("--quick", action="store_true", help="one round of ten seconds")
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stub:
        return serve_stub()
    seconds, rounds = (10.0, 1) if options.quick else (options.seconds, options.rounds)
    result = asyncio.run(measured(seconds, rounds, options.sockets, options.rate))
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    text = json.dumps(result, indent=2)
    print(text)
    if not options.quick:
        (HERE / "server_load.json").write_text(text + "\n", encoding="utf-8")
    return int(result["errors"] > 0 or any(result[name] > goal for name, goal in GOALS.items()))


def serve_stub() -> int:
    """An idle server: one line for each question, nothing for sockets."""

    async def answer(_: Request) -> JSONResponse:
        return JSONResponse({"queue_running": [], "queue_pending": []})

    async def silence(socket: WebSocket) -> None:
        await socket.accept()
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass

    class Told(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}/", flush=True)

    app = Starlette(routes=[WebSocketRoute("/ws", silence), Route("/{path:path}", answer)])
    Told(config_of(app, "127.0.0.1", 0)).run()
    return 0


@contextmanager
def started(*command: str) -> Iterator[tuple[int, str]]:
    """A server's process number and address."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found
        yield process.pid, found[0]
    finally:
        process.terminate()
        process.wait()


async def measured(seconds: float, rounds: int, sockets: int, rate: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        serve = ("-m", "sr_pipeline", "serve", "--port", "0", "--device", "cpu", "--folder", folder)
        with started(*serve, "--pack", __file__) as (pid, url), started(__file__, "--stub") as (_, stub):
            stamps = await train(url, Path(folder))
            ratios, growth, messages, errors, cpu = [], list[float](), 0, 0, []
            waits, stub_waits = list[float](), list[float]()
            for _ in range(rounds):
                idle = await phase(stub, pid, seconds, sockets, rate)
                ours = await phase(url, pid, seconds, sockets, rate)
                ratios.append(step_time(stamps, ours["during"]) / step_time(stamps, idle["during"]))
                waits, stub_waits = waits + ours["waits"], stub_waits + idle["waits"]
                growth.append(ours["growth_mb"])
                errors += ours["errors"]
                messages += ours["messages"]
                cpu.append(ours["cpu"])
            return {
                "requests": len(waits),
                "errors": errors,
                **answers(waits),
                "stub": answers(stub_waits),
                "slowed": round(statistics.median(ratios), 4),
                "slowed_each_round": [round(r, 4) for r in ratios],
                "step_ms": round(step_time(stamps, idle["during"]) * 1000, 2),
                "growth_mb": round(max(growth), 2),
                "cpu": {name: round(statistics.median(c[name] for c in cpu), 3) for name in cpu[0]},
                "socket_messages": messages,
                "sockets": sockets,
                "rate": rate,
                "seconds": seconds,
            }


async def train(url: str, folder: Path) -> Path:
    """Start a training, and give the file of its steps' times."""
    graph = {
        "work": {"class_type": "worked", "inputs": {}},
        "log": {"class_type": "stamped", "inputs": {"value": ["work", 0]}},
    }
    async with httpx2.AsyncClient(base_url=url) as client:
        (await client.post("/prompt", json={"prompt": graph})).raise_for_status()
    while not (found := list(folder.glob("runs/*/stamps.txt"))):
        await asyncio.sleep(0.2)
    return found[0]


def answers(waits: list[float]) -> dict[str, float]:
    """Milliseconds that answers took."""
    found = {"p50_ms": statistics.median(waits), "p95_ms": statistics.quantiles(waits, n=20)[-1], "max_ms": max(waits)}
    return {name: round(seconds * 1000, 2) for name, seconds in found.items()}


def step_time(stamps: Path, during: tuple[float, float]) -> float:
    """The median seconds of the steps in a span of time."""
    times = [float(line) for line in stamps.read_text().split()]
    inside = [t for t in times if during[0] <= t <= during[1]]
    return statistics.median(b - a for a, b in pairwise(inside))


async def phase(url: str, pid: int, seconds: float, sockets: int, rate: float) -> dict[str, Any]:
    """The client's load on one server."""
    heard, waits, errors = [0], list[float](), [0]
    opened = [await connect(f"ws{url[4:]}/ws", max_size=None) for _ in range(sockets)]
    ears = [asyncio.ensure_future(listen(socket, heard)) for socket in opened]
    memory: list[float] = []
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        await asyncio.sleep(2)
        before = cpu_seconds(pid), time.process_time()
        began, asked = time.monotonic(), list[asyncio.Task[None]]()
        for number in range(round(seconds * rate)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            asked.append(asyncio.ensure_future(ask(client, PATHS[number % len(PATHS)], waits, errors)))
            if number % round(rate) == 0:
                memory.append(resident_mb(pid))
        await asyncio.gather(*asked)
        during = began, time.monotonic()
        after = cpu_seconds(pid), time.process_time()
    for ear in ears:
        ear.cancel()
    await asyncio.gather(*(socket.close() for socket in opened), *ears, return_exceptions=True)
    settled = memory[min(10, len(memory) // 2)]
    return {
        "waits": waits,
        "errors": errors[0],
        "during": during,
        "growth_mb": memory[-1] - settled,
        "messages": heard[0],
        "cpu": {n: (b - a) / (during[1] - began) for n, a, b in zip(("server", "client"), before, after, strict=True)},
    }


async def listen(socket: ClientConnection, heard: list[int]) -> None:
    await socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
    async for _ in socket:
        heard[0] += 1


async def ask(client: httpx2.AsyncClient, path: str, waits: list[float], errors: list[int]) -> None:
    began = time.perf_counter()
    try:
        answer = await client.get(path)
        errors[0] += answer.status_code != 200
    except httpx2.HTTPError:
        errors[0] += 1
    waits.append(time.perf_counter() - began)


def cpu_seconds(pid: int) -> float:
    """Of a process, on all cores together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    sys.exit(main())
