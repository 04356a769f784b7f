"""A job of pictures to enlarge: read ahead, computed, and written behind, whatever becomes of one of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Semaphore
from typing import Annotated, Any, Literal

from sr_nodes.picture_encoding import check_holds, encode, fitted
from sr_nodes.picture_files import KINDS, PIPE, Picture, read_whole
from sr_nodes.picture_jobs import Format, Place, places, refusal, remove_stale, write_bytes
from sr_nodes.types import Generator
from sr_nodes.upscale import (
    Batch,
    Megapixels,
    Overlap,
    Quality,
    Tile,
    load_picture,
    prompt_of,
    run_graph,
    save_picture,
    upscale_picture,
    warn,
)
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Report, Reporter, RunDir, Socket, Start

AHEAD = 2
"""Pictures read before they are wanted."""
WRITERS = min(4, os.cpu_count() or 1)
"""Threads that encode and write: a PNG takes longer to compress than a fast device takes to compute it."""
# What a file can do wrong; a lack of memory is a RuntimeError of torch's.
_FAILURES = (ValueError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: ``error`` is empty where all went well."""

    source: str
    target: str
    status: Literal["upscaled", "skipped", "failed"]
    error: str = ""


PendingOutcome = Annotated[Future[Outcome], Socket("Outcome")]
"""What is becoming of a picture: its result is still being written while the next is computed."""


class Writer:
    """Threads that write results; who gives them one more than there are threads waits, so that few are in memory."""

    def __init__(self) -> None:
        self._pool, self._room = ThreadPoolExecutor(WRITERS), Semaphore(WRITERS)

    def __call__(self, write: Callable[[], Outcome]) -> Future[Outcome]:
        self._room.acquire()
        future = self._pool.submit(write)
        future.add_done_callback(lambda _: self._room.release())
        return future


@dataclass(frozen=True)
class Job:
    """One picture of a job, being read; or what is known to have become of it already."""

    place: Place
    picture: Future[Picture] | None
    writer: Writer
    known: Outcome | None = None
    format: Format = "same"
    max_megapixels: int = 150

    def outcome(self, status: Literal["upscaled", "skipped", "failed"], error: str = "") -> Outcome:
        return Outcome(str(self.place.source), str(self.place.target), status, error)


@node(category="images")
def picture_files(
    inputs: tuple[str, ...],
    output: str | None = None,
    format: Format = "same",
    suffix: str = "",
    overwrite: bool = False,
    max_megapixels: Megapixels = 150,
    start: Start = 0,
    run_dir: RunDir | None = None,
    report: Report = SILENT,
) -> Iterator[Job]:
    """A stream of picture files to enlarge, read ahead by a thread while others are computed.

    A picture whose result is there already is passed over, so that a job that was stopped or killed goes on where it
    was. Temporary files that a killed one left in the output are removed first.

    Args:
        inputs: files, folders (with the folders in them), patterns such as photos/*.jpg, or - for standard input.
        output: a folder, in which the structure of the inputs is kept; for one file also a file, or - for standard
            output. Null is the folder upscaled in the run's folder.
        format: of the results; same is by the output's name if it is a file, else as each source, or PNG where that
            cannot be written.
        suffix: put to each name before its ending: _x4 makes cat_x4.png of cat.png.
        overwrite: make results anew that are there, and let a result take the place of its source.
        max_megapixels: refuse larger pictures, lest a small file fill the memory.

    Raises:
        ValueError: a text is empty, a folder or pattern holds no picture, or the output cannot take so many or is of
            another format.
    """
    found = places(inputs, str((run_dir or Path()) / "upscaled") if output is None else output, format, suffix)
    sources = {place.source.resolve() for place in found}
    _remove_stale(found, output)
    taken: dict[Path, Path] = {}
    # The writer's threads end with its last job: this generator is exhausted before the last picture is computed.
    write, ahead = Writer(), deque[Job]()
    with ThreadPoolExecutor(1) as reader:
        for number, place in enumerate(found):
            if number >= start:
                job = Job(place, None, write, format=format, max_megapixels=max_megapixels)
                ahead.append(_begun(job, sources, taken, overwrite, reader))
            taken.setdefault(place.target.resolve(), place.source)
            while len(ahead) > (AHEAD if number + 1 < len(found) else 0):
                report.progress(number + 2 - len(ahead), len(found))
                yield ahead.popleft()


def _remove_stale(found: list[Place], output: str | None) -> None:
    if output and Path(output).is_dir():
        remove_stale(Path(output), recursive=True)
    for folder in {place.target.parent for place in found[:1] if place.target != PIPE and place.target.parent.is_dir()}:
        remove_stale(folder, recursive=False)


def _begun(
    job: Job, sources: Collection[Path], taken: dict[Path, Path], overwrite: bool, reader: ThreadPoolExecutor
) -> Job:
    place = job.place
    try:
        if reason := refusal(place, sources, taken, overwrite):
            return replace(job, known=job.outcome("failed", reason))
        if place.target != PIPE and place.target.exists() and not overwrite:
            return replace(job, known=job.outcome("skipped"))
    except OSError as error:  # a name that is too long, a folder that cannot be made
        return replace(job, known=job.outcome("failed", f"{place.target}: {error.strerror}"))
    return replace(job, picture=reader.submit(read_whole, place.source, job.max_megapixels))


