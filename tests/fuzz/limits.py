"""What no input may do: run for more than five seconds of a common processor, or take a gigabyte more."""

from __future__ import annotations

import gc
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import torch

SECONDS, RATE = 5, 62e9
"""Of a processor with so many operations a second and core in products of matrices (an AMD EPYC of family 25); a slower
one has as much longer."""
GIGABYTE = 2**30


class Hang(BaseException):
    """No Exception, which a node's failure would be made of."""


@contextmanager
def no_hang(case: str) -> Iterator[None]:
    """Fails where what is inside takes longer; its time is the machine's, so the limit is on this thread's work."""

    limit = allowed()

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"{case} runs for more than {limit:.1f} s")

    before = signal.signal(signal.SIGPROF, hang)  # counts the processor's time: other programs do not make it fail
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@cache
def allowed() -> float:
    """Seconds of this processor."""
    matrix, took = torch.rand(1024, 1024), list[float]()
    for _ in range(7):
        began = time.process_time()
        matrix @ matrix
        took.append(time.process_time() - began)
    return SECONDS * max(1.0, statistics.median(took) * RATE / (2 * 1024**3))


@contextmanager
def no_growth() -> Iterator[None]:
    """Fails where the process's memory grew by more than a gigabyte at any moment inside."""
    gc.collect()  # what is done with, but was not yet freed, is not this input's
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _peak()
    yield
    grown = _peak() - before
    assert grown < GIGABYTE, f"{before / 2**20:.0f} MiB before, at most {grown / 2**20:.0f} MiB more"


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
