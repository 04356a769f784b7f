"""The one family of errors: each says where, what was found, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True)
class Fault:
    """One thing wrong: ``where`` is a file and place in it, or ``module.function``; ``fix`` is the mend."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.fix}" if self.fix else "")


class PipelineError(Exception):
    """An error told to the user. Its text is one line a fault: ``where: what; fix``."""

    def __init__(self, where: str, what: str, fix: str = "") -> None:
        self.faults: tuple[Fault, ...] = (Fault(where, what, fix),)
        super().__init__(str(self.faults[0]))

    def __reduce__(self) -> tuple[Callable[..., PipelineError], tuple[type[PipelineError], tuple[Fault, ...]]]:
        return _again, (type(self), self.faults)


def _again(kind: type[PipelineError], faults: tuple[Fault, ...]) -> PipelineError:
    """An error that another process raised."""
    made = kind.__new__(kind)
    GraphError.__init__(cast(GraphError, made), faults)
    return made


class NodeDeclarationError(PipelineError):
    """A function marked ``@node`` cannot be a node, or two nodes share a name."""


class GraphError(PipelineError):
    """A graph that cannot be run: all its faults together."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        Exception.__init__(self, "\n".join(map(str, self.faults)))


class NodeRunError(PipelineError):
    """A node failed while it ran; ``__cause__`` is the exception it raised."""


class NotFiniteError(NodeRunError):
    """A loss, a gradient or a weight is NaN or infinite; it names the node where that began."""


class LostProcessError(NodeRunError):
    """Another of the processes that share the run ended."""


class CaptureError(PipelineError):
    """A step that cannot be recorded once and replayed; it names the node that stands in the way."""


class RunFolderError(PipelineError):
    """A file of the run's folder cannot be written: the disk is full, for one."""


class CheckpointError(RunFolderError):
    """A state cannot be saved, or a saved one is missing, damaged, or of another graph."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that cannot be read, or is not as it was written."""


class UsageError(PipelineError):
    """An argument of a command or of ``run`` that cannot be used."""


MAX_FAULTS = 100
"""Faults told of one graph. Beyond, it is none, and telling them takes longer than reading it."""


class Faults(list[Fault]):
    """The faults of a graph, as they are found.

    Raises:
        GraphError: these are enough.
    """

    def append(self, fault: Fault) -> None:
        super().append(fault)
        if len(self) == MAX_FAULTS:
            raise GraphError([*self, Fault(fault.where, "and more: this is no graph", "mend these first")])


def quoted(text: str) -> str:
    """A name from a file in quotes, cut short where nobody would read it.

    >>> quoted("scale"), len(quoted("a" * 1000))
    ("'scale'", 100)
    """
    shown = repr(text[:100])
    return shown if len(text) < 99 and len(shown) <= 100 else f"{shown[:97]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` or the list of what is known.

    >>> nearest("mse_los", ["mse_loss", "l1_loss"])
    "did you mean 'mse_loss'?"
    >>> nearest("zebra", ["b", "a"])
    'known: a, b'
    >>> nearest("zebra", [])
    'there is none'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6) if len(name) < 100 else []
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there is none"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}"
