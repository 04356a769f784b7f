"""Graphs by name: a path, or one that an installed package ships."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sr_pipeline.errors import Fault, GraphError, nearest
from sr_pipeline.graph import Editor, Graph
from sr_pipeline.paths import announced

GRAPHS = "sr_pipeline.graphs"


def find_graph(name: str, editor: Editor | None = None) -> Graph:
    """The graph at a path, or the shipped graph of that bare name; ``editor`` as in ``Graph.load``.

    Raises:
        GraphError: there is none, or it is faulty.
    """
    if Path(name).suffix or Path(name).name != name or _exists(name):
        return Graph.load(name, editor)
    known = shipped()
    if name not in known:
        raise GraphError([Fault(name, "no such file, and no shipped graph of that name", nearest(name, known))])
    return Graph.load(known[name])


def shipped() -> dict[str, Path]:
    """The files of all shipped graphs by name."""
    return {path.stem: path for folder in _graph_folders() for path in sorted(folder.glob("*.json"))}


def _graph_folders() -> Iterator[Path]:
    for point in announced(GRAPHS):
        yield point.load()()


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a name that no file system takes
        return False
