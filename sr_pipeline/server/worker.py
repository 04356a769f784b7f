"""The process that runs graphs, one after another, and tells the server what happens in them."""

from __future__ import annotations

import faulthandler
import queue
import re
import signal
import threading
import time
import traceback
from collections import deque
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from sr_pipeline.cache import SetupCache
from sr_pipeline.errors import PipelineError
from sr_pipeline.events import (
    Done,
    Event,
    ImageWritten,
    NodeProgress,
    NodeStarted,
    Progress,
    Resumed,
    RunStarted,
    Saved,
    Scalar,
    Warned,
)
from sr_pipeline.folder import RunFolder
from sr_pipeline.graph import Graph
from sr_pipeline.plan import Plan
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.run import run
from sr_pipeline.runner import Result
from sr_pipeline.server.curves import Line, draw
from sr_pipeline.sinks import read_metrics

TICK = 0.25
"""Seconds between two of the messages that come in streams."""
CURVES_EVERY = 3.0
KEPT_PLANS = 4


@dataclass(frozen=True)
class Order:
    """What the server asks for: a graph, and the folder to go on in."""

    job: str
    graph: str
    source: str
    only: tuple[str, ...] = ()
    run_dir: str | None = None
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stop:
    """That a job is to be stopped after its step, if it runs."""

    job: str


