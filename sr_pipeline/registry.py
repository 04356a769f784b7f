"""The nodes that a graph may name: a value that is passed around, filled from packs."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_pipeline.errors import NodeDeclarationError, PipelineError, UsageError
from sr_pipeline.node import NodeType, class_type, node_type, where
from sr_pipeline.paths import PACKS, announced


class Registry(Mapping[str, NodeType]):
    """Node types by name. Never changed once made; ``with_nodes`` gives a larger one.

    A node's declaration is read when the node is first asked for, which raises a NodeDeclarationError where it is
    faulty: it costs a millisecond, and a faulty node stops no graph that has none of its type.
    """

    def __init__(self, nodes: Iterable[Callable[..., Any]] = ()) -> None:
        """Of the marked functions ``nodes``.

        Raises:
            NodeDeclarationError: two of them share a name.
        """
        self._functions: dict[str, Callable[..., Any]] = {}
        self._types: dict[str, NodeType] = {}
        for function in nodes:
            name = class_type(function)
            known = self._functions.setdefault(name, function)
            if known is not function:
                what = f"the name {name!r} is taken by {where(known)}"
                raise NodeDeclarationError(where(function), what, "rename it")

    def __getitem__(self, name: str) -> NodeType:
        if name not in self._types:
            self._types[name] = node_type(self._functions[name])
        return self._types[name]

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def with_nodes(self, nodes: Iterable[Callable[..., Any]]) -> Registry:
        """This registry and ``nodes``; this one is unchanged."""
        return Registry([*self._functions.values(), *nodes])


def load_packs(extra: Iterable[str] = ()) -> Registry:
    """The nodes of all installed packs, and of ``extra``: module names or paths of .py files.

    Raises:
        UsageError: a pack cannot be found, or not be imported.
        NodeDeclarationError: the name of a node is taken.
    """
    found = list[Callable[..., Any]]()
    for point in announced(PACKS):
        with _told(f"pack {point.name}"):
            found += nodes_of(importlib.import_module(point.value))
    for name in extra:
        with _told(f"--pack {name}"):
            found += nodes_of(_import_pack(name))
    return Registry(found)


def nodes_of(module: ModuleType) -> list[Callable[..., Any]]:
    """The functions marked ``@node`` that a module, or any module of a package, defines.

    Modules whose names begin with an underscore are not imported: what they need may be missing.
    """
    return [
        value
        for m in _modules(module)
        for value in vars(m).values()
        if callable(value) and "__node__" in getattr(value, "__dict__", {}) and value.__module__ == m.__name__
    ]


def _modules(module: ModuleType) -> Iterator[ModuleType]:
    yield module
    for name in sorted(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ()))):
        if not name.startswith("_"):
            yield from _modules(importlib.import_module(f"{module.__name__}.{name}"))


def _is_module(name: str) -> bool:
    parts = name.split(".")
    parents = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    try:
        return all(part.isidentifier() for part in parts) and all(map(importlib.util.find_spec, parents))
    except ModuleNotFoundError as error:
        if error.name not in parents:  # what one of them needs is missing
            raise
        return False
    except ValueError:  # __main__
        return False


def _import_pack(name: str) -> ModuleType:
    path = Path(name).absolute()
    if path.suffix != ".py":
        if not _is_module(name):
            raise UsageError(f"--pack {name}", "no such module", "give an importable name or the path of a .py file")
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
        spec.loader.exec_module(module)
    except Exception:
        del sys.modules[path.stem]
        raise
    return module


@contextmanager
def _told(pack: str) -> Iterator[None]:
    """Whatever a pack's own code raises while it is imported, as an error that says where."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if isinstance(error, SyntaxError):
            file, line = error.filename, error.lineno
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            file, line = frame.filename, frame.lineno
        what = f"it cannot be imported: {type(error).__name__}: {error} ({file}, line {line})"
        raise UsageError(pack, what, "mend it there") from error
