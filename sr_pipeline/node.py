"""The ``@node`` mark, and what the engine reads from the function that carries it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints, overload

from pydantic.fields import FieldInfo
from torch import nn

from sr_pipeline.errors import NodeDeclarationError
from sr_pipeline.sockets import INJECTABLE, SocketType, socket_type

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class NodeOptions:
    """What ``@node`` was given; kept on the function as ``__node__``."""

    category: str = ""
    output: bool = False
    differentiable: bool = True
    recordable: bool | None = None


@overload
def node(function: C, /) -> C: ...
@overload
def node(
    *, category: str = "", output: bool = False, differentiable: bool = True, recordable: bool | None = None
) -> Callable[[C], C]: ...
def node(
    function: C | None = None,
    /,
    *,
    category: str = "",
    output: bool = False,
    differentiable: bool = True,
    recordable: bool | None = None,
) -> C | Callable[[C], C]:
    """Mark a function (or a class: a reducer) as a node, and return it unchanged.

    Args:
        category: where lists and editors show it.
        output: it is run for what it does (a file, a report), not for what it returns. A function that returns None
            is an output without saying so.
        differentiable: false where no gradient can pass through it.
        recordable: whether ``--capture`` may record one call and replay its kernels in place of later calls. By default
            it may unless the node takes Step, Rng, RunDir or Report, or is an output; true says that these matter to
            its first call alone.
    """

    def mark(target: C) -> C:
        target.__node__ = NodeOptions(category, output, differentiable, recordable)  # type: ignore[attr-defined]
        return target

    return mark if function is None else mark(function)


@dataclass(frozen=True)
class Input:
    """A socket that a graph file wires or sets."""

    name: str
    type: SocketType
    required: bool
    default: Any
    help: str

    @property
    def mutates(self) -> bool:
        return "mutates" in self.type.marks

    @property
    def backward(self) -> bool:
        return "backward" in self.type.marks

    @property
    def every(self) -> bool:
        return "every" in self.type.marks


@dataclass(frozen=True)
class Output:
    """A result of a node: by index and by name."""

    name: str
    type: SocketType


@dataclass(frozen=True)
class NodeType:
    """A node as the engine sees it: a function, its sockets, and what the plan must know of it."""

    name: str
    function: Callable[..., Any]
    kind: Literal["function", "stream", "reducer"]
    options: NodeOptions
    inputs: dict[str, Input]
    outputs: tuple[Output, ...]
    injected: dict[str, str]
    """Parameter name to what the run gives it."""
    returns_tuple: bool

    @property
    def where(self) -> str:
        return where(self.function)

    @property
    def is_output(self) -> bool:
        return self.options.output or not self.outputs

    @cached_property
    def mutations(self) -> dict[str, int]:
        """Each input that is changed in place, and the output that is the changed value."""
        names = [o.name for o in self.outputs]
        changed = [i.name for i in self.inputs.values() if i.mutates]
        if len(changed) == 1 and len(names) == 1:
            return {changed[0]: 0}
        return {name: names.index(name) for name in changed if name in names}

    @cached_property
    def backward(self) -> Input | None:
        """The input from which this node runs a backward pass, if it does."""
        return next((i for i in self.inputs.values() if i.backward), None)

    @cached_property
    def cadence(self) -> Input | None:
        return next((i for i in self.inputs.values() if i.every), None)

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""


def where(target: Callable[..., Any]) -> str:
    """The place of a node's declaration, for errors."""
    return f"{target.__module__}.{target.__qualname__}"


def class_type(target: Callable[..., Any]) -> str:
    """The name in a graph file: a function's own, a class's in snake case.

    >>> class MeanOfAll: ...
    >>> class_type(MeanOfAll)
    'mean_of_all'
    """
    name = target.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() if inspect.isclass(target) else name


