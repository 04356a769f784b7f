"""What a run tells: typed events, and the sinks that keep them in files."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sr_pipeline.errors import UsageError
from sr_pipeline.files import written_beside
from sr_pipeline.sockets import Reporter


@dataclass(frozen=True)
class Event:
    """Something that happened; ``type`` names it in files."""

    type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Its fields, as JSON can say them: a number that is none in JSON is its name, "nan" or "inf"."""
        named = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return {"type": self.type, **named}


@dataclass(frozen=True)
class RunStarted(Event):
    type: ClassVar[str] = "run_started"
    graph: str
    run_dir: str
    seed: int
    device: str
    nodes: int
    world_size: int = 1


@dataclass(frozen=True)
class Resumed(Event):
    type: ClassVar[str] = "resumed"
    step: int


@dataclass(frozen=True)
class NodeStarted(Event):
    """A node of setup or finish begins; nodes of a step do not announce themselves."""

    type: ClassVar[str] = "node_started"
    node: str
    phase: str


@dataclass(frozen=True)
class NodeProgress(Event):
    type: ClassVar[str] = "node_progress"
    node: str
    done: int
    total: int


@dataclass(frozen=True)
class Progress(Event):
    """After a step: how many are done, of how many (None: endless), at how many a second."""

    type: ClassVar[str] = "progress"
    step: int
    total: int | None
    rate: float


@dataclass(frozen=True)
class Scalar(Event):
    type: ClassVar[str] = "scalar"
    step: int
    name: str
    value: float


@dataclass(frozen=True)
class ImageWritten(Event):
    type: ClassVar[str] = "image"
    step: int
    node: str
    path: str


@dataclass(frozen=True)
class Warned(Event):
    type: ClassVar[str] = "warning"
    where: str
    text: str


@dataclass(frozen=True)
class Saved(Event):
    type: ClassVar[str] = "saved"
    step: int
    path: str


@dataclass(frozen=True)
class Failed(Event):
    type: ClassVar[str] = "error"
    where: str
    text: str


@dataclass(frozen=True)
class Done(Event):
    """The run ended: all of it, or interrupted after ``step`` steps."""

    type: ClassVar[str] = "done"
    step: int
    interrupted: bool
    seconds: float


Sink = Callable[[Event], None]


class JsonLines:
    """All events but the ticking ones, a JSON object a line with its time."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        if not isinstance(event, (Progress, NodeProgress)):
            self.file.write(json.dumps({**event.to_dict(), "time": round(time.time(), 3)}) + "\n")
            self.file.flush()

    def close(self) -> None:
        self.file.close()


class MetricsCsv:
    """Scalars as rows ``step,name,value``.

    When the run says that it was resumed, rows of later steps are dropped, because it does those steps again; what it
    tells again of before (setup, or the end of a run that had ended) is there already, and is not written twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open(read_metrics(path))

    def _open(self, rows: list[tuple[int, str, float]]) -> None:
        with written_beside(self.path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("step", "name", "value"), *rows])
        self.known = {(step, name) for step, name, _ in rows}
        self.file = self.path.open("a", encoding="utf-8", newline="")
        self.writer = csv.writer(self.file)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Resumed):
            self.file.close()
            self._open([row for row in read_metrics(self.path) if row[0] <= event.step])
        elif isinstance(event, Scalar) and (event.step, event.name) not in self.known:
            self.writer.writerow((event.step, event.name, repr(event.value)))
            self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """The rows of a metrics.csv; none where there is no file. A row cut short by a kill has no line end: left out."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    next(rows, None)
    return [(int(step), name, float(value)) for step, name, value in rows]


class TensorBoard:
    """Scalars for TensorBoard (optional extra ``tensorboard``)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "--tensorboard", "the package tensorboard is missing", "pip install 'sr-pipeline[tensorboard]'"
            ) from None
        self.writer = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        if isinstance(event, Scalar):
            self.writer.add_scalar(event.name, event.value, event.step)

    def close(self) -> None:
        self.writer.close()


@dataclass
class Channel:
    """Carries a run's events to its sinks, and its scalars in bundles: a tensor is read with those that wait with it,
    so that a device is not made to stop at each step."""

    sinks: Iterable[Sink]
    step: int = 0
    waiting: list[tuple[int, str, float | Tensor]] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)
    warned: set[str] = field(default_factory=set)

    def emit(self, event: Event) -> None:
        for sink in self.sinks:
            sink(event)

    def scalar(self, name: str, value: float | Tensor) -> None:
        """Keep a scalar of the current step until the next flush, as it is now: its tensor may be changed in place."""
        kept = value.detach().reshape(()).clone() if isinstance(value, Tensor) else float(value)
        self.waiting.append((self.step, name, kept))
        if len(self.waiting) >= 1000 or time.monotonic() - self.flushed > 0.5:
            self.flush()

    def flush(self) -> None:
        """Emit the scalars that wait, in the order of their coming."""
        waiting, self.waiting = self.waiting, []
        self.flushed = time.monotonic()
        tensors = [v for _, _, v in waiting if isinstance(v, Tensor)]
        numbers = {d: _read([v for v in tensors if v.device == d]) for d in {v.device for v in tensors}}
        for step, name, value in waiting:
            number = next(numbers[value.device]) if isinstance(value, Tensor) else value
            if not math.isfinite(number) and name not in self.warned:
                self.warned.add(name)
                self.emit(Warned(name, f"it is {number} at step {step}; look at what leads to it"))
            self.emit(Scalar(step, name, number))


def _read(tensors: list[Tensor]) -> Iterator[float]:
    """The numbers of scalars on one device, fetched at once."""
    return iter(torch.stack([t.double() for t in tensors]).tolist())


class NodeReporter(Reporter):
    """What a node reports, as events under its id."""

    def __init__(self, channel: Channel, node: str) -> None:
        self.channel, self.node = channel, node

    def scalar(self, name: str, value: float | Tensor) -> None:
        self.channel.scalar(f"{self.node}/{name}" if name else self.node, value)

    def image(self, path: Path) -> None:
        self.channel.emit(ImageWritten(self.channel.step, self.node, str(path)))

    def warning(self, text: str) -> None:
        self.channel.emit(Warned(self.node, text))

    def progress(self, done: int, total: int) -> None:
        self.channel.emit(NodeProgress(self.node, done, total))
