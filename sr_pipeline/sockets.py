"""Socket types: what an annotation of a node's parameter or result means to the engine.

A socket's type is the annotation itself. ``Annotated[Tensor, Socket("Image")]`` gives a name to a type that Python
alone cannot tell from another; ``Mutates``, ``Backward``, ``Every`` and the injected types below add what the plan
must know. None of them changes what a type checker or a plain call of the function sees.
"""

from __future__ import annotations

import hashlib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from torch import Tensor, nn

from sr_pipeline import world

T = TypeVar("T")


@dataclass(frozen=True)
class Socket:
    """Marks a named socket type: two names do not fit each other even where their Python types are one."""

    name: str


@dataclass(frozen=True)
class Injected:
    """Marks a parameter that the run gives: no socket, never in a graph file."""

    what: str


@dataclass(frozen=True)
class _Mark:
    name: str


@dataclass(frozen=True)
class _Path:
    use: Literal["read", "name", "write"]


_MUTATES, _BACKWARD, _EVERY = _Mark("mutates"), _Mark("backward"), _Mark("every")

Mutates = Annotated[T, _MUTATES]
"""``Mutates[X]``: the node changes this input in place, and returns it."""
Backward = Annotated[T, _BACKWARD]
"""``Backward[Loss]``: the node runs a backward pass from this input to the parameters of its ``Mutates[Model]``."""
Every = Annotated[int, _EVERY, Field(ge=0)]
"""A cadence in steps: the node runs on each n-th step and once after the last; 0 is after the last only."""

InputPath = Annotated[str, _Path("read")]
"""A file or folder that the node reads, for ``paths.resolve``. A graph from elsewhere may name only some."""
OutputName = Annotated[str, _Path("name")]
"""A file or folder that the node writes in the run's folder, for ``paths.inside``."""
OutputPath = Annotated[str, _Path("write")]
"""A file or folder that the node writes where its user says. A graph from elsewhere may not set it."""

Model = Annotated[nn.Module, Socket("Model")]
Optimizer = Annotated[torch.optim.Optimizer, Socket("Optimizer")]
Loss = Annotated[Tensor, Socket("Loss")]
"""A scalar tensor, a mean over the batch."""


