"""Files that travel with the pack. Imports no torch: the command line asks it for graphs."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def graphs() -> Path:
    """The folder of the shipped graphs: inside an installed package, at the top of a checkout."""
    inside = _PACKAGE / "graphs"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "graphs"


def resolve(path: str) -> Path:
    """A path as given, or ``sr_nodes:NAME``, a file or folder of this package.

    >>> resolve("photos/cat.png").as_posix()
    'photos/cat.png'
    >>> resolve("sr_nodes:samples").is_dir()
    True
    """
    prefix, separator, inside = path.partition("sr_nodes:")
    return _PACKAGE / inside if separator and not prefix else Path(path).expanduser()
