"""A run's folder: the graph as run, its seed and versions, events, metrics, checkpoints, and what the nodes write."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sr_pipeline.checkpoint import latest
from sr_pipeline.errors import UsageError
from sr_pipeline.graph import Graph

PACKAGES = ("sr-pipeline", "torch", "torchvision", "numpy", "pillow", "safetensors", "networkx", "pydantic")


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


@dataclass(frozen=True)
class Record:
    """What run.json says: with the graph beside it, what is needed to repeat the run."""

    seed: int
    device: str
    threads: int
    python: str
    machine: str
    versions: dict[str, str]


def record_of(seed: int, device: str, threads: int) -> Record:
    return Record(seed, device, threads, platform.python_version(), platform.machine(), _versions())


def _versions() -> dict[str, str]:
    found = {}
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
    if path is None:
        stem = f"{Path(graph.source).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, 1000))
        path = next(p for p in (Path("runs") / name for name in names) if not p.exists())
    folder = RunFolder(path)
    if folder.record.exists():
        if latest(folder.checkpoints) is None:
            raise UsageError(f"--run-dir {path}", "holds a run that saved no state", "remove it or give another folder")
        raise UsageError(
            f"--run-dir {path}", "holds a run already", "give another folder, or --resume to go on with it"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--run-dir {path}", f"cannot be made: {error.strerror}", "give another folder") from None
    return folder


def find_folder(path: Path | None, graph: Graph) -> RunFolder:
    """The folder of the run to resume: the given one, or the newest of this graph under ``runs/``.

    Raises:
        UsageError: there is none with a checkpoint.
    """
    stem = Path(graph.source).stem
    known = sorted(Path("runs").glob(f"{stem}-[0-9]*"), key=lambda p: p.stat().st_mtime) if path is None else [path]
    for candidate in reversed(known):
        if latest(candidate / "checkpoints") is not None and (candidate / "run.json").is_file():
            return RunFolder(candidate)
    where = f"--run-dir {path}" if path else f"--resume: runs/{stem}-*"
    raise UsageError(
        where, "there is no checkpoint to resume from", "give the folder of a run, or run without --resume"
    )


def write_record(folder: RunFolder, graph: Graph, record: Record) -> None:
    graph.save(folder.graph)
    folder.record.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def read_record(folder: RunFolder) -> Record:
    """The content of run.json.

    Raises:
        UsageError: it is damaged.
    """
    try:
        return Record(**json.loads(folder.record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(str(folder.record), f"cannot be read: {error}", "start a new run") from None