@node(category="images")
def upscale_file(
    generator: Generator,
    job: Job,
    tile: Tile = "auto",
    overlap: Overlap = "exact",
    batch: Batch = 0,
    quality: Quality = None,
    metadata: bool = True,
    run_dir: RunDir | None = None,
    report: Report = SILENT,
) -> PendingOutcome:
    """Enlarge one picture of a job, as ``upscale_picture``, and write the result by a thread, as ``save_picture``.

    A result is written beside its place and renamed: there is never half of one. What goes wrong with a picture is its
    outcome, and no error. JPEG is of quality 95 and 4:4:4, WebP 95, AVIF 85, PNG of level 6, TIFF of deflate.

    Args:
        generator: the network.
        job: the picture, from picture_files.
        tile: side of a tile's core, in pixels of the picture; auto is by the free memory, null is the whole picture.
        overlap: pixels around a tile that the network is shown too; exact is as many as can matter.
        batch: tiles at once; 0 is one on a CPU, and on a GPU as many as keep it busy and fit into the free memory.
        quality: of JPEG, WebP and AVIF.
        metadata: false leaves out the graph and EXIF; the profile and the resolution stay, because they are its look.
    """
    name = str(job.place.source)
    if job.picture is None:
        return _settled(job.known or job.outcome("skipped"))
    try:
        picture = job.picture.result()
        kind = _kind(job, picture)
        check_holds(kind, *(generator.scale * side for side in picture.size))
        large = upscale_picture(generator, picture, tile, overlap, batch, report)
        fit = fitted(large, kind)
    except _FAILURES as error:
        return _settled(job.outcome("failed", _reason(error, name)))
    warn(fit, name, report)
    graph = _graph_of_one(job, {"tile": tile, "overlap": overlap, "batch": batch}, run_graph(run_dir))

    def write() -> Outcome:
        try:
            write_bytes(job.place.target, encode(fit, kind, quality, metadata, prompt_of(graph)))
        except _FAILURES as error:
            return job.outcome("failed", _reason(error, name))
        return job.outcome("upscaled")

    return job.writer(write)


def _kind(job: Job, picture: Picture) -> str:
    """Of the result: by its name, or for a pipe by the format that is wanted, or as the source."""
    ending = job.place.target.suffix.lower() or f".{job.format}"
    return KINDS.get(ending, picture.kind if picture.kind in KINDS.values() else "PNG")


def _settled(outcome: Outcome) -> Future[Outcome]:
    future = Future[Outcome]()
    future.set_result(outcome)
    return future


def _reason(error: Exception, name: str) -> str:
    return str(error).removeprefix(f"{name}: ") or type(error).__name__


def _graph_of_one(job: Job, settings: dict[str, Any], run: Graph | None) -> Graph | None:
    """A graph that enlarges this picture alone, with the run's generator: what its PNG carries."""
    if run is None or job.place.source == PIPE:  # what came by a pipe cannot be read again
        return None
    links = [e.inputs.get("generator") for e in run.nodes.values() if e.class_type == upscale_file.__name__]
    if len(links) != 1 or not isinstance(links[0], Link):
        return None  # it cannot be told which of several was at work
    graph = Graph()
    graph.add(load_picture, id="photo", path=str(job.place.source), max_megapixels=job.max_megapixels)
    wanted = [links[0].node]
    for id_ in wanted:
        graph.nodes[id_] = run.nodes[id_]
        wanted += [v.node for v in run.nodes[id_].inputs.values() if isinstance(v, Link) and v.node not in wanted]
    graph.add(upscale_picture, id="sr", generator=links[0], picture=Link("photo"), **settings)
    graph.add(
        save_picture,
        id="save",
        picture=Link("sr"),
        filename=job.place.target.name if job.place.target != PIPE else "upscaled.png",
    )
    return graph


Summary = Annotated[dict[str, Any], Socket("Summary")]
"""``{"upscaled": [...], "skipped": [...], "failed": [{"source": ..., "error": ...}]}``."""


@node(category="images", output=True)
class Outcomes:
    """Gather what became of each picture of a job; one that failed is warned of as soon as it is known.

    Args:
        outcome: of one picture, from upscale_file.
    """

    def __init__(self) -> None:
        self._done: list[Outcome] = []
        self._pending: deque[Future[Outcome]] = deque()

    def __call__(self, outcome: PendingOutcome, report: Report = SILENT) -> None:
        self._pending.append(outcome)
        while self._pending and self._pending[0].done():
            self._take(report)

    def _take(self, report: Reporter) -> None:
        outcome = self._pending.popleft().result()
        self._done.append(outcome)
        if outcome.error:
            report.warning(f"{outcome.source}: {outcome.error}")

    def result(self) -> Summary:
        self._wait()
        by = {s: [o for o in self._done if o.status == s] for s in ("upscaled", "skipped", "failed")}
        return {
            "upscaled": [{"source": o.source, "target": o.target} for o in by["upscaled"]],
            "skipped": [{"source": o.source, "target": o.target} for o in by["skipped"]],
            "failed": [{"source": o.source, "error": o.error} for o in by["failed"]],
        }

    def _wait(self) -> None:
        while self._pending:
            self._take(SILENT)

    def state_dict(self) -> dict[str, Any]:
        self._wait()
        return {"done": [[o.source, o.target, o.status, o.error] for o in self._done]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = [Outcome(*row) for row in state["done"]]
        self._pending.clear()


@node(category="images", output=True)
def upscale_summary(outcomes: Summary) -> str:
    """What became of the pictures of a job, in words: how many, and each that failed with its reason.

    Args:
        outcomes: of all pictures, from the node outcomes.
    """
    upscaled, skipped, failed = (outcomes[status] for status in ("upscaled", "skipped", "failed"))
    parts = [f"{len(upscaled)} upscaled"]
    if skipped:
        parts.append(f"{len(skipped)} there already (--overwrite makes them anew)")
    if failed:
        parts.append(f"{len(failed)} failed:")
    return "\n".join([", ".join(parts), *(f"  {f['source']}: {f['error']}" for f in failed)])
