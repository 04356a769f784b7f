"""What processes that were killed have left."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_running(process: int) -> bool:
    """Whether another process of this number runs; always false on Windows, where what is open cannot be removed."""
    if process == os.getpid() or sys.platform == "win32":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for as long as the context lasts; those of killed processes are removed."""
    for old in Path(tempfile.gettempdir()).glob("sr-pipeline-*-*"):
        match = re.fullmatch(r"sr-pipeline-(\d+)-\w+", old.name)
        if match and not is_running(int(match[1])) and int(match[1]) != os.getpid():
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"sr-pipeline-{os.getpid()}-") as folder:
        yield Path(folder)
