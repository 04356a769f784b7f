"""Ctrl-C and SIGTERM, asked politely first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """The signals caught: the first one asks the run to stop after its step, a second one stops it at once."""
    caught: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if caught:
            typer.echo("stopped at once; the last checkpoint is whole", err=True)
            raise SystemExit(128 + number)
        caught.append(number)
        typer.echo("finishing what runs, and saving; once more to stop at once", err=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
