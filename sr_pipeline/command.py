"""Commands that packs declare: a name, a graph file, and flags that set its inputs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """A flag of a command. Its value sets inputs of the command's graph.

    Args:
        name: ``--model``; or a bare word for an argument by position.
        sets: the inputs that it sets, each ``node.input``.
        required: without it, the graph's own value is used where it is left out.
        multiple: it takes one value or more, which make a list.
    """

    name: str
    sets: tuple[str, ...]
    help: str
    required: bool = False
    multiple: bool = False


@dataclass(frozen=True)
class Command:
    """A command that runs a graph.

    Args:
        name: ``sr-pipeline NAME``.
        graph: the name of a shipped graph.
        help: what ``--help`` says.
        flags: what sets its inputs.
        result: the node whose output ``--json`` prints.
        text: the node whose output, a string, is printed otherwise.
    """

    name: str
    graph: str
    help: str
    flags: tuple[Flag, ...]
    result: str
    text: str
