"""The nodes as ComfyUI's front end and its clients read them: ``/object_info``."""

from __future__ import annotations

from typing import Any

from sr_pipeline.node import NodeType
from sr_pipeline.registry import Registry
from sr_pipeline.server.widgets import in_order, input_spec, output_name


def object_info(registry: Registry) -> dict[str, Any]:
    """All nodes by name."""
    return {name: node_info(made, registry) for name, made in registry.items()}


def node_info(made: NodeType, registry: Registry) -> dict[str, Any]:
    """One node: its sockets' types, bounds, choices and help."""
    inputs: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for i in in_order(made):
        inputs["required" if i.required else "optional"][i.name] = input_spec(i, registry)
    return {
        "input": inputs,
        "input_order": {group: list(found) for group, found in inputs.items()},
        "output": [output_name(o.type, registry) for o in made.outputs],
        "output_is_list": [False] * len(made.outputs),
        "output_name": [o.name for o in made.outputs],
        "output_tooltips": [str(o.type) for o in made.outputs],
        "name": made.name,
        "display_name": made.name.replace("_", " "),
        "description": made.summary,
        "python_module": f"custom_nodes.{made.function.__module__.partition('.')[0]}",
        "category": made.options.category or "other",
        "output_node": made.is_output,
    }
