"""The nodes that a graph may name: a value that is passed around, filled from packs."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_pipeline.errors import NodeDeclarationError, UsageError
from sr_pipeline.node import NodeType, node_type
from sr_pipeline.paths import PACKS


class Registry(Mapping[str, NodeType]):
    """Node types by name. Never changed once made; ``with_nodes`` gives a larger one."""

    def __init__(self, nodes: Iterable[Callable[..., Any]] = ()) -> None:
        """Read the marked functions ``nodes``.

        Raises:
            NodeDeclarationError: one of them cannot be a node, or two share a name.
        """
        self._types: dict[str, NodeType] = {}
        for target in nodes:
            made = node_type(target)
            known = self._types.get(made.name)
            if known is not None and known.function is not target:
                raise NodeDeclarationError(made.where, f"the name {made.name!r} is taken by {known.where}", "rename it")
            self._types[made.name] = made

    def __getitem__(self, name: str) -> NodeType:
        return self._types[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def with_nodes(self, nodes: Iterable[Callable[..., Any]]) -> Registry:
        """This registry and ``nodes``; this one is unchanged."""
        return Registry([*(t.function for t in self.values()), *nodes])


def load_packs(extra: Iterable[str] = ()) -> Registry:
    """The nodes of all installed packs, and of ``extra``: module names or paths of .py files.

    Raises:
        UsageError: an extra pack cannot be found.
        NodeDeclarationError: a node is faulty or its name is taken.
    """
    installed = [importlib.import_module(point.value) for point in entry_points(group=PACKS)]
    return Registry(f for module in [*installed, *map(_import_pack, extra)] for f in nodes_of(module))


def nodes_of(module: ModuleType) -> list[Callable[..., Any]]:
    """The functions marked ``@node`` that a module, or any module of a package, defines."""
    modules = [module]
    if hasattr(module, "__path__"):
        names = (m.name for m in pkgutil.walk_packages(module.__path__, f"{module.__name__}."))
        modules += [importlib.import_module(name) for name in names]
    return [
        value
        for m in modules
        for value in vars(m).values()
        if callable(value) and "__node__" in getattr(value, "__dict__", {}) and value.__module__ == m.__name__
    ]


def _is_module(name: str) -> bool:
    parts = name.split(".")
    parents = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return all(part.isidentifier() for part in parts) and all(map(importlib.util.find_spec, parents))


def _import_pack(name: str) -> ModuleType:
    path = Path(name).absolute()
    if path.suffix != ".py":
        if not _is_module(name):
            raise UsageError(f"--pack {name}", "no such module", "give an importable name or the path of a .py file")
        with _told(name):
            return importlib.import_module(name)
    if not path.is_file():
        raise UsageError(f"--pack {name}", "no such file", "give an importable name or the path of a .py file")
    taken = sys.modules.get(path.stem)
    if taken is not None and getattr(taken, "__file__", None) != str(path):
        raise UsageError(f"--pack {name}", f"a module {path.stem!r} is loaded already", "rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # worker processes and pickles find its classes by this name
    try:
        with _told(name):
            spec.loader.exec_module(module)
    except UsageError:
        del sys.modules[path.stem]
        raise
    return module


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever a pack's own code raises while it is imported, as an error that says where."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SyntaxError):
            file, line = error.filename, error.lineno
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            file, line = frame.filename, frame.lineno
        what = f"it cannot be imported: {type(error).__name__}: {error} ({file}, line {line})"
        raise UsageError(f"--pack {name}", what, "mend it there") from error
