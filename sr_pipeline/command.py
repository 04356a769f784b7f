"""Commands that packs declare: a name, a graph file, and flags that set its inputs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any


@dataclass(frozen=True)
class Flag:
    """A flag of a command. Its value sets inputs of the command's graph.

    Args:
        name: ``--model``; or a bare word for an argument by position.
        sets: the inputs that it sets, each ``node.input``.
        required: without it, the graph's own value is used where it is left out.
        multiple: it takes one value or more, which make a list.
        words: the words that it takes, and what each sets; empty takes any text.
        number: it takes a whole number, or one of its words.
        switch: it takes no value: giving it sets ``constant``.
        constant: what a switch sets.
    """

    name: str
    sets: tuple[str, ...]
    help: str
    required: bool = False
    multiple: bool = False
    words: Mapping[str, Any] = field(default_factory=dict)
    number: bool = False
    switch: bool = False
    constant: Any = True

    @property
    def key(self) -> str:
        """Its name as Python has it."""
        name = self.name.lstrip("-").replace("-", "_")
        return f"{name}_" if iskeyword(name) else name

    @property
    def by_position(self) -> bool:
        return not self.name.startswith("-")

    def read(self, text: str) -> Any:
        """The JSON value of what was typed.

        >>> tile = Flag("--tile", ("sr.tile",), "", words={"auto": "auto", "none": None}, number=True)
        >>> [tile.read(text) for text in ("auto", "none", "64")]
        ['auto', None, 64]

        Raises:
            ValueError: it is none of what the flag takes.
        """
        if text in self.words:
            return self.words[text]
        if self.number and text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
        if self.words or self.number:
            wanted = [*self.words, *(["a whole number"] if self.number else [])]
            raise ValueError(f"{text!r} is not {' or '.join(wanted)}")
        return text


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
        failures: a key of the result, which is an object: if what it holds is not empty, the exit code is 1.
        pipe: the flag whose value ``-`` means that standard output is the result's: texts go to standard error.
        temporary_with: the flag that says where the result goes. With it, and without ``--run-dir``, the run's folder
            is temporary, and not spoken of; otherwise it is kept under ``runs/``.
        sets: inputs that the command sets besides its flags, each ``node.input``.
        apart: processes that torchrun starts have a run each, of which the graph's stream takes its share. A failure
            then sets no exit code: torchrun would end the other processes for it.
        stopped: what is said after an interrupt, with ``{done}`` and ``{total}`` steps.
    """

    name: str
    graph: str
    help: str
    flags: tuple[Flag, ...]
    result: str
    text: str
    failures: str = ""
    pipe: str = ""
    temporary_with: str = ""
    sets: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    apart: bool = False
