"""Files that travel with the pack. Imports no torch: the command line asks it for graphs."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def graphs() -> Path:
    """The folder of the shipped graphs: inside an installed package, at the top of a checkout."""
    inside = _PACKAGE / "graphs"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "graphs"
