"""Files that are whole or not there."""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sr_pipeline.errors import RunFolderError
from sr_pipeline.processes import HOST, has_ended

_PART = re.compile(r"\.sr-pipeline-(?P<host>[^-]*)-(?P<process>\d+)-(?P<token>[0-9a-f]{8})-\d+\.part")
_TOKEN = secrets.token_hex(4)
"""Tells this process from an earlier one of its number."""
_NUMBERS = itertools.count()
DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise for bytes that are no picture, beside OSError."""


@contextmanager
def written_beside(target: Path, sync: bool = True) -> Iterator[Path]:
    """A path beside ``target`` to write to: renamed to it at the end, or removed if the writing failed.

    So there is never half a file under the name. ``sync`` forces the content to the disk before the renaming, and the
    new name after it. The name beside is short, because ``target``'s may be as long as the file system takes, and
    tells which process of which machine wrote it.
    """
    beside = target.with_name(f".sr-pipeline-{HOST}-{os.getpid()}-{_TOKEN}-{next(_NUMBERS)}.part")
    try:
        yield beside
        if sync:
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
        beside.replace(target)
        if sync:
            _sync_folder(target.parent)
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # which opens no folders
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left beside the files of a folder, which nobody else writes to."""
    for path in folder.glob(".sr-pipeline-*.part"):
        path.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove what killed processes left in a folder that others write to; theirs, here or elsewhere, are left."""
    for path in folder.glob(".sr-pipeline-*.part"):
        match = _PART.fullmatch(path.name)
        if match and match["token"] != _TOKEN and has_ended(match["host"], int(match["process"]), path):
            with suppress(OSError):  # gone, or on Windows still open
                path.unlink()


class LineFile:
    """A file to which whole lines are added: half a line, left by a kill or a full disk, is taken back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._size = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(self._size)

    def write(self, line: str) -> None:
        """Add one line, which brings its own line end.

        Raises:
            RunFolderError: it could not be written, and the file is as it was.
        """
        data = line.encode()
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self._size)
            what = f"cannot be written: {error.strerror}"
            raise RunFolderError(str(self.path), what, "make room, then --resume") from error
        self._size += len(data)

    def close(self) -> None:
        self._file.close()
