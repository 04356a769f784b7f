"""Takes jobs from the queue to the worker, and what the worker says to the sockets and to history."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sr_pipeline.server.folders import Folders
from sr_pipeline.server.frames import message
from sr_pipeline.server.hub import Hub
from sr_pipeline.server.jobs import Job, Jobs, Status
from sr_pipeline.server.live import Live
from sr_pipeline.server.process import Told, WorkerProcess
from sr_pipeline.server.worker import Order, Stop

MAX_PREVIEW = 8 * 2**20
PATIENCE = 60.0
"""Seconds that a step and its saving may take when the server stops."""


class Dispatcher:
    """Owns the worker process; all of it but ``read`` runs in the event loop."""

    def __init__(self, jobs: Jobs, hub: Hub, folders: Folders, packs: tuple[str, ...], device: str) -> None:
        self.jobs, self.hub, self.folders, self.packs, self.device = jobs, hub, folders, packs, device
        self.worker: WorkerProcess | None = None
        self.devices: list[dict[str, Any]] = []
        self.stopping: set[str] = set()
        self.closing = False

    def start(self) -> None:
        self.worker = WorkerProcess(self.packs, self.device, self.folders.runs, self.read, self.heard, self.died)

    async def close(self) -> None:
        """What runs is saved, and stays in the queue's file as what ran."""
        self.closing = True
        if self.worker is not None:
            await self.worker.close(PATIENCE)

    def next(self) -> None:
        """Start the first job that waits, if none runs."""
        job = None if self.closing else self.jobs.take()
        if job is not None:
            if self.worker is None:
                self.start()
            if job.run_dir is None:
                job.run_dir = self._new_folder(job.graph.source)
                self.jobs.save()
            job.live = Live(job.id, job.names, job.stepping)
            for frame in job.live.start():
                self.hub.send(frame)
            job.messages.append(("execution_start", {"prompt_id": job.id, "timestamp": round(time.time() * 1000)}))
            self._tell(self._order(job))
        self.hub.send(self.status())

    def status(self) -> Any:
        return message("status", {"status": {"exec_info": {"queue_remaining": self.jobs.remaining}}}, "status")

    def _new_folder(self, name: str) -> Path:
        stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, 1000))
        return next(path for path in (self.folders.runs / name for name in names) if not path.exists())

    def _order(self, job: Job) -> Order:
        folders = tuple(map(str, self.folders.readable))
        return Order(job.id, job.graph.to_json(), job.graph.source, job.only, str(job.run_dir), folders)

    def _tell(self, told: Order | Stop | str) -> None:
        if self.worker is not None:
            self.worker.tell(told)

    def stop(self, job: Job) -> None:
        """End a job: one that waits at once, one that runs after its step; asked again, without its leave."""
        if job is not self.jobs.running:
            self.jobs.end(job, "cancelled")
            self.hub.send(self.status())
        elif job.id in self.stopping and self.worker is not None:
            self.worker.kill()
        else:
            self.stopping.add(job.id)
            self._tell(Stop(job.id))

    def free(self) -> None:
        """Let the worker forget the setup values that it keeps between runs."""
        self._tell("free")

    def read(self, told: Told) -> Told:
        """With a picture that was written, its bytes: read in the listener's thread, before what follows is heard."""
        kind, job, content, data = told
        if content.get("type") == "picture":
            data = _small(self.folders.runs / content["image"]["subfolder"] / content["image"]["filename"])
        return kind, job, content, data

    def heard(self, told: Told) -> None:
        kind, job_id, content, data = told
        if kind == "ready":
            self.devices = content["devices"]
            return
        job = self.jobs.running
        if job is None or job.id != job_id or job.live is None:
            return
        if kind == "done":
            self._done(job, content)
        elif kind == "failed":
            self._failed(job, content)
        elif content["type"] == "shown":
            self._send(job.live.show(content["node"], data))
        else:
            self._event(job, job.live, content, data)

    def _event(self, job: Job, live: Live, event: dict[str, Any], data: bytes) -> None:
        if event["type"] == "run_started":
            job.messages.append(("run_started", {"prompt_id": job.id, **event}))
        self._send(live.hear(event))
        if event["type"] == "cached":
            job.messages.append(("execution_cached", {"prompt_id": job.id, "nodes": live.cached}))
        if event["type"] == "picture" and data:
            self._send(live.show(event["node"], data))

    def _send(self, frames: Any) -> None:
        for frame in frames:
            self.hub.send(frame)

    def _done(self, job: Job, content: Mapping[str, Any]) -> None:
        assert job.live is not None
        for node, text in content["outputs"].items():
            self._send(job.live.hear({"type": "text", "node": node, "text": text}))
        job.shown = job.live.outputs()
        if content["interrupted"]:
            self._end(job, "cancelled", "execution_interrupted", {**_at(job), "executed": []})
        else:
            self._end(job, "completed", "execution_success", {})

    def _failed(self, job: Job, content: Mapping[str, Any]) -> None:
        assert job.live is not None
        job.shown = job.live.outputs()
        node = _node_of(job, content["faults"]) or job.live.current
        entry = job.graph.nodes.get(node or "")
        job.error = {
            "prompt_id": job.id,
            "node_id": job.names.get(node or "", ""),
            "node_type": entry.class_type if entry else "",
            "executed": [],
            "exception_message": content["text"],
            "exception_type": content["type"],
            "traceback": content["traceback"],
            "current_inputs": {k: [str(v)] for k, v in entry.inputs.items()} if entry else {},
            "current_outputs": [],
            "timestamp": round(time.time() * 1000),
        }
        self._end(job, "failed", "execution_error", job.error)

    def _end(self, job: Job, status: Status, kind: str, data: dict[str, Any]) -> None:
        """History first, then the announcement; the node that is null comes last, for old clients."""
        told = {"prompt_id": job.id, "timestamp": round(time.time() * 1000), **data}
        job.messages.append((kind, told))
        self.stopping.discard(job.id)
        if self.closing:
            return  # it stays in the queue's file as what ran
        self.jobs.end(job, status)
        for node, output in job.shown.items():
            self.hub.send(
                message("executed", {"node": node, "display_node": node, "output": output, "prompt_id": job.id})
            )
        self.hub.send(message(kind, told))
        self.hub.send(message("executing", {"node": None, "display_node": None, "prompt_id": job.id}))
        self.next()

    def died(self, why: str) -> None:
        """The worker is gone: its run failed, and a new one takes the next."""
        self.worker = None
        if self.closing:
            return
        job = self.jobs.running
        if job is None:
            return  # the next job starts one
        if job.id in self.stopping:
            self._end(job, "cancelled", "execution_interrupted", {**_at(job), "executed": []})
        else:
            lines = why.splitlines()
            self._failed(job, {"text": lines[0], "type": "WorkerDied", "traceback": lines, "faults": []})


def _at(job: Job) -> dict[str, Any]:
    node = job.live.current if job.live else None
    entry = job.graph.nodes.get(node or "")
    return {"node_id": job.names.get(node or "", ""), "node_type": entry.class_type if entry else ""}


def _node_of(job: Job, faults: list[dict[str, str]]) -> str | None:
    places = {job.graph.where(node): node for node in job.graph.nodes}
    return next((places[fault["where"]] for fault in faults if fault["where"] in places), None)


def _small(path: Path) -> bytes:
    """A picture that is not too large to be sent; of another, nothing."""
    try:
        return path.read_bytes() if path.suffix == ".png" and path.stat().st_size <= MAX_PREVIEW else b""
    except OSError:
        return b""
