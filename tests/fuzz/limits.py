"""What no input may do: run for more than five seconds, or take a gigabyte more."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 5
GIGABYTE = 2**30


class Hang(BaseException):
    """No Exception, which a node's failure would be made of."""


@contextmanager
def no_hang(case: str) -> Iterator[None]:
    """Fails where what is inside takes longer; its time is the machine's, so the limit is on this thread's work."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"{case} runs for more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, hang)  # counts the processor's time: other programs do not make it fail
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


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