@dataclass(frozen=True)
class SeedSource:
    """The source of a node's random numbers: generators by position, with no state to save."""

    run: int = 0
    node: str = ""

    def rng(self, step: int) -> torch.Generator:
        """A CPU generator that depends on (run seed, node id, step) and on nothing else."""
        digest = hashlib.blake2b(f"{self.run}/{self.node}/{step}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Reporter:
    """Where a node reports what it found; this one drops everything, a run's sends events."""

    def scalar(self, name: str, value: float | Tensor) -> None:
        """A number of this step. A tensor is read later, with others, so that the device need not wait."""

    def image(self, path: Path) -> None:
        """A picture that was written."""

    def warning(self, text: str) -> None:
        """Something that the user should know and that stops nothing."""

    def progress(self, done: int, total: int) -> None:
        """How far a long node is."""


SILENT = Reporter()

Step = Annotated[int, Injected("step")]
"""Items consumed before this step: 0 at the first."""
Start = Annotated[int, Injected("start")]
"""For a stream: the position to start from (items already consumed)."""
RunDir = Annotated[Path, Injected("run_dir")]
Rng = Annotated[torch.Generator, Injected("rng")]
"""A CPU generator made anew for each call from (run seed, node id, step)."""
Seed = Annotated[SeedSource, Injected("seed")]
"""For a stream: generators by position, usable in worker processes."""
Device = Annotated[torch.device, Injected("device")]
Training = Annotated[bool, Injected("training")]
"""True where the node's result leads to a loss."""
RetainGraph = Annotated[bool, Injected("retain_graph")]
"""True where another backward pass follows over the same forward pass."""
Report = Annotated[Reporter, Injected("report")]
World = Annotated[world.World, Injected("world")]
"""Which of the processes that share the run this is. A stream that takes it gives this one's share of each item."""

INJECTABLE = frozenset(
    {"step", "start", "run_dir", "rng", "seed", "device", "training", "retain_graph", "report", "world"}
)


@dataclass(frozen=True)
class Alternative:
    """One member of a socket type: its name and the Python class behind it."""

    name: str
    python: type
    named: bool

    def accepts(self, source: Alternative) -> bool:
        """A name fits itself; a class fits its subclasses; an int is a float; a bool is no number."""
        if self.name == source.name or self.python is object:
            return True
        if source.python is bool or (self.named and source.python is self.python):
            return False
        return issubclass(source.python, self.python) or (self.python is float and source.python is int)


@dataclass(frozen=True)
class SocketType:
    """A socket's type, read from an annotation."""

    annotation: Any
    alternatives: tuple[Alternative, ...]
    marks: frozenset[str] = frozenset()
    injected: str | None = None
    is_json: bool = False
    variable: str | None = None
    """The name of its TypeVar: an output of that variable has the type of what is linked to the input of it."""
    path: Literal["read", "name", "write"] | None = None
    """What is done with the paths that its literals are or hold; None where they are no paths."""

    def __str__(self) -> str:
        names = ("list" if a.name == "tuple" else a.name for a in self.alternatives)  # JSON has no tuples
        return " or ".join(dict.fromkeys(names))

    def accepts(self, source: SocketType) -> bool:
        """Whether a link may carry ``source`` to here."""
        return all(any(mine.accepts(theirs) for mine in self.alternatives) for theirs in source.alternatives)

    @property
    def differentiable(self) -> bool:
        """Whether a gradient can pass: some alternative is a tensor."""
        return any(issubclass(a.python, Tensor) for a in self.alternatives)

    def is_a(self, python: type) -> bool:
        return any(issubclass(a.python, python) for a in self.alternatives)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Reads literals strictly; only for a type whose ``is_json`` is true."""
        return TypeAdapter(_json_part(self.annotation), config=_config(self.annotation))

    def read(self, text: str) -> Any:
        """The Python value of a JSON literal.

        Raises:
            ValueError: the literal does not fit; its text says what to write.
        """
        try:
            return self.adapter.validate_json(text, strict=True)
        except ValidationError as error:
            raise ValueError(" or ".join(dict.fromkeys(map(_mend, error.errors())))) from None


_MENDS = {
    "bool_type": "write true or false",
    "int_type": "write a whole number",
    "float_type": "write a number",
    "string_type": "write a string",
    "int_parsing_size": "write a number of fewer digits",
    "tuple_type": "write a list",
    "list_type": "write a list",
    "dict_type": "write an object",
    "json_invalid": "write whole characters: half of a surrogate pair is none",
}


def _mend(error: ErrorDetails) -> str:
    text = _MENDS.get(error["type"]) or (error["msg"][0].lower() + error["msg"][1:]).replace(
        "input should", "it should"
    )
    place = [str(part) for part in error["loc"] if isinstance(part, int)]
    return f"item {'.'.join(place)}: {text}" if place else text


def _config(annotation: Any) -> ConfigDict | None:
    base = typing.get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if isinstance(base, type) and issubclass(base, BaseModel):
        return None
    return ConfigDict(allow_inf_nan=False)


def _members(annotation: Any) -> list[Any]:
    """The members of a union, through Annotated; any other annotation is its own one member."""
    base, _ = _split(annotation)
    if get_origin(base) in (Union, types.UnionType):
        return [m for a in get_args(base) for m in _members(a)]
    return [annotation]


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        return base, tuple(metadata)
    return annotation, ()


def _alternative(member: Any) -> Alternative:
    base, metadata = _split(member)
    for mark in metadata:
        if isinstance(mark, Socket):
            return Alternative(mark.name, _python(base), named=True)
    if base is Any:
        return Alternative("anything", object, named=False)
    if get_origin(base) is Literal:
        return Alternative("one of " + ", ".join(map(repr, get_args(base))), type(get_args(base)[0]), named=True)
    python = _python(base)
    return Alternative("nothing" if python is type(None) else python.__name__, python, named=False)


def _python(base: Any) -> type:
    if isinstance(base, TypeVar):
        return _python(base.__bound__ or object)
    origin = get_origin(base) or base
    if base is None:
        return type(None)
    return origin if isinstance(origin, type) else object


_JSON_TYPES = (str, int, float, bool, type(None), Enum, BaseModel)  # a path is one of the three strings above


def _is_json(member: Any) -> bool:
    base, metadata = _split(member)
    if any(isinstance(m, Socket) for m in metadata):
        return False
    origin = get_origin(base)
    if origin is Literal:
        return True
    if origin in (list, tuple, dict) or origin is Mapping:
        return all(_is_json(m) for a in get_args(base) if a is not Ellipsis for m in _members(a))
    return base is None or (isinstance(base, type) and issubclass(base, _JSON_TYPES))


def _json_part(annotation: Any) -> Any:
    """The annotation without its members that no JSON literal can be; Field's bounds are kept."""
    base, metadata = _split(annotation)
    kept = [_strict(m) for m in _members(base) if _is_json(m)]
    part = Union[tuple(kept)] if len(kept) > 1 else kept[0]
    keep = tuple(m for m in metadata if not isinstance(m, (Socket, Injected, _Mark)))
    return Annotated[(part, *keep)] if keep else part


def _strict(member: Any) -> Any:
    """The member, without pydantic's reading of true as the 1 of a Literal."""
    if get_origin(member) is not Literal or any(isinstance(choice, bool) for choice in get_args(member)):
        return member
    return Annotated[member, BeforeValidator(lambda value: object() if isinstance(value, bool) else value)]


def socket_type(annotation: Any) -> SocketType:
    """The socket type of an annotation.

    >>> str(socket_type(Loss | float))
    'Loss or float'
    >>> socket_type(float).accepts(socket_type(int))
    True
    >>> socket_type(Model).accepts(socket_type(Loss))
    False
    """
    base, metadata = _split(annotation)
    members = _members(annotation)
    injected = [m.what for a in (annotation, *(get_args(base) or ())) for m in _split(a)[1] if isinstance(m, Injected)]
    return SocketType(
        annotation=annotation,
        alternatives=tuple(_alternative(m) for m in members),
        marks=frozenset(m.name for m in metadata if isinstance(m, _Mark)),
        injected=injected[0] if injected else None,
        is_json=any(_is_json(m) and m is not type(None) for m in members),
        variable=base.__name__ if isinstance(base, TypeVar) else None,
        path=next((mark.use for mark in _marks(annotation) if isinstance(mark, _Path)), None),
    )


def _marks(annotation: Any) -> Iterator[Any]:
    """What stands beside a type, and beside every type inside it."""
    base, metadata = _split(annotation)
    yield from metadata
    for inner in get_args(base) if get_origin(base) is not Literal else ():
        yield from _marks(inner)
