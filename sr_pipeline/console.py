"""A run in the terminal: a live table where there is one, plain lines on a pipe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from sr_pipeline.events import Done, Event, NodeStarted, Progress, RunStarted, Saved
from sr_pipeline.tracker import Tracker, notice

if TYPE_CHECKING:
    from sr_pipeline.livetable import LiveConsole


class PlainConsole:
    """Lines for a pipe or a log: the state of the run at the first step, each ten seconds, and at the last."""

    def __init__(self, file: TextIO, every: float = 10.0) -> None:
        self.file, self.every, self.told = file, every, float("-inf")
        self.tracker = Tracker()

    def __call__(self, event: Event) -> None:
        self.tracker(event)
        if isinstance(event, RunStarted):
            self._line(self.tracker.title)
        elif isinstance(event, NodeStarted):
            self._line(self.tracker.doing)
        elif isinstance(event, Saved):
            self._line(f"{self._state()}  saved {event.path}" if self.tracker.progress else f"saved {event.path}")
        elif isinstance(event, Progress) and time.monotonic() - self.told > self.every:
            self.told = time.monotonic()
            self._line(self._state())
        elif line := notice(event):
            if isinstance(event, Done) and self.tracker.progress is None and self.tracker.scalars:
                self._line(self._state().strip())
            self._line(line)

    def _state(self) -> str:
        scalars = "".join(f"  {name} {values[-1]:.5g}" for name, values in self.tracker.scalars.items())
        return self.tracker.status() + scalars

    def _line(self, text: str) -> None:
        print(text, file=self.file, flush=True)

    def __enter__(self) -> PlainConsole:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def console_for(file: TextIO) -> PlainConsole | LiveConsole:
    """The live table on a terminal, plain lines elsewhere."""
    if not file.isatty():
        return PlainConsole(file)
    from rich.console import Console

    from sr_pipeline.livetable import LiveConsole

    return LiveConsole(Console(file=file))
