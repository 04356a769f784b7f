"""Ctrl-C and SIGTERM, asked politely first."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """The signals caught: the first one asks the run to stop after its step, a second one ends the process at once.

    Then the contexts inside this one are still left, so that the terminal is as it was; a checkpoint that is being
    written is not waited for, and the one before stands.
    """
    caught: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            typer.echo("stopped at once; the last checkpoint is whole", err=True)
            raise SystemExit(128 + number)
        typer.echo("finishing what runs, and saving; once more to stop at once", err=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if len(caught) > 1:
            sys.stdout.flush()
            os._exit(128 + caught[1])
