"""What processes that were killed have left."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = re.sub(r"[^\w.]", "_", platform.node())[:64]
"""This machine's name, as it can stand in a file's."""
_UNTOUCHED = 600.0
"""Seconds after which a file that is written in one go is no longer being written."""
_WEEK = 7 * 86400.0


def is_running(process: int) -> bool:
    """Whether another process of this number runs on this machine; on Windows, where asking would end it, unknown."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:  # this is no Linux
        return True
    return state.split()[0] not in ("Z", "X")  # which has ended, and nobody asked yet how


def has_ended(host: str, process: int, path: Path, untouched: float = _UNTOUCHED) -> bool:
    """Whether the process that made ``path`` has ended.

    It is asked for where it can be: on this machine. A folder may be shared with others, and with containers, which
    have names of their own; there, and on Windows, it has ended if the path was not changed for so many seconds.
    """
    if host == HOST and sys.platform != "win32":
        return not is_running(process)
    try:
        return time.time() - path.stat().st_mtime > untouched
    except OSError:  # gone meanwhile
        return False


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for as long as the context lasts; those of killed processes are removed."""
    for old in Path(tempfile.gettempdir()).glob("sr-pipeline-*-*"):
        match = re.fullmatch(r"sr-pipeline-(\d+)-\w+", old.name)
        if match and int(match[1]) != os.getpid() and has_ended(HOST, int(match[1]), old, _WEEK):
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"sr-pipeline-{os.getpid()}-") as folder:
        yield Path(folder)
