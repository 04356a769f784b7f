"""Events kept in files: each step's are there once, however often the run was stopped."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from sr_pipeline.errors import RunFolderError, UsageError
from sr_pipeline.events import Event, ImageWritten, NodeProgress, Progress, Resumed, Scalar
from sr_pipeline.files import LineFile, written_beside


class FileSink:
    """A file with a line, or a few, for each event that it keeps.

    When the run says that it was resumed, what is told of later steps is dropped, because it does those steps again;
    what it tells again of before (setup, or the end of a run that had ended) is there already: it is not written twice.
    """

    header: ClassVar[str] = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open(None)

    def _open(self, last: int | None) -> None:
        """Open the file, rewritten without what is cut short, and without what is told of steps after the last."""
        kept = [
            (text, told)
            for text, told in self.entries(_whole_lines(self.path))
            if told is None or last is None or told.step <= last
        ]
        with written_beside(self.path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            file.writelines([self.header, *(text for text, _ in kept)])
        told_again = {0, last}  # by setup, and by the end of a run that had ended
        self.known = {(t.step, t.name) for _, t in kept if isinstance(t, Scalar) and t.step in told_again}
        self.file = LineFile(self.path)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Resumed):
            self.file.close()
            try:
                self._open(event.step)
            except OSError as error:
                raise RunFolderError(str(self.path), f"cannot be written: {error.strerror}", "make room") from error
        if not (isinstance(event, Scalar) and (event.step, event.name) in self.known) and (text := self.text_of(event)):
            self.file.write(text)

    def text_of(self, event: Event) -> str:
        """How the file tells an event; empty for one that it does not keep."""
        raise NotImplementedError

    def entries(self, text: str) -> Iterator[tuple[str, Scalar | ImageWritten | None]]:
        """The parts of a file's text, and what each tells of one step; None where it tells of none."""
        raise NotImplementedError

    def close(self) -> None:
        self.file.close()


class JsonLines(FileSink):
    """All events but the ticking ones, a JSON object a line with its time."""

    def text_of(self, event: Event) -> str:
        if isinstance(event, (Progress, NodeProgress)):
            return ""
        return json_line(event)

    def entries(self, text: str) -> Iterator[tuple[str, Scalar | ImageWritten | None]]:
        for line in text.splitlines(keepends=True):
            yield line, self._told(line)

    def _told(self, line: str) -> Scalar | ImageWritten | None:
        try:
            told = json.loads(line)
            if told["type"] == "scalar":
                return Scalar(told["step"], told["name"], float(told["value"]))
            return ImageWritten(told["step"], told["node"], told["path"]) if told["type"] == "image" else None
        except (ValueError, TypeError, KeyError):  # of another hand
            return None


def json_line(event: Event) -> str:
    """How events.jsonl tells an event."""
    return json.dumps({**event.to_dict(), "time": round(time.time(), 3)}) + "\n"


def add_line(path: Path, event: Event) -> None:
    """Add an event to the events.jsonl that another process keeps; in one piece, so that it mixes with no other line.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        file.write(json_line(event).encode())


class MetricsCsv(FileSink):
    """Scalars as rows ``step,name,value``."""

    header = "step,name,value\r\n"

    def text_of(self, event: Event) -> str:
        if not isinstance(event, Scalar):
            return ""
        row = io.StringIO(newline="")
        csv.writer(row).writerow((event.step, event.name, repr(event.value)))
        return row.getvalue()

    def entries(self, text: str) -> Iterator[tuple[str, Scalar]]:
        for step, name, value in _rows(text):
            told = Scalar(step, name, value)
            yield self.text_of(told), told


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """The rows of a metrics.csv; none where there is no file. A row cut short by a kill has no line end: left out."""
    return list(_rows(_whole_lines(path)))


def _rows(text: str) -> Iterator[tuple[int, str, float]]:
    """The rows that are ours, whoever wrote them: a spreadsheet ends lines otherwise, and adds some of its own."""
    for row in csv.reader(io.StringIO(text, newline="")):
        with suppress(ValueError):
            step, name, value = row
            yield int(step), name, float(value)


def _whole_lines(path: Path) -> str:
    """A file's text without a last line that has no end."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    return text[: text.rfind("\n") + 1]


class TensorBoard:
    """Scalars for TensorBoard (optional extra ``tensorboard``)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "--tensorboard", "the package tensorboard is missing", "pip install 'sr-pipeline[tensorboard]'"
            ) from None
        self.open: Callable[..., Any] = partial(SummaryWriter, str(folder))
        self.writer = self.open()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Resumed):  # TensorBoard then drops what it was told of the steps that are done again
            self.writer.close()
            self.writer = self.open(purge_step=event.step + 1)
        elif isinstance(event, Scalar):
            self.writer.add_scalar(event.name, event.value, event.step)

    def close(self) -> None:
        self.writer.close()
