"""Checkpoints written beside the training: one thread of its own, the newest kept, and the best by a metric."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sr_pipeline import checkpoint
from sr_pipeline.checkpoint import Snapshot
from sr_pipeline.errors import CheckpointError, UsageError
from sr_pipeline.events import Event, Scalar
from sr_pipeline.files import written_beside

KEEP = 3


@dataclass
class Best:
    """A sink that knows the step at which a metric was best. A number that is none is never best."""

    metric: str
    direction: Literal["max", "min"] = "max"
    step: int = -1
    value: float | None = None
    others: set[str] = field(default_factory=set, compare=False, repr=False)
    """What the metric's node reported beside it."""

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Scalar):
            return
        if event.name != self.metric and event.name.partition("/")[0] == self.metric.partition("/")[0]:
            self.others.add(event.name)
        if event.name == self.metric and self._better(event.value):
            self.step, self.value = event.step, event.value

    def _better(self, value: float) -> bool:
        if self.value is None:
            return value == value
        return value > self.value if self.direction == "max" else value < self.value

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "direction": self.direction, "step": self.step, "value": self.value}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what a checkpoint says, if it is of the same metric."""
        if state and (state["metric"], state["direction"]) == (self.metric, self.direction):
            self.step, self.value = state["step"], state["value"]


def best_of(text: str) -> Best:
    """What ``--best`` says: a metric as metrics.csv names it, and ``:max`` (the default) or ``:min``.

    >>> best_of("validate/psnr_y"), best_of("content_loss:min").direction
    (Best(metric='validate/psnr_y', direction='max', step=-1, value=None), 'min')

    Raises:
        UsageError: there is no name, or the direction is neither.
    """
    metric, _, direction = text.partition(":")
    if metric and direction == "min":
        return Best(metric, "min")
    if metric and direction in ("", "max"):
        return Best(metric)
    raise UsageError(f"--best {text}", "is no metric", "give NODE or NODE/NAME, then :max or :min")


class Saver:
    """Writes the checkpoints of one folder, one at a time, while the training goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[Path] | None = None

    def start(self, taken: Snapshot, best: bool) -> None:
        """Begin to write a snapshot; ``wait`` must have been called before."""
        assert self._written is None
        self._written = self._thread.submit(self._write, taken, best)

    def poll(self) -> Path | None:
        """The checkpoint that was finished since this was last asked.

        Raises:
            CheckpointError: it could not be written.
        """
        return self.wait() if self._written is not None and self._written.done() else None

    def wait(self) -> Path | None:
        """Wait for the one that is being written, and return it.

        Raises:
            CheckpointError: it could not be written.
        """
        written, self._written = self._written, None
        return written.result() if written is not None else None

    def _write(self, taken: Snapshot, best: bool) -> Path:
        path = self.folder / f"step-{taken.step:09d}.safetensors"
        checkpoint.write(path, taken)
        try:
            if best:
                _keep_best(path)
            for old in sorted(self.folder.glob("step-*.safetensors"))[:-KEEP]:
                old.unlink()
        except OSError as error:
            raise CheckpointError(str(self.folder), f"cannot be kept in order: {error}", "mend the folder") from error
        return path


def _keep_best(path: Path) -> None:
    """A second name for a checkpoint, which stays until a better one comes."""
    kept = path.with_name(path.name.replace("step", "best"))
    with written_beside(kept) as beside:
        try:
            os.link(path, beside)
        except OSError:  # a file system without links
            shutil.copyfile(path, beside)
    for old in path.parent.glob("best-*.safetensors"):
        if old != kept:
            old.unlink()