class PlanCache(SetupCache):
    """Setup values of the last few plans, and which of them the present one finds."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: deque[frozenset[str]] = deque(maxlen=KEPT_PLANS)
        self.found: list[str] = []

    def keys_of(self, plan: Plan) -> dict[str, str]:
        keys = super().keys_of(plan)
        self.found = [node for node, key in keys.items() if key in self]
        self.plans.append(frozenset(keys.values()))
        for old in self.keys() - frozenset().union(*self.plans):
            del self[old]
        return keys


@dataclass
class Teller:
    """A sink that sends a run's events over the pipe: those that come in streams in bundles."""

    connection: Connection
    job: str
    runs: Path
    cache: PlanCache
    folder: RunFolder | None = None
    numbers: dict[str, tuple[int, float]] = field(default_factory=dict)
    lines: dict[str, dict[str, Line]] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    cached: bool = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Scalar):
            self.numbers[event.name] = (event.step, event.value)
            self._line(event.step, event.name, event.value)
        elif isinstance(event, (Progress, NodeProgress)):
            self._tick(event)
        else:
            self._flush()
            self._tell(event)

    def _tick(self, event: Progress | NodeProgress) -> None:
        now = time.monotonic()
        name = event.node if isinstance(event, NodeProgress) else ""
        done, total = (event.done, event.total) if isinstance(event, NodeProgress) else (event.step, event.total)
        if now - self.told.get(name, 0.0) < TICK and done != total:
            return
        self.told[name] = now
        self._flush()
        self.send(event.to_dict())

    def _tell(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.folder = RunFolder(Path(event.run_dir))
        if isinstance(event, NodeStarted) and not self.cached:
            self.cached = True
            self.send({"type": "cached", "nodes": self.cache.found})
        if isinstance(event, Resumed) and self.folder:
            for step, name, value in read_metrics(self.folder.metrics):
                self._line(step, name, value)
        if isinstance(event, ImageWritten):
            self.picture(event.node, Path(event.path))
        elif isinstance(event, Done):
            self._curves(write=True)
        elif isinstance(event, (RunStarted, NodeStarted, Resumed, Warned, Saved)):
            self.send(event.to_dict())

    def _flush(self) -> None:
        if self.numbers:
            self.send({"type": "scalars", "values": self.numbers})
            self.numbers = {}
        now = time.monotonic()
        if now - self.told.setdefault("curves", now) > CURVES_EVERY:
            self.told["curves"] = now
            self._curves(write=False)

    def _line(self, step: int, name: str, value: float) -> None:
        node, _, label = name.rpartition("/")
        self.lines.setdefault(node or name, {}).setdefault(label, Line()).add(step, value)

    def _curves(self, write: bool) -> None:
        for node, lines in self.lines.items():
            picture = draw(lines)
            if picture is None:
                continue
            if not write or self.folder is None:
                self.send({"type": "shown", "node": node}, picture)
                continue
            path = self.folder.path / "curves" / f"{re.sub(r'[^A-Za-z0-9_-]', '_', node)}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture)
            self.picture(node, path)

    def picture(self, node: str, path: Path) -> None:
        """Tell of a picture in the folder of runs; of one elsewhere, which the server may not serve, nothing."""
        try:
            inside = path.resolve().relative_to(self.runs.resolve())
        except ValueError:
            return
        image = {"filename": inside.name, "subfolder": inside.parent.as_posix(), "type": "output"}
        self.send({"type": "picture", "node": node, "image": image})

    def send(self, event: dict[str, Any], data: bytes = b"") -> None:
        self.connection.send(("event", self.job, event, data))


class Worker:
    """Takes orders from the pipe in one thread, and runs them in the main one."""

    def __init__(self, connection: Connection, registry: Registry, device: str, runs: Path) -> None:
        self.connection, self.registry, self.device, self.runs = connection, registry, device, runs
        self.orders: queue.SimpleQueue[Order | str | None] = queue.SimpleQueue()
        self.cache = PlanCache()
        self.stopped: set[str] = set()
        self.leaving = threading.Event()

    def listen(self) -> None:
        """Until the server is gone."""
        try:
            while (told := self.connection.recv()) != "exit":
                if isinstance(told, Stop):
                    self.stopped.add(told.job)
                    continue
                if isinstance(told, Order):
                    self.stopped.discard(told.job)  # here, in the order in which the server said it
                self.orders.put(told)
        except (EOFError, OSError):
            pass
        self.leave()

    def leave(self) -> None:
        self.leaving.set()
        self.orders.put(None)

    def serve(self) -> None:
        threading.Thread(target=self.listen, daemon=True).start()
        while (order := self.orders.get()) is not None and not self.leaving.is_set():
            if isinstance(order, Order):
                self.connection.send(self.done(order))
            else:
                self.cache.clear()

    def done(self, order: Order) -> tuple[str, str, dict[str, Any], bytes]:
        """Run a graph, and say how it ended."""
        teller = Teller(self.connection, order.job, self.runs, self.cache)
        try:
            result = self.run(order, teller)
        except Exception as error:  # noqa: BLE001 (whatever it is, the worker lives on and the server tells it)
            return ("failed", order.job, _failure(error), b"")
        outputs = {node: text for node, value in result.outputs.items() if (text := _text(value))}
        told = {"interrupted": result.interrupted, "step": result.step, "outputs": outputs}
        return ("done", order.job, told, b"")

    def run(self, order: Order, teller: Teller) -> Result:
        graph = Graph.parse(order.graph, order.source).limited_to(*map(Path, order.folders))
        folder = Path(order.run_dir) if order.run_dir else None
        return run(
            graph,
            registry=self.registry,
            device=self.device,
            run_dir=folder,
            resume=folder is not None and RunFolder(folder).record.is_file(),
            only=order.only,
            sinks=[teller],
            stop=lambda: order.job in self.stopped or self.leaving.is_set(),
            cache=self.cache,
        )


def _failure(error: Exception) -> dict[str, Any]:
    faults = [asdict(f) for f in error.faults] if isinstance(error, PipelineError) else []
    cause = error.__cause__ or error
    return {
        "text": str(error) or type(error).__name__,
        "type": type(cause).__name__,
        "faults": faults,
        "traceback": traceback.format_exception(error),
    }


def _text(value: Any) -> str:
    """What an output node returned, where a person can read it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, dict) and all(isinstance(v, (str, int, float)) for v in value.values()):
        return "\n".join(f"{name} {_text(v)}" for name, v in value.items())
    return ""


def devices() -> list[dict[str, Any]]:
    """What torch can compute on, as ComfyUI tells it."""
    found = []
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        found.append({"name": torch.cuda.get_device_name(n), "type": "cuda", "index": n} | _memory(total, free))
    return found or [{"name": "cpu", "type": "cpu", "index": None} | _memory(0, 0)]


def _memory(total: int, free: int) -> dict[str, int]:
    return {"vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free}


def work(connection: Connection, packs: tuple[str, ...], device: str, runs: str, crash_file: str) -> None:
    """The process: Ctrl-C is the server's to handle; where a crash ends it, its traceback is in ``crash_file``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Path(crash_file).open("w") as file:
        faulthandler.enable(file)
        worker = Worker(connection, load_packs(packs), device, Path(runs))
        signal.signal(signal.SIGTERM, lambda *_: worker.leave())
        connection.send(("ready", "", {"devices": devices()}, b""))
        worker.serve()
        faulthandler.disable()