def node_type(target: Callable[..., Any]) -> NodeType:
    """Read a marked function.

    Raises:
        NodeDeclarationError: an annotation is missing or cannot be a socket, or the node changes an input that it
            does not return.
    """
    place = where(target)
    call, result = _call_and_result(target, place)
    signature = inspect.signature(call)
    hints = _hints(call, place)
    documented = _documented(inspect.getdoc(target) or "")
    inputs: dict[str, Input] = {}
    injected: dict[str, str] = {}
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        _check_parameter(parameter, hints, place)
        kind = socket_type(hints[parameter.name])
        if kind.injected:
            injected[parameter.name] = kind.injected
            continue
        inputs[parameter.name] = Input(
            name=parameter.name,
            type=kind,
            required=parameter.default is parameter.empty,
            default=None if parameter.default is parameter.empty else parameter.default,
            help=_field_help(hints[parameter.name]) or documented.get(parameter.name, ""),
        )
    result_hints = _hints(result, place)
    if "return" not in result_hints:
        raise NodeDeclarationError(place, "no return annotation", "annotate what it returns, or -> None")
    returned, is_stream = _item_type(result_hints["return"])
    if inspect.isgeneratorfunction(call) and not is_stream:
        raise NodeDeclarationError(place, "a generator that is no stream", "annotate it -> Iterator[...]")
    outputs, returns_tuple = _outputs(returned)
    made = NodeType(
        name=class_type(target),
        function=target,
        kind="reducer" if inspect.isclass(target) else "stream" if is_stream else "function",
        options=getattr(target, "__node__", NodeOptions()),
        inputs=inputs,
        outputs=outputs,
        injected=injected,
        returns_tuple=returns_tuple,
    )
    _check_declaration(made)
    return made


def _call_and_result(target: Callable[..., Any], where: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if not inspect.isclass(target):
        return target, target
    for method in ("__call__", "result", "state_dict", "load_state_dict"):
        if method not in vars(target):
            raise NodeDeclarationError(
                where, f"a class that is a node is a reducer, and this one has no {method}", f"define {method}"
            )
    return vars(target)["__call__"], vars(target)["result"]


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise NodeDeclarationError(where, f"an annotation cannot be read: {error}", "import the name") from error


def _check_parameter(parameter: inspect.Parameter, hints: dict[str, Any], where: str) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise NodeDeclarationError(
            where, f"the parameter {parameter.name!r} has no fixed name", "give each input a name of its own"
        )
    if parameter.name not in hints:
        raise NodeDeclarationError(where, f"the parameter {parameter.name!r} has no annotation", "annotate it")


def _item_type(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) is Iterator:
        return get_args(annotation)[0], True
    return annotation, False


def _outputs(annotation: Any) -> tuple[tuple[Output, ...], bool]:
    if annotation is None or annotation is type(None):
        return (), False
    base = get_origin(annotation) or annotation
    if isinstance(base, type) and issubclass(base, tuple) and hasattr(base, "_fields"):
        hints = get_type_hints(base, include_extras=True)
        return tuple(Output(name, socket_type(hints[name])) for name in base._fields), True
    kind = socket_type(annotation)
    return (Output(_output_name(kind), kind),), False


def _output_name(kind: SocketType) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.alternatives[0].name).lower()


def _check_declaration(made: NodeType) -> None:
    for name in (i.name for i in made.inputs.values() if i.mutates):
        if name not in made.mutations:
            raise NodeDeclarationError(
                made.where, f"it changes {name!r} but has no output of that name", f"return {name!r} by name"
            )
        changed, output = made.inputs[name].type, made.outputs[made.mutations[name]]
        if not changed.accepts(output.type):
            what = f"it changes {name!r} but its output {output.name!r} is of type {output.type}"
            raise NodeDeclarationError(made.where, what, f"return the changed {changed}")
    if made.backward and not any(i.mutates and i.type.is_a(nn.Module) for i in made.inputs.values()):
        raise NodeDeclarationError(
            made.where, "a Backward input needs the model whose parameters it is for", "add a Mutates[Model] input"
        )
    if made.kind == "stream" and {"rng", "step"} & set(made.injected.values()):
        raise NodeDeclarationError(
            made.where, "a stream's items would depend on where the run started", "take Seed, and Seed.rng(position)"
        )
    for parameter, what in made.injected.items():
        if what not in INJECTABLE:
            raise NodeDeclarationError(made.where, f"{parameter!r} asks for {what!r}", "see sockets.INJECTABLE")


def _field_help(annotation: Any) -> str:
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, FieldInfo) and mark.description:
            return mark.description
    return ""


def _documented(doc: str) -> dict[str, str]:
    """The ``Args:`` section of a docstring: parameter to text."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    if not section:
        return {}
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
