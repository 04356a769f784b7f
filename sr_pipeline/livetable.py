"""The live table of a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sr_pipeline.events import Done, Event, RunStarted, Warned
from sr_pipeline.tracker import Tracker, notice, sparkline


class LiveConsole:
    """A bar and a table of the scalars that keep themselves up to date; notices scroll above them."""

    def __init__(self, console: Console) -> None:
        self.tracker = Tracker()
        self.live = Live(console=console, get_renderable=self._view, refresh_per_second=4)

    def __call__(self, event: Event) -> None:
        self.tracker(event)
        if isinstance(event, RunStarted):
            self.live.console.print(Text(self.tracker.title, style="bold"))
        if line := notice(event):
            style = "yellow" if isinstance(event, Warned) else "green" if isinstance(event, Done) else "dim"
            self.live.console.print(Text(line, style=style))

    def _view(self) -> Group:
        parts: list[Table | Text] = [Text(self.tracker.status(), style="cyan")]
        if self.tracker.progress and self.tracker.progress.total:
            bar = Table.grid(expand=True)  # a bar alone does not end its line
            bar.add_row(ProgressBar(self.tracker.progress.total, self.tracker.progress.step))
            parts.append(bar)
        if self.tracker.scalars:
            table = Table("scalar", "now", "mean", "course", box=None, padding=(0, 2, 0, 0))
            for name, values in list(self.tracker.scalars.items()):  # others come while it is drawn
                mean = sum(values) / len(values)
                table.add_row(name, f"{values[-1]:.5g}", f"{mean:.5g}", sparkline(list(values)))
            parts.append(table)
        return Group(*parts)

    def __enter__(self) -> LiveConsole:
        self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(None, None, None)
