"""What a command line names: a graph's file, a shipped one, a picture, a workflow of the editor, a run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sr_pipeline.check import with_settings
from sr_pipeline.folder import RunFolder, differences, find_folder, read_record, recorded_graph
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.shipped import find_graph


def load(name: str, registry: Registry, changes: Iterable[str] = (), folders: Sequence[Path] = ()) -> Graph:
    """A graph by its file or name, with each ``node.input=value`` set; if folders are given, it reads no others.

    Raises:
        GraphError: there is none, or it is faulty.
        UsageError: a change names no input.
    """

    def read(workflow: Any, source: str) -> Graph:
        from sr_pipeline.server.workflow import to_api  # takes a hundredth of a second, and few graphs need it

        return to_api(workflow, registry, source)

    graph = find_graph(name, read)
    if any("sr_pipeline" in entry.meta for entry in graph.nodes.values()):
        from sr_pipeline.server.workflow import from_export

        graph = from_export(graph, registry)
    return _with(graph, registry, changes, folders)


_OF_THE_MACHINE = {"device", "threads", "capture"}
"""Settings that a run which goes on has anew: it may go on elsewhere, and in another number of processes."""


@dataclass(frozen=True)
class Order:
    """What to run, where, and with which arguments of ``run`` if no flag says otherwise; ``warnings`` say what is not
    as it was."""

    graph: Graph
    run_dir: Path | None
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def to_run(
    name: str, registry: Registry, changes: Iterable[str], folders: Sequence[Path], run_dir: Path | None, resume: bool
) -> Order:
    """A graph to run, a run to go on with (by its folder's graph), or a run's folder to repeat in a new one.

    Raises:
        GraphError, UsageError: as ``load``; or there is no such run, or its record is damaged.
    """
    run = RunFolder(Path(name))
    is_run = run.record.is_file()
    if not resume and not is_run:
        return Order(load(name, registry, changes, folders), run_dir)
    if not is_run:
        run = find_folder(run_dir, find_graph(name, lambda _, source: Graph({}, source)))  # its name alone is asked
    elif resume and run_dir is not None:
        run = find_folder(run_dir, Graph({}, name))
    graph, record = _with(recorded_graph(run), registry, changes, folders), read_record(run)
    settings = asdict(record.settings)
    if resume:
        return Order(graph, run.path, {name: value for name, value in settings.items() if name not in _OF_THE_MACHINE})
    return Order(graph, run_dir, settings, tuple(f"{name}: {text}" for text in differences(record)))


def _with(graph: Graph, registry: Registry, changes: Iterable[str], folders: Sequence[Path]) -> Graph:
    return with_settings(graph.limited_to(*folders) if folders else graph, registry, changes)
