"""A node's inputs as the editor has them: which are widgets, of which kind, and how a literal is shown in one.

The editor knows whole numbers, numbers, switches, lists of choices and text. Any other literal (a list, null, a number
or a word) is JSON in a text widget; a string that reads as no other JSON stands there bare.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from sr_pipeline.catalogue import literal_schema
from sr_pipeline.jsontext import read_json
from sr_pipeline.node import Input, NodeType
from sr_pipeline.registry import Registry
from sr_pipeline.sockets import SocketType

_JSON_TYPES = (str, int, float, bool, type(None), list, tuple, dict, Mapping, Path, Enum, BaseModel)
_SOCKETS = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING", Path: "STRING", tuple: "LIST", type(None): ""}
_KINDS = {"boolean": "BOOLEAN", "integer": "INT", "number": "FLOAT", "string": "STRING"}
_WIDEST = {"INT": 2**53 - 1, "FLOAT": 1e300}
"""Bounds where the node has none; the editor's own are 0 and 2048."""


class Widget(NamedTuple):
    """What the editor shows for an input: ``kind`` INT, FLOAT, BOOLEAN, STRING, COMBO, or JSON (in a text widget)."""

    kind: str
    schema: dict[str, Any]


def widget(input_: Input) -> Widget | None:
    """The widget of an input; None for one that can only be linked."""
    if not input_.type.is_json or not all(issubclass(a.python, _JSON_TYPES) for a in input_.type.alternatives):
        return None
    schema = literal_schema(input_)
    if choices := _choices(schema):
        return Widget("COMBO", {**schema, "enum": choices})
    return Widget("JSON" if "enum" in schema else _KINDS.get(schema.get("type", ""), "JSON"), schema)


def _choices(schema: Mapping[str, Any]) -> list[str | int | float]:
    found = schema.get("enum", [schema["const"]] if "const" in schema else [])
    one_kind = all(isinstance(c, str) for c in found) or all(type(c) in (int, float) for c in found)
    return list(found) if one_kind else []


def in_order(made: NodeType) -> list[Input]:
    """A node's inputs in the editor's order: what it needs, then the rest."""
    return sorted(made.inputs.values(), key=lambda i: not i.required)


def default_literal(input_: Input) -> Any:
    """The default of an input as a graph would write it; null where there is none, or one that JSON cannot write."""
    literal = None if input_.required else to_jsonable_python(input_.default, fallback=str)
    try:
        json.dumps(literal, allow_nan=False)
    except ValueError:
        return None
    return literal


def shown(input_: Input, literal: Any) -> Any:
    """A literal of a graph as the input's widget holds it."""
    found = widget(input_)
    if found is None or found.kind != "JSON":
        return literal
    return literal if isinstance(literal, str) and read(input_, literal) == literal else json.dumps(literal)


def read(input_: Input, value: Any) -> Any:
    """The literal that a widget's value stands for: of ``shown``, the reverse."""
    found = widget(input_)
    if found is None or found.kind != "JSON" or not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except (ValueError, RecursionError):
        return value


def input_spec(input_: Input, registry: Registry) -> list[Any]:
    """An input as ``object_info`` has it: ``[type or choices, options]``."""
    options: dict[str, Any] = {"tooltip": input_.help} if input_.help else {}
    found = widget(input_)
    if found is None:
        return [socket_name(input_.type, registry), {**options, "forceInput": True}]
    default = default_literal(input_)
    if default is not None or (not input_.required and input_.default is None):
        options["default"] = shown(input_, default)
    if found.kind == "COMBO":
        return [found.schema["enum"], options]
    if found.kind == "JSON":
        return [socket_name(input_.type, registry), {**options, "widgetType": "STRING"}]
    if found.kind in _WIDEST:
        options |= _bounds(found)
    if found.kind == "FLOAT":
        options["step"] = _fineness(options.get("default"))
    if found.kind == "INT":
        options["control_after_generate"] = False
    return [found.kind, options]


def _bounds(found: Widget) -> dict[str, Any]:
    """Exclusive bounds are given as they are: the value itself is then refused by the check."""
    schema, widest = found.schema, _WIDEST[found.kind]
    low = schema.get("minimum", schema.get("exclusiveMinimum", -widest))
    high = schema.get("maximum", schema.get("exclusiveMaximum", widest))
    return {"min": low, "max": high}


def _fineness(default: float | None) -> float:
    """The editor rounds what is typed to this: a hundredth of the default's power of ten, at most 1e-4."""
    power = math.floor(math.log10(abs(default))) - 2 if default else -4
    return float(f"1e{min(power, -4)}")


def socket_name(kind: SocketType, registry: Registry) -> str:
    """The socket's type in the editor, which connects two where a name of one is a name of the other.

    An input is named after all that it takes (a Model also takes a Generator), and so is an output whose type is that
    of what is linked to its node.
    """
    outputs = {a for made in registry.values() for o in made.outputs for a in o.type.alternatives}
    names = {
        _name(theirs.python, theirs.name)
        for mine in kind.alternatives
        for theirs in (mine, *filter(mine.accepts, outputs))
    }
    return ",".join(sorted(names - {""})) or "*"


def output_name(kind: SocketType, registry: Registry) -> str:
    """The name of an output's socket."""
    if kind.variable:
        return socket_name(kind, registry)
    return ",".join(sorted({_name(a.python, a.name) for a in kind.alternatives} - {""})) or "*"


def _name(python: type, name: str) -> str:
    if python is object:
        return "*"
    plain = name.startswith("one of ") or name == python.__name__
    return _SOCKETS.get(python, name.upper()) if plain or python is type(None) else name.upper()
