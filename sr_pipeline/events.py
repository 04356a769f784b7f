"""What a run tells: typed events, and the channel that carries them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sr_pipeline.errors import RunFolderError
from sr_pipeline.sockets import Reporter
from sr_pipeline.world import ALONE, World


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
    mode: str = "fp32, contiguous"
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
    """The run failed; it can be resumed from the state after a step, if one was saved."""

    type: ClassVar[str] = "error"
    where: str
    text: str
    resume_from: int | None = None


@dataclass(frozen=True)
class Done(Event):
    """The run ended: all of it, or interrupted after ``step`` steps."""

    type: ClassVar[str] = "done"
    step: int
    interrupted: bool
    seconds: float


Sink = Callable[[Event], None]


@dataclass
class Channel:
    """Carries a run's events to its sinks, and its scalars in bundles: a tensor is read with those that wait with it,
    so that a device is not made to stop at each step."""

    sinks: Iterable[Sink]
    step: int = 0
    waiting: list[tuple[int, str, float | Tensor]] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)
    warned: set[str] = field(default_factory=set)
    world: World = ALONE
    """Where there are others, all flush together; the first process tells of them too, and has the only sinks."""
    warnings: list[Warned] = field(default_factory=list)
    """Of a process that is not the first: what it is to tell."""

    def emit(self, event: Event) -> None:
        """Tell all sinks.

        Raises:
            RunFolderError: a file could not be written; the other sinks were told.
        """
        if isinstance(event, Warned) and not self.world.alone:
            self.warnings.append(event)
        failed: RunFolderError | None = None
        for sink in self.sinks:
            try:
                sink(event)
            except RunFolderError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def holds(self, name: str) -> bool:
        """Whether a scalar of this name waits."""
        return any(waiting == name for _, waiting, _ in self.waiting)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Inside, nothing is told: the steps that run there were told before."""
        kept = self.sinks, self.waiting, self.warned.copy(), self.warnings
        self.sinks, self.waiting, self.warnings = (), [], []
        try:
            yield
        finally:
            self.sinks, self.waiting, self.warned, self.warnings = kept

    def scalar(self, name: str, value: float | Tensor) -> None:
        """Keep a scalar of the current step until the next flush, as it is now: its tensor may be changed in place."""
        kept = value.detach().reshape(()).clone() if isinstance(value, Tensor) else float(value)
        self.waiting.append((self.step, name, kept))
        if self.world.alone and self.due():
            self.flush()

    def due(self) -> bool:
        return len(self.waiting) >= 1000 or time.monotonic() - self.flushed > 0.5

    def flush(self) -> None:
        """Emit the scalars that wait, in the order of their coming; where several processes have one, their mean."""
        numbers = self._numbers()
        self.flushed = time.monotonic()
        if not self.world.alone:
            numbers = self._of_all(numbers)
        for (step, name), number in numbers:
            if not math.isfinite(number) and name not in self.warned:
                self.warned.add(name)
                self.emit(Warned(name, f"it is {number} at step {step}; look at what leads to it"))
            self.emit(Scalar(step, name, number))

    def _numbers(self) -> list[tuple[tuple[int, str], float]]:
        waiting, self.waiting = self.waiting, []
        tensors = [v for _, _, v in waiting if isinstance(v, Tensor)]
        read = {d: _read([v for v in tensors if v.device == d]) for d in {v.device for v in tensors}}
        return [((step, name), next(read[v.device]) if isinstance(v, Tensor) else v) for step, name, v in waiting]

    def _of_all(self, numbers: list[tuple[tuple[int, str], float]]) -> list[tuple[tuple[int, str], float]]:
        """Means over the processes, in the first one; which tells the warnings of the others that it has not told."""
        warnings, self.warnings = self.warnings, []
        found: dict[tuple[int, str], list[float]] = {}
        for rank, (theirs, warned) in enumerate(self.world.gather((numbers, warnings))):
            for key, number in theirs:
                found.setdefault(key, []).append(number)
            for warning in warned:
                if rank and warning not in warnings:
                    self.emit(Warned(f"process {rank + 1}: {warning.where}", warning.text))
        self.warnings.clear()
        return [(key, sum(values) / len(values)) for key, values in found.items()]


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
