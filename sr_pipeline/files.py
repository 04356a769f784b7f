"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(target: Path, sync: bool = True) -> Iterator[Path]:
    """A path beside ``target`` to write to: renamed to it at the end, or removed if the writing failed.

    So there is never half a file under the name. ``sync`` forces the content to the disk before the renaming. The name
    beside is short, because ``target``'s may be as long as the file system takes, and tells which process wrote it.
    """
    beside = target.with_name(f".sr-pipeline-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield beside
        if sync:
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
