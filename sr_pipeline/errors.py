"""The one family of errors: each says where, what was found, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


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


class NodeDeclarationError(PipelineError):
    """A function marked ``@node`` cannot be a node, or two nodes share a name."""


class GraphError(PipelineError):
    """A graph that cannot be run: all its faults together."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        Exception.__init__(self, "\n".join(map(str, self.faults)))


class NodeRunError(PipelineError):
    """A node failed while it ran; ``__cause__`` is the exception it raised."""


class CheckpointError(PipelineError):
    """A saved state is missing, damaged, or of another graph."""


class UsageError(PipelineError):
    """An argument of a command or of ``run`` that cannot be used."""


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
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there is none"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}"
