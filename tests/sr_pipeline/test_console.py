"""What a terminal and a pipe are shown."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import toys
from sr_pipeline.console import PlainConsole, console_for
from sr_pipeline.events import (
    Done,
    Event,
    ImageWritten,
    NodeProgress,
    NodeStarted,
    Progress,
    Resumed,
    RunStarted,
    Saved,
    Scalar,
    Warned,
)
from sr_pipeline.livetable import LiveConsole
from sr_pipeline.tracker import duration, rate, sparkline

EVENTS: list[Event] = [
    RunStarted("train", "runs/x", 3, "cpu", 5),
    NodeStarted("net", "setup"),
    NodeProgress("net", 1, 2),
    Warned("net", "is small"),
    Resumed(9),
    Progress(10, 100, 2.0),
    Scalar(10, "loss", 0.25),
    ImageWritten(10, "preview", "a.png"),
    Saved(10, "step-10"),
    Progress(11, 100, 2.0),
    Done(100, False, 3725.0),
]


def plain(events: list[Event], every: float = 10.0) -> list[str]:
    file = StringIO()
    with PlainConsole(file, every) as console:
        for event in events:
            console(event)
    return file.getvalue().splitlines()


def test_before_the_first_step_what_is_saved_is_told_alone() -> None:
    told = plain([NodeStarted("net", "setup"), Scalar(1, "loss", 0.5), Saved(0, "step-0")])
    assert told == ["setup: net", "saved step-0"]


def test_a_pipe_is_given_a_plain_line_a_notice() -> None:
    assert plain(EVENTS) == [
        "train  on cpu (fp32, contiguous)  seed 3  into runs/x",
        "setup: net",
        "warning: net: is small",
        "resumed from step 9",
        "step 10/100  2 steps/s  0:00:45 left",
        "wrote a.png",
        "step 10/100  2 steps/s  0:00:45 left  loss 0.25  saved step-10",
        "done after step 100, 1:02:05",
    ]


def test_progress_is_told_as_often_as_asked() -> None:
    progress: list[Event] = [Progress(n, None, 0.5) for n in range(1, 4)]
    assert plain(progress, every=-1) == [f"step {n}  2 s/step" for n in range(1, 4)]
    assert plain(progress) == ["step 1  2 s/step"]


def test_a_run_on_a_pipe_has_no_escape_codes(tmp_path: Path) -> None:
    file = StringIO()
    toys.run_of(toys.REGRESSION, tmp_path, sinks=[console_for(file)])
    assert "\x1b" not in file.getvalue()
    assert re.fullmatch(r"done after step 6, 0:\d\d:\d\d", file.getvalue().splitlines()[-1])


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_console_fits_the_file() -> None:
    assert isinstance(console_for(Terminal()), LiveConsole)
    assert isinstance(console_for(StringIO()), PlainConsole)


def live(events: list[Event]) -> str:
    """What a terminal shows, without its codes."""
    file = StringIO()
    with LiveConsole(Console(file=file, force_terminal=True, width=100)) as console:
        for event in events:
            console(event)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())


def test_a_terminal_shows_step_rate_time_left_and_scalars() -> None:
    shown = live([*EVENTS, Scalar(11, "loss", 0.75)])
    for text in (
        "train  on cpu (fp32, contiguous)  seed 3",
        "warning: net: is small",
        "wrote a.png",
        "done after step 100, 1:02:05",
    ):
        assert text in shown
    assert "step 11/100  2 steps/s  0:00:44 left" in shown
    assert re.search(r"scalar +now +mean +course", shown)
    assert re.search(r"loss +0\.75 +0\.5 +▁█", shown)


def test_brackets_in_texts_are_texts() -> None:
    assert "warning: [red]x: [/bold]" in live([Warned("[red]x", "[/bold]")])


def test_before_the_first_step_the_terminal_says_what_is_done() -> None:
    assert "vgg: 3/8" in live([NodeProgress("vgg", 3, 8)])
    assert "setup: vgg" in live([NodeStarted("vgg", "setup")])


@given(st.lists(st.floats(-1e6, 1e6), max_size=100), st.integers(1, 40))
def test_a_sparkline_has_a_bar_a_part(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set("▁▂▃▄▅▆▇█")


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([5.0], "▄"), ([2, 2, 2], "▄▄▄"), ([3, 1], "█▁"), ([0, 0, 7, 7], "▁▁██")]
)
def test_sparklines(values: list[float], line: str) -> None:
    assert sparkline(values) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3600, "1:00:00"), (86399.4, "23:59:59"), (86400, "1 d 0:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("per_second", "text"), [(1, "1 steps/s"), (123.456, "123 steps/s"), (0.1, "10 s/step")])
def test_rates(per_second: float, text: str) -> None:
    assert rate(per_second) == text
