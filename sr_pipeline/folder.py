"""A run's folder: the graph as run, its seed and versions, events, metrics, checkpoints, and what the nodes write."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from sr_pipeline.errors import RunFolderError, UsageError
from sr_pipeline.files import remove_parts, written_beside
from sr_pipeline.graph import Graph
from sr_pipeline.launch import launch_id, processes

PACKAGES = ("sr-pipeline", "torchvision", "numpy", "pillow", "safetensors")
"""Beside torch, whose own word names its build too: what a run's bits come from."""

_TIME = r"-\d{8}-\d{6}(-\d+)?"
"""After a graph's name, in that of a run's folder."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's folder."""

    path: Path

    @property
    def graph(self) -> Path:
        return self.path / "graph.json"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"


@dataclass(frozen=True)
class Settings:
    """The arguments of ``run`` with which a graph is run again; ``auto`` as what was chosen."""

    seed: int
    device: str
    precision: str
    memory_format: str
    deterministic: bool
    threads: int
    steps: int | None
    only: str | tuple[str, ...] | None
    checkpoint_every: int | None
    best: str | None
    on_nan: str
    tensorboard: bool
    capture: str = "off"


@dataclass(frozen=True)
class Record:
    """What run.json says: with the graph beside it, what is needed to repeat the run."""

    settings: Settings
    folders: tuple[str, ...] | None
    """Those that the graph may read, where it is from elsewhere."""
    python: str
    machine: str
    versions: dict[str, str]
    started_in: str | None = None
    """Not told by early records, nor is the next."""
    launch: str | None = None
    """The job of torchrun that began it."""
    processes: int = 1
    """How many shared it."""


def record_of(settings: Settings, graph: Graph) -> Record:
    folders = None if graph.folders is None else tuple(map(str, graph.folders))
    system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    return Record(settings, folders, *system, _versions(), str(Path.cwd()), launch_id(), processes())


def recorded_graph(folder: RunFolder) -> Graph:
    """The graph of a run, which may read what it might then.

    Raises:
        GraphError: it is damaged.
        UsageError: run.json is.
    """
    graph, folders = Graph.load(folder.graph), read_record(folder).folders
    return graph if folders is None else replace(graph, folders=tuple(map(Path, folders)))


def differences(record: Record) -> list[str]:
    """What is not as it was in a run, so that its bits may not be the same."""
    now = {"python": platform.python_version(), **_versions()}
    then = {"python": record.python, **record.versions}
    found = [
        f"{n} was {then.get(n, 'absent')} and is {now.get(n, 'absent')}"
        for n in ("python", "torch", *PACKAGES)
        if then.get(n) != now.get(n)
    ]
    machine = f"{platform.system()} {platform.machine()}"
    found += [f"the machine was {record.machine} and is {machine}"] if record.machine != machine else []
    if record.processes != processes():
        found.append(f"{record.processes} processes shared it, and now it is {processes()}; --nproc says how many")
    started = f"it was started in {record.started_in}, which its relative paths are of"
    return [*found, *([started] if record.started_in not in (None, str(Path.cwd())) else [])]


def _versions() -> dict[str, str]:
    import torch

    found = {"torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def new_folder(path: Path | None, graph: Graph) -> RunFolder:
    """A folder for a new run: the given one, or ``runs/<graph>-<time>``.

    Raises:
        UsageError: it holds a run already, or cannot be made.
    """
    if path is not None:
        _refuse_used(RunFolder(path))
        if path == Path() and any(path.iterdir()):  # as an empty variable of a shell gives
            raise UsageError(f"--run-dir {path}", "is this folder, which holds other files", "give one of its own")
    try:
        if path is None:
            path = _made(Path("runs") / f"{_stem(graph)}-{datetime.now():%Y%m%d-%H%M%S}")
        else:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = f"--run-dir {path or 'runs'}"
        raise UsageError(where, f"cannot be made: {error.strerror}", "give another folder") from None
    return RunFolder(path)


def _made(path: Path) -> Path:
    """A folder that this call made: runs that begin in one second have names with numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for n in count(1):
        numbered = path if n == 1 else path.with_name(f"{path.name}-{n}")
        with suppress(FileExistsError):
            numbered.mkdir()
            return numbered
    raise AssertionError


def _stem(graph: Graph) -> str:
    """The graph's name; of one in a run's folder that of the run, without its time."""
    path = Path(graph.source)
    if path.name != "graph.json" or not RunFolder(path.parent).record.is_file():
        return path.stem
    return re.sub(f"{_TIME}$", "", path.parent.name) or path.stem


def _refuse_used(folder: RunFolder) -> None:
    if folder.record.exists():
        fix = "give another folder, or --resume to go on with it"
        raise UsageError(f"--run-dir {folder.path}", "holds a run already", fix)


@contextmanager
def locked(folder: RunFolder, new: bool) -> Iterator[None]:
    """Keep a folder to one run. The lock is the system's, so a process that is killed leaves none.

    Raises:
        UsageError: another run is in it, or, for a new run, has been.
    """
    lock = FileLock(folder.lock, timeout=0)
    where = f"--run-dir {folder.path}"
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(where, "another run is in it", "wait for its end, or give another folder") from None
    except OSError as error:
        raise UsageError(where, f"cannot be written: {error.strerror}", "give another folder") from None
    try:
        if new:
            _refuse_used(folder)
        remove_parts(folder.path)
        remove_parts(folder.checkpoints)
        yield
    finally:
        lock.release()


def find_folder(path: Path | None, graph: Graph) -> RunFolder:
    """The folder of the run to resume: the given one, or the newest of this graph under ``runs/``.

    Raises:
        UsageError: there is none.
    """
    stem = Path(graph.source).stem
    of_graph = (p for p in Path("runs").glob("*") if re.fullmatch(re.escape(stem) + _TIME, p.name))
    known = sorted(of_graph, key=lambda p: p.stat().st_mtime) if path is None else [path]
    for candidate in reversed(known):
        if RunFolder(candidate).record.is_file():
            return RunFolder(candidate)
    where = f"--run-dir {path}" if path else f"--resume: runs/{stem}-*"
    raise UsageError(where, "there is no run to resume", "give the folder of a run, or run without --resume")


def write_record(folder: RunFolder, graph: Graph, record: Record) -> None:
    """Write graph.json, then run.json, each whole or not at all.

    Raises:
        RunFolderError: the disk is full, for one.
    """
    try:
        with written_beside(folder.graph) as beside:
            graph.save(beside)
        with written_beside(folder.record) as beside:
            beside.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(str(folder.path), f"cannot be written: {error.strerror}", "make room") from error


def read_record(folder: RunFolder) -> Record:
    """The content of run.json.

    Raises:
        UsageError: it is damaged.
    """
    try:
        return TypeAdapter(Record).validate_json(folder.record.read_bytes(), strict=True)
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split())[:300]
        raise UsageError(str(folder.record), f"cannot be read: {what}", "start a new run") from None
