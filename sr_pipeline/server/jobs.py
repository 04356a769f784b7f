"""The queue of runs and what became of them; it is kept in a file, so that what was stopped can be gone on with."""

from __future__ import annotations

import json
import logging
import time
from bisect import insort
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sr_pipeline.errors import GraphError
from sr_pipeline.files import written_beside
from sr_pipeline.folder import RunFolder
from sr_pipeline.graph import Graph
from sr_pipeline.server.live import Live

Status = Literal["pending", "in_progress", "completed", "failed", "cancelled"]
MAX_HISTORY = 200
MAX_PENDING = 1000


@dataclass
class Job:
    """One run, from its posting to its end."""

    id: str
    number: float
    prompt: dict[str, Any]
    extra: dict[str, Any]
    graph: Graph
    names: dict[str, str]
    """Ids of the graph to the client's."""
    outputs: list[str]
    """The client's ids of the nodes that it runs for."""
    stepping: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    """Ours of the nodes to run up to; none for all outputs."""
    run_dir: Path | None = None
    status: Status = "pending"
    created: float = field(default_factory=lambda: time.time() * 1000)
    started: float | None = None
    ended: float | None = None
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    live: Live | None = None
    _text: tuple[Any, str] = field(default=(None, ""), init=False, repr=False, compare=False)

    def __lt__(self, other: Job) -> bool:
        return self.number < other.number

    @property
    def row(self) -> list[Any]:
        """As ComfyUI's queue lists it."""
        return [self.number, self.id, self.prompt, self.extra, self.outputs]

    @property
    def entry(self) -> dict[str, Any]:
        """As ComfyUI's history has it."""
        status = {
            "status_str": "success" if self.status == "completed" else "error",
            "completed": self.status == "completed",
            "messages": self.messages,
        }
        meta = {node: {"node_id": node, "display_node": node, "real_node_id": node} for node in self.shown}
        return {"prompt": self.row, "outputs": self.shown, "status": status, "meta": meta}

    @property
    def summary(self) -> dict[str, Any]:
        """As ComfyUI's list of jobs has it."""
        images = [image for output in self.shown.values() for image in output.get("images", ())]
        return {
            "id": self.id,
            "status": self.status,
            "create_time": self.created,
            "execution_start_time": self.started,
            "execution_end_time": self.ended,
            "outputs_count": len(images),
            "preview_output": self._preview(),
            "priority": self.number,
            "execution_error": self.error,
        }

    def _preview(self) -> dict[str, Any] | None:
        for node, output in self.shown.items():
            if output.get("images"):
                return {**output["images"][-1], "nodeId": node, "mediaType": "images"}
        return None

    @property
    def resumable(self) -> bool:
        """Whether it began and did not end; it goes on from its newest checkpoint, or from the start where there is
        none yet."""
        return self.status in ("failed", "cancelled") and _began(self.run_dir)

    @property
    def text(self) -> str:
        """As the queue's file has it; written anew only where it has changed."""
        changing = self.number, self.run_dir
        if self._text[0] != changing:
            self._text = changing, json.dumps(_kept(self), allow_nan=False)
        return self._text[1]


def _began(run_dir: Path | None) -> bool:
    return run_dir is not None and RunFolder(run_dir).record.is_file()


Saved = list[tuple[str, bool, Path | None]]
"""Of each job its text, whether it has ended, and its run's folder."""


class Jobs:
    """What waits, what runs, and what is over, newest last."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.pending: list[Job] = []
        self.running: Job | None = None
        self.history: dict[str, Job] = {}
        self.count = 0
        self._writer = ThreadPoolExecutor(1, "queue's file")
        self._newest: Saved = []
        self._written: Saved | None = None
        self._writing: Future[None] | None = None

    def __iter__(self) -> Iterator[Job]:
        yield from self.history.values()
        yield from [self.running] if self.running else []
        yield from self.pending

    def get(self, id_: str) -> Job | None:
        return next((job for job in self if job.id == id_), None)

    @property
    def stopped(self) -> list[Job]:
        """What can be gone on with."""
        return [job for job in self.history.values() if job.resumable]

    @property
    def remaining(self) -> int:
        return len(self.pending) + (self.running is not None)

    def next_number(self, front: bool = False) -> float:
        self.count += 1
        return -self.count if front else self.count

    def add(self, job: Job) -> None:
        insort(self.pending, job)
        self.save()

    def take(self) -> Job | None:
        """The first that waits, now running."""
        if self.running is not None or not self.pending:
            return None
        self.running = self.pending.pop(0)
        self.running.status, self.running.started = "in_progress", time.time() * 1000
        self.save()
        return self.running

    def end(self, job: Job, status: Status) -> None:
        job.status, job.ended, job.live = status, time.time() * 1000, None
        if self.running is job:
            self.running = None
        self.pending = [p for p in self.pending if p is not job]
        self.history[job.id] = job
        while len(self.history) > MAX_HISTORY:
            del self.history[next(iter(self.history))]
        self.save()

    def save(self) -> None:
        """Keep what has not ended, and what ended early and can be gone on with.

        A thread writes it, so that nobody waits; where it is slower than the changes, it writes the newest alone.
        """
        kept = [job for job in self if job.status != "completed"]
        self._newest = [(job.text, job.status in ("failed", "cancelled"), job.run_dir) for job in kept]
        self._writing = self._writer.submit(self._write)

    def _write(self) -> None:
        newest = self._newest
        if newest is self._written:
            return
        texts = [text for text, ended, run_dir in newest if not ended or _began(run_dir)]
        with suppress(OSError), written_beside(self.file, sync=False) as beside:  # a full disk stops no run
            beside.write_text(f"[{', '.join(texts)}]", encoding="utf-8")
        self._written = newest

    def flush(self) -> None:
        """Wait until all is in the file."""
        if self._writing is not None:
            self._writing.result()

    def load(self) -> None:
        """Take in what an earlier server left: stopped, to be gone on with when somebody asks."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return  # there was none, or it is damaged: the runs' folders themselves are whole
        for number, entry in enumerate(kept if isinstance(kept, list) else ()):
            try:
                job = _job(entry)
            except (GraphError, ValueError, TypeError, KeyError, AttributeError) as error:
                logging.getLogger(__name__).warning("%s: run %d is passed over: %s", self.file, number, error)
                continue
            self.history[job.id] = job
            self.count = max(self.count, int(abs(job.number)))


def _kept(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "number": job.number,
        "prompt": job.prompt,
        "extra": job.extra,
        "graph": job.graph.to_json(),
        "source": job.graph.source,
        "names": job.names,
        "outputs": job.outputs,
        "stepping": job.stepping,
        "only": job.only,
        "run_dir": str(job.run_dir) if job.run_dir else None,
        "created": job.created,
    }


def _job(entry: dict[str, Any]) -> Job:
    graph = Graph.parse(entry.pop("graph"), entry.pop("source"))
    run_dir, stepping, only = (entry.pop(key) for key in ("run_dir", "stepping", "only"))
    folder = Path(run_dir) if run_dir else None
    targets = (only,) if isinstance(only, str) else tuple(only or ())  # earlier servers kept one id, or null
    job = Job(graph=graph, run_dir=folder, stepping=tuple(stepping), only=targets, status="cancelled", **entry)
    job.ended = job.created
    if not (isinstance(job.id, str) and abs(job.number) < 1e9 and job.text):
        raise ValueError("its id or its number is none")
    return job
