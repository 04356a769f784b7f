"""The folders that the server serves and writes, and no path out of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BOOKMARKS = ".index.json"
"""The one hidden file that the front end keeps: which workflows are marked."""


class OutOfFolderError(ValueError):
    """A name that is no plain path in its folder."""


@dataclass(frozen=True)
class Folders:
    """What belongs to one server: the runs, the pictures that were uploaded, the user's workflows and settings."""

    root: Path
    allowed: tuple[Path, ...] = ()
    """What graphs may read beside the root and the uploads; it is not served."""

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def readable(self) -> tuple[Path, ...]:
        """What graphs may read beside the root, where the server works."""
        return self.input, *self.allowed

    @property
    def user(self) -> Path:
        return self.root / "user"

    @property
    def settings(self) -> Path:
        return self.user / ".settings.json"

    @property
    def queue(self) -> Path:
        return self.runs / ".queue.json"

    def of_type(self, name: str) -> Path | None:
        """ComfyUI's word for a folder; nothing is kept in its third, temp."""
        return {"output": self.runs, "input": self.input}.get(name)

    def make(self) -> None:
        for folder in (self.runs, self.input, self.user / "workflows"):
            folder.mkdir(parents=True, exist_ok=True)


def inside(folder: Path, name: str) -> Path:
    """The path ``name`` in a folder: parts with ``/`` between, none hidden, none a link.

    >>> inside(Path("runs"), "cats/previews/1.png").as_posix()
    'runs/cats/previews/1.png'

    Raises:
        OutOfFolderError: it is absolute, has ``..``, a drive, a backslash, a control character, an empty or hidden
            part, or passes through a link.
    """
    parts = name.split("/")
    hidden = any((p.startswith(".") and p != BOOKMARKS) or not p for p in parts)
    if hidden or any(c in name for c in "\\:") or not name.isprintable():
        raise OutOfFolderError(f"{name!r} is no plain path")
    path = folder
    for part in parts:
        path = path / part
        try:
            if path.is_symlink():
                raise OutOfFolderError(f"{name!r} passes through a link")
        except OSError as error:  # a name that the file system does not take
            raise OutOfFolderError(f"{name!r}: {error.strerror}") from None
    return path
