"""A job of pictures to enlarge: read ahead, computed, and written behind, whatever becomes of one of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Semaphore
from typing import Any

from sr_nodes.assets import graphs
from sr_nodes.picture_encoding import check_holds, encode, fitted
from sr_nodes.picture_files import PIPE, WRITTEN, Picture, read_whole
from sr_nodes.picture_jobs import Format, Place, places, refusal, share_of, shared_out, write_bytes
from sr_nodes.png import prompt_of, run_graph
from sr_nodes.types import Generator
from sr_nodes.upscale import (
    Batch,
    Megapixels,
    Overlap,
    Quality,
    Tile,
    upscale_picture,
    warn,
)
from sr_nodes.upscale_outcomes import Outcome, PendingOutcome, Status
from sr_pipeline.files import remove_stale
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, InputPath, OutputPath, Report, RunDir, Start

AHEAD = 2
"""Pictures read before they are wanted."""
WRITERS = min(4, os.cpu_count() or 1)
"""Threads that encode and write: a PNG takes longer to compress than a fast device takes to compute it."""
# What a file can do wrong; a lack of memory is a RuntimeError of torch's.
_FAILURES = (ValueError, OSError, MemoryError, RuntimeError)


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

    def outcome(self, status: Status, error: str = "") -> Outcome:
        return Outcome(str(self.place.source), str(self.place.target), status, error)


@node(category="images")
def picture_files(
    inputs: tuple[InputPath, ...],
    output: OutputPath | None = None,
    format: Format = "same",
    suffix: str = "",
    overwrite: bool = False,
    max_megapixels: Megapixels = 150,
    share: str | None = None,
    start: Start = 0,
    run_dir: RunDir | None = None,
    report: Report = SILENT,
) -> Iterator[Job]:
    """A stream of picture files to enlarge, read ahead by a thread while others are computed.

    A picture whose result is there already is passed over, so that a job that was stopped or killed goes on where it
    was; and so are files of a folder that are no pictures by their suffix. Temporary files that a killed job left in
    the output are removed first.

    Several processes, on this machine or on others with the same folders, can share a job: each is told its share, and
    they need not talk. Every file is in one share, by its place in the sorted list alone; a share that was killed is
    done by the same call again.

    Args:
        inputs: files, folders (with the folders in them), patterns such as photos/*.jpg, or - for standard input.
        output: a folder, in which the structure of the inputs is kept; for one file also a file, or - for standard
            output. Null is the folder upscaled in the run's folder.
        format: of the results; same is by the output's name if it is a file, else as each source, or PNG where that
            cannot be written.
        suffix: put to each name before its ending: _x4 makes cat_x4.png of cat.png.
        overwrite: make results anew that are there, and let a result take the place of its source.
        max_megapixels: refuse larger pictures, lest a small file fill the memory.
        share: K/N takes the K-th of N shares of the files. Null is the share of this process where torchrun (RANK,
            WORLD_SIZE) or srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS) started several, and all files elsewhere.

    Raises:
        ValueError: a text is empty, a folder or pattern holds no picture, the output cannot take so many, is of
            another format, or has a suffix that is no picture's, or the share is none.
    """
    number, shares = share_of(share, os.environ)
    found = places(inputs, str((run_dir or Path()) / "upscaled") if output is None else output, format, suffix)
    sources = {place.source.resolve() for place in found if place.is_picture}
    _remove_stale(found)
    own = shared_out(found, number, shares)
    wanted = set(own[start:])
    taken: dict[Path, Path] = {}
    # The writer's threads end with its last job: this generator is exhausted before the last picture is computed.
    write, ahead, done = Writer(), deque[Job](), min(start, len(own))
    with ThreadPoolExecutor(1) as reader:
        for position, place in enumerate(found):
            if position in wanted:
                job = Job(place, None, write, format=format, max_megapixels=max_megapixels)
                ahead.append(_begun(job, sources, taken, overwrite, reader))
            if place.is_picture:  # of any share: two results of one name are refused in each
                taken.setdefault(place.target.resolve(), place.source)
            while len(ahead) > (AHEAD if position + 1 < len(found) else 0):
                done += 1
                report.progress(done, len(own))
                yield ahead.popleft()


def _remove_stale(found: list[Place]) -> None:
    for folder in {place.target.parent for place in found if place.target != PIPE}:
        remove_stale(folder)


def _begun(
    job: Job, sources: Collection[Path], taken: dict[Path, Path], overwrite: bool, reader: ThreadPoolExecutor
) -> Job:
    place = job.place
    if not place.is_picture:
        return replace(job, known=job.outcome("no picture"))
    try:
        if reason := refusal(place, sources, taken, overwrite):
            return replace(job, known=job.outcome("failed", reason))
        there = place.source == PIPE or place.source.exists()  # a name mistyped is told, and not passed over
        if there and place.target != PIPE and place.target.exists() and not overwrite:
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
    outcome, and no error. JPEG is of quality 95 and 4:4:4, WebP 95, AVIF 85, PNG of level 6, TIFF of deflate,
    or not compressed where it has EXIF or XMP.

    Args:
        generator: the network.
        job: the picture, from picture_files.
        tile: side of a tile's core, in pixels of the picture; auto is by the free memory, null is the whole picture.
        overlap: pixels around a tile that the network is shown too; exact is as many as can matter.
        batch: tiles at once; 0 is one on a CPU, and on a GPU as many as keep it busy and fit into the free memory.
        quality: of JPEG, WebP and AVIF.
        metadata: false leaves out the graph, EXIF and XMP; profile and resolution stay, because they are its look.
    """
    name = str(job.place.source)
    if job.picture is None:
        return _settled(job.known or job.outcome("skipped"))
    try:
        picture = job.picture.result()
        kind = _kind(job, picture)
        check_holds(kind, *(generator.scale * side for side in picture.size))
        fit = fitted(upscale_picture(generator, picture, tile, overlap, batch, report), kind)
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
    return WRITTEN.get(ending, picture.kind if picture.kind in WRITTEN.values() else "PNG")


def _settled(outcome: Outcome) -> Future[Outcome]:
    future = Future[Outcome]()
    future.set_result(outcome)
    return future


def _reason(error: Exception, name: str) -> str:
    return str(error).removeprefix(f"{name}: ") or type(error).__name__


def _graph_of_one(job: Job, settings: dict[str, Any], run: Graph | None) -> Graph | None:
    """graphs/upscale.json with this picture, these settings and the run's generator: what its PNG carries."""
    if run is None or job.place.source == PIPE:  # what came by a pipe cannot be read again
        return None
    links = [e.inputs.get("generator") for e in run.nodes.values() if e.class_type == upscale_file.__name__]
    if len(links) != 1 or not isinstance(links[0], Link):
        return None  # it cannot be told which of several was at work
    wanted = [links[0].node]
    for id_ in wanted:
        wanted += [v.node for v in run.nodes[id_].inputs.values() if isinstance(v, Link) and v.node not in wanted]
    one = Graph.load(graphs() / "upscale.json").nodes
    if not one.keys().isdisjoint({*wanted} - {"generator"}):
        return None  # two nodes would have one name
    one["photo"].inputs |= {"path": str(job.place.source), "max_megapixels": job.max_megapixels}
    one["sr"].inputs |= {"generator": links[0], **settings}
    one["save"].inputs |= {} if job.place.target == PIPE else {"filename": job.place.target.name}
    generator = {id_: run.nodes[id_] for id_ in wanted}
    return Graph({"photo": one["photo"], **generator, "sr": one["sr"], "save": one["save"]})
