"""What a registry holds, for people and programs: data, Markdown, and the JSON Schema of graph files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from sr_pipeline.node import Input, NodeType
from sr_pipeline.registry import Registry


def describe_node(made: NodeType) -> dict[str, Any]:
    """A node type as JSON-able data."""
    return {
        "name": made.name,
        "category": made.options.category,
        "kind": made.kind,
        "output_node": made.is_output,
        "module": made.function.__module__,
        "summary": made.summary,
        "doc": made.doc,
        "inputs": {i.name: _describe_input(i) for i in made.inputs.values()},
        "outputs": [{"name": o.name, "type": str(o.type)} for o in made.outputs],
    }


def _describe_input(input_: Input) -> dict[str, Any]:
    described: dict[str, Any] = {"type": str(input_.type), "required": input_.required, "help": input_.help}
    if not input_.required:
        described["default"] = to_jsonable_python(input_.default, fallback=str)
    if input_.type.is_json:
        described["schema"] = literal_schema(input_)
    if input_.mutates:
        described["mutates"] = True
    return described


def literal_schema(input_: Input) -> dict[str, Any]:
    """The JSON Schema of an input's literals."""
    adapter: TypeAdapter[Any] = input_.type.adapter
    return {k: v for k, v in adapter.json_schema().items() if k != "title"}


def markdown(registry: Registry) -> str:
    """The node reference: a section a category, a table a node."""
    lines = ["# Nodes", "", "Written by `sr-pipeline nodes --markdown`; do not edit.", ""]
    for category in sorted({made.options.category for made in registry.values()}):
        lines += [f"## {category or 'other'}", ""]
        for name in sorted(n for n, made in registry.items() if made.options.category == category):
            lines += _markdown_node(registry[name])
    return "\n".join(lines)


def _markdown_node(made: NodeType) -> list[str]:
    body = re.split(r"^(?:Args|Raises):$", made.doc, maxsplit=1, flags=re.MULTILINE)[0].strip()
    raised = re.search(r"^Raises:\n((?: .*\n?)+)", made.doc, re.MULTILINE)
    outputs = ", ".join(f"{o.name}: {o.type}" for o in made.outputs) or "nothing"
    lines = [f"### {made.name}", "", f"`{made.where}`, a {made.kind}, gives {outputs}.", "", body, ""]
    if made.inputs:
        lines += ["| input | type | default | meaning |", "|---|---|---|---|"]
        lines += [_markdown_input(i) for i in made.inputs.values()]
        lines.append("")
    if raised:
        lines += [f"Raises {' '.join(raised[1].split())}", ""]
    return lines


def _markdown_input(input_: Input) -> str:
    kind = f"changes {input_.type}" if input_.mutates else str(input_.type)
    default = "needed" if input_.required else f"`{input_.default}`"
    return f"| {input_.name} | {kind.replace('|', 'or')} | {default} | {input_.help.replace('|', 'or')} |"


def json_schema(registry: Registry) -> dict[str, Any]:
    """The JSON Schema of graph files over these nodes, so that an editor completes and checks them."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sr_pipeline graph",
        "description": "Node ids, their class_type, their inputs (ComfyUI's API format).",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"$ref": "#/$defs/node"},
        "$defs": {
            "link": {
                "description": "[node id, output index or name]",
                "type": "array",
                "prefixItems": [{"type": "string"}, {"type": ["integer", "string"], "minimum": 0}],
                "minItems": 2,
                "maxItems": 2,
            },
            "node": {
                "type": "object",
                "required": ["class_type"],
                "properties": {"class_type": {"enum": sorted(registry)}},
                "oneOf": [_node_schema(registry[name]) for name in sorted(registry)],
            },
        },
    }


def _node_schema(made: NodeType) -> dict[str, Any]:
    return {
        "title": made.name,
        "description": made.summary,
        "properties": {
            "class_type": {"const": made.name},
            "inputs": {
                "type": "object",
                "properties": {i.name: _input_schema(i) for i in made.inputs.values()},
                "required": [i.name for i in made.inputs.values() if i.required],
                "additionalProperties": False,
            },
            "_meta": {"type": "object"},
        },
        "required": ["class_type", *(["inputs"] if any(i.required for i in made.inputs.values()) else [])],
        "additionalProperties": False,
    }


def _input_schema(input_: Input) -> dict[str, Any]:
    description = f"{input_.type}. {input_.help}".strip()
    if not input_.type.is_json:
        return {"description": description, "$ref": "#/$defs/link"}
    literal = _wrapped(literal_schema(input_))
    described = {"description": description, "anyOf": [literal, {"$ref": "#/$defs/link"}]}
    if not input_.required:
        described["default"] = to_jsonable_python(input_.default, fallback=str)
    return described


def _wrapped(literal: Mapping[str, Any]) -> dict[str, Any]:
    """A list is written ``{"__value__": [...]}``."""
    if literal.get("type") != "array":
        return dict(literal)
    return {"type": "object", "properties": {"__value__": dict(literal)}, "required": ["__value__"]}
