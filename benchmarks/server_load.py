"""What the server bears: 200 open sockets and 50 requests a second beside a training, on the same cores.

    python benchmarks/server_load.py [--seconds 60] [--rounds 4] [--sockets 200] [--rate 50] [--quick] [--out DIR]

A server trains with one thread. One client opens the sockets and asks, in turn, our server and a stub: the same HTTP
stack that answers everything with one line and tells its sockets nothing. So what the client itself takes from the
training is in both, and the ratio of the mean step times is what our server takes beyond it. An answer's time is from
the sending of the request to the end of its body. ``cpu`` is the share of one core that a process takes: our server,
the stub under the same load, and the client at each of them. It exits with 1 where an answer failed, a socket was
closed, p95 is over 50 ms, the step is slowed by more than 5 %, or the server's memory grows by more than 8 MB after the
first ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

from measure import arguments, machine, publish, short, tell
from sr_pipeline.node import node
from sr_pipeline.server.serve import config_of
from sr_pipeline.sockets import SILENT, Report, RunDir, Start

PATHS = ("/queue", "/api/jobs", "/prompt", "/history", "/api/settings", "/object_info/mse_loss", "/system_stats")
GOALS = {"p95_ms": 50.0, "slowed": 1.05, "growth_mb": 8.0}
NOWHERE = Path()
HERE = Path(__file__).resolve()
Span = tuple[float, float]
"""Of the monotonic clock."""


@dataclass
class Phase:
    """What the client saw of one server."""

    waits: list[float] = field(default_factory=list)
    errors: int = 0
    messages: int = 0
    during: Span = (0.0, 0.0)
    growth_mb: float = 0.0
    server_cpu: float = 0.0
    client_cpu: float = 0.0


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
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stub:
        return serve_stub()
    seconds, rounds = (10.0, 1) if options.quick else (options.seconds, options.rounds)
    found = asyncio.run(measured(seconds, rounds, options.sockets, options.rate))
    result = {"machine": machine(torch.device("cpu")), **found, "goals": GOALS}
    publish("server_load", result, options)
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
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
        with started(*serve, "--pack", __file__) as ours, started(__file__, "--stub") as stub:
            stamps = await train(ours[1], Path(folder))
            phases: list[tuple[Phase, Phase]] = []
            for turn in range(rounds):  # each is first as often as the other: what else the machine does meets both
                pair = {at: await phase(*at, seconds, sockets, rate) for at in ((stub, ours), (ours, stub))[turn % 2]}
                phases.append((pair[ours], pair[stub]))
                tell(f"round {turn + 1}: the step {slowed(stamps, [phases[-1]], mean_step):.4f}")
            return summary(stamps, phases) | {"sockets": sockets, "rate": rate, "seconds": seconds}


def summary(stamps: Path, phases: list[tuple[Phase, Phase]]) -> dict[str, Any]:
    """What the goals are of, and what explains it."""
    ours, stubs = zip(*phases, strict=True)
    return {
        "requests": sum(len(found.waits) for found in ours),
        "errors": sum(found.errors for found in ours),
        **answers(ours),
        "stub": answers(stubs),
        "slowed": slowed(stamps, phases, mean_step),
        "slowed_each_round": [slowed(stamps, [pair], mean_step) for pair in phases],
        "slowed_median_step": slowed(stamps, phases, median_step),
        "step_ms": short(1000 * mean_step(stamps, stubs[0].during)),
        "growth_mb": short(max(found.growth_mb for found in ours)),
        "cpu": {
            "server": short(statistics.mean(found.server_cpu for found in ours)),
            "stub": short(statistics.mean(found.server_cpu for found in stubs)),
            "client_at_server": short(statistics.mean(found.client_cpu for found in ours)),
            "client_at_stub": short(statistics.mean(found.client_cpu for found in stubs)),
        },
        "socket_messages": sum(found.messages for found in ours),
    }


def slowed(stamps: Path, phases: list[tuple[Phase, Phase]], step: Callable[[Path, Span], float]) -> float:
    """The step beside our server by that beside the stub: the median of the rounds."""
    return short(statistics.median(step(stamps, ours.during) / step(stamps, stub.during) for ours, stub in phases))


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


def answers(phases: Iterable[Phase]) -> dict[str, float]:
    """Milliseconds that answers took."""
    waits = [wait for found in phases for wait in found.waits]
    found = {"p50_ms": statistics.median(waits), "p95_ms": statistics.quantiles(waits, n=20)[-1], "max_ms": max(waits)}
    return {name: short(seconds * 1000) for name, seconds in found.items()}


def steps_in(stamps: Path, during: Span) -> list[float]:
    """The seconds of the steps in a span of time."""
    times = [float(line) for line in stamps.read_text().split()]
    return [b - a for a, b in pairwise(t for t in times if during[0] <= t <= during[1])]


def mean_step(stamps: Path, during: Span) -> float:
    """What the training loses in all: steps that are held up a lot count as much as they last."""
    return statistics.mean(steps_in(stamps, during))


def median_step(stamps: Path, during: Span) -> float:
    return statistics.median(steps_in(stamps, during))


async def phase(pid: int, url: str, seconds: float, sockets: int, rate: float) -> Phase:
    """The client's load on one server."""
    found, memory = Phase(), list[float]()
    opened = [await connect(f"ws{url[4:]}/ws", max_size=None) for _ in range(sockets)]
    ears = [asyncio.ensure_future(listen(socket, found)) for socket in opened]
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        await asyncio.sleep(2)
        server_cpu, client_cpu = cpu_seconds(pid), time.process_time()
        began, asked = time.monotonic(), list[asyncio.Task[None]]()
        for number in range(round(seconds * rate)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            asked.append(asyncio.ensure_future(ask(client, PATHS[number % len(PATHS)], found)))
            if number >= len(memory) * rate:  # each second
                memory.append(resident_mb(pid))
        await asyncio.gather(*asked)
        found.during = began, time.monotonic()
        lasted = found.during[1] - began
        found.server_cpu = (cpu_seconds(pid) - server_cpu) / lasted
        found.client_cpu = (time.process_time() - client_cpu) / lasted
    found.errors += sum(ear.done() for ear in ears)  # a socket that was closed
    for ear in ears:
        ear.cancel()
    await asyncio.gather(*(socket.close() for socket in opened), *ears, return_exceptions=True)
    found.growth_mb = memory[-1] - memory[min(10, len(memory) // 2)]
    return found


async def listen(socket: ClientConnection, found: Phase) -> None:
    await socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
    async for _ in socket:
        found.messages += 1


async def ask(client: httpx2.AsyncClient, path: str, found: Phase) -> None:
    began = time.perf_counter()
    try:
        answer = await client.get(path)
        found.errors += answer.status_code != 200
    except httpx2.HTTPError:
        found.errors += 1
    found.waits.append(time.perf_counter() - began)


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process that live, to the nanosecond; the clock ticks of ``stat`` are too coarse."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    sys.exit(main())
