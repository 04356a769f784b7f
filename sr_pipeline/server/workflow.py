"""Workflows of ComfyUI's editor: made of graphs, laid out, and read back as the same graphs; see ``kept``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sr_pipeline.check import Wiring, check
from sr_pipeline.errors import Fault, GraphError
from sr_pipeline.graph import Entry, Graph, Link
from sr_pipeline.node import Input, NodeType
from sr_pipeline.registry import Registry
from sr_pipeline.server.flow import Flow, Literal, Node, active, read_flow
from sr_pipeline.server.kept import Kept, remembered, restored, shown_title
from sr_pipeline.server.layout import Size, positions
from sr_pipeline.server.subgraphs import flattened
from sr_pipeline.server.widgets import default_literal, in_order, input_spec, output_name, read, shown, widget
from sr_pipeline.shipped import shipped

TITLE, ROW, CHARACTER = 30, 24, 7.5
"""Pixels that the editor needs for a title, a socket or widget, and a character."""
WIDTHS = 240, 460
PICTURE = 300
"""Room below an output node, where the editor shows its pictures and texts."""
STREAM, CHANGES, OUTPUT = ("#232", "#353"), ("#322", "#533"), ("#223", "#335")
"""Colours, of title and body, of what gives the items, what changes a value in place, and what a run is for."""


@dataclass(frozen=True)
class Posted:
    """A prompt that a client posted, as a graph, and the client's id of each of its nodes."""

    graph: Graph
    ids: dict[str, str]


def templates() -> dict[str, Graph]:
    """The shipped graphs by name."""
    return {name: Graph.load(path) for name, path in shipped().items()}


def to_workflow(graph: Graph, registry: Registry) -> dict[str, Any]:
    """The workflow that shows a graph, and from which ``to_api`` makes the same graph.

    Raises:
        GraphError: the graph is faulty.
    """
    wiring = check(graph, registry)
    nodes = _nodes(wiring, registry)
    sizes = {id_: _room(node, wiring.types[id_]) for id_, node in nodes.items()}
    links = [(value.node, id_) for id_, given in wiring.links.items() for value in given.values()]
    for id_, (x, y) in positions(sizes, links).items():
        nodes[id_]["pos"] = [x, y + TITLE]
    wires = _wires(wiring, nodes)
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(wires),
        "nodes": list(nodes.values()),
        "links": wires,
        "groups": [],
        "config": {},
        "extra": {"sr_pipeline": {"graph": Path(graph.source).stem}},
        "version": 0.4,
    }


def to_api(workflow: Mapping[str, Any], registry: Registry, source: str = "workflow") -> Graph:
    """The graph that the editor would post: without what is muted, bypassed, a reroute, a primitive or a note, and with
    what subgraphs hold in their place.

    Raises:
        GraphError: it is no workflow, or a subgraph is missing or holds itself; with all the faults of its form.
    """
    flow = flattened(read_flow(workflow, source), workflow)
    entries, faults = {}, list[Fault]()
    for node in active(flow):
        try:
            inputs = _inputs(flow, node, registry.get(node.type))
            entries[node.id] = Entry(node.type, inputs, {} if node.title is None else {"title": node.title})
        except GraphError as error:
            faults += error.faults
    if faults:
        raise GraphError(faults)
    graph, _ = restored(entries, {id_: node.properties.sr_pipeline for id_, node in flow.nodes.items()}, registry)
    return Graph.parse(graph.to_json(), source)  # which reads what a file may hold, and nothing else


def read_prompt(prompt: Mapping[str, Any], workflow: Mapping[str, Any] | None, registry: Registry) -> Posted:
    """The graph of a posted prompt. With the workflow that the editor posts beside it, or what its export keeps, its
    nodes have their ids again, and their widgets' values are literals.

    Raises:
        GraphError: it is no graph, or the workflow is none; with all the faults of its form.
    """
    graph = Graph.parse(_json(prompt, "prompt"), "prompt")
    if workflow is not None:
        flow = read_flow(workflow)
        kept = {id_: node.properties.sr_pipeline for id_ in graph.nodes if (node := flow.at(id_))}
    elif (exported := _exported(graph)) is not None:
        kept = exported
    else:
        return Posted(graph, {id_: id_ for id_ in graph.nodes})
    for entry in graph.nodes.values():
        made = registry.get(entry.class_type)
        entry.inputs = {n: v if isinstance(v, Link) else _literal(made, n, v) for n, v in entry.inputs.items()}
    return Posted(*restored(graph.nodes, kept, registry))


def from_export(graph: Graph, registry: Registry) -> Graph:
    """The graph that the editor's Export (API) wrote, with our ids again; any other graph as it is.

    Raises:
        GraphError: what a node says that it remembers has not the form of that.
    """
    if _exported(graph) is None:
        return graph
    return replace(graph, nodes=read_prompt(json.loads(graph.to_json()), None, registry).graph.nodes)


def _exported(graph: Graph) -> dict[str, Kept] | None:
    """What nodes remember, where ``static/export.js`` put that into their ``_meta``; None where it did so nowhere."""
    found = {id_: e.meta["sr_pipeline"] for id_, e in graph.nodes.items() if "sr_pipeline" in e.meta}
    try:
        return {id_: Kept.model_validate(told) for id_, told in found.items()} or None
    except ValidationError as error:
        what = f"_meta.sr_pipeline: {error.errors()[0]['msg']}"
        raise GraphError([Fault(graph.source, what, "export it again in the editor")]) from None


def _nodes(wiring: Wiring, registry: Registry) -> dict[str, dict[str, Any]]:
    """The nodes, with their sockets not yet linked."""
    types = {made.name: made for made in wiring.types.values()}
    kinds = {name: {i.name: input_spec(i, registry)[0] for i in made.inputs.values()} for name, made in types.items()}
    given = {name: [output_name(o.type, registry) for o in made.outputs] for name, made in types.items()}
    nodes = {}
    for number, (id_, entry) in enumerate(wiring.graph.nodes.items(), 1):
        made = wiring.types[id_]
        values = {i.name: shown(i, _given(entry, i)) for i in in_order(made) if widget(i)}
        nodes[id_] = {
            "id": number,
            "type": made.name,
            "pos": [0, 0],
            "size": list(_size(shown_title(id_, entry.meta), made, values)),
            "flags": {},
            "order": number - 1,
            "mode": 0,
            **_colours(made),
            "inputs": [_slot(i, kinds[made.name][i.name]) for i in _sockets(made, entry)],
            "outputs": [
                {"name": o.name, "type": kind, "links": None, "slot_index": n}
                for n, (o, kind) in enumerate(zip(made.outputs, given[made.name], strict=True))
            ],
            "title": shown_title(id_, entry.meta),
            "properties": {"Node name for S&R": made.name, "sr_pipeline": remembered(id_, entry, made)},
            "widgets_values": list(values.values()),
            "widgets_values_named": values,
        }
    return nodes


def _colours(made: NodeType) -> dict[str, str]:
    found = STREAM if made.kind == "stream" else CHANGES if made.mutations else OUTPUT if made.is_output else ()
    return dict(zip(("color", "bgcolor"), found, strict=False))


def _given(entry: Entry, input_: Input) -> Any:
    value = entry.inputs.get(input_.name, default_literal(input_))
    return default_literal(input_) if isinstance(value, Link) else value


def _sockets(made: NodeType, entry: Entry) -> list[Input]:
    """In the editor's order: the inputs without a widget, then the widgets that are linked."""
    linked = [i for i in in_order(made) if widget(i) and isinstance(entry.inputs.get(i.name), Link)]
    return [*(i for i in in_order(made) if not widget(i)), *linked]


def _slot(input_: Input, kind: str | list[Any]) -> dict[str, Any]:
    named = {"name": input_.name, "type": kind if isinstance(kind, str) else "COMBO", "link": None}
    return {**named, "widget": {"name": input_.name}} if widget(input_) else named


def _wires(wiring: Wiring, nodes: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """The links, told to the sockets at both of their ends."""
    wires: list[list[Any]] = []
    for id_, given in wiring.links.items():
        for place, slot in enumerate(nodes[id_]["inputs"]):
            if value := given.get(slot["name"]):
                slot["link"] = len(wires) + 1
                output = nodes[value.node]["outputs"][value.output]
                output["links"] = [*(output["links"] or ()), slot["link"]]
                ends = nodes[value.node]["id"], value.output, nodes[id_]["id"], place
                wires.append([slot["link"], *ends, output["type"]])
    return wires


def _size(title: str, made: NodeType, values: dict[str, Any]) -> Size:
    """A little more than the least that the editor gives a node."""
    sockets = [i.name for i in in_order(made) if not widget(i)]
    rows = [f"{name} {value}" for name, value in values.items()]
    rows += [f"{i} {o}" for i, o in zip_longest(sockets, (o.name for o in made.outputs), fillvalue="")]
    width = max(map(len, [title, *rows]), default=0) * CHARACTER + 60
    height = max(len(sockets), len(made.outputs)) * ROW + len(values) * ROW + 12
    return Size(round(min(max(width, WIDTHS[0]), WIDTHS[1])), height)


def _room(node: dict[str, Any], made: NodeType) -> Size:
    width, height = node["size"]
    return Size(width, TITLE + height + (PICTURE if made.is_output else 0))


def _inputs(flow: Flow, node: Node, made: NodeType | None) -> dict[str, Any]:
    """The values of a node's widgets, and on top of them its links."""
    found = {}
    for name, value in _widget_values(flow, node, made).items():
        found[name] = _literal(made, name, value)
    for slot in node.inputs:
        origin = flow.origin(node, slot)
        if isinstance(origin, Literal):
            found[slot.name] = _literal(made, slot.name, origin.value)
        elif origin is not None:
            found[slot.name] = origin
    return found


def _literal(made: NodeType | None, name: str, value: Any) -> Any:
    return read(made.inputs[name], value) if made and name in made.inputs else value


def _widget_values(flow: Flow, node: Node, made: NodeType | None) -> dict[str, Any]:
    """By name, which newer editors write; older ones write a list in the order of the widgets."""
    values = node.widgets_values
    named = node.widgets_values_named if node.widgets_values_named is not None else values
    if isinstance(named, dict):
        return {name: value for name, value in named.items() if not name.startswith("$$")}  # the editor's own previews
    names = [i.name for i in in_order(made) if widget(i)] if made else []
    if len(values or ()) != len(names):
        what = f"found {len(values or ())} widget values, wanted {len(names)}: {', '.join(names)}"
        raise GraphError([Fault(flow.where(node), what, "open it in the editor and save it again")])
    return dict(zip(names, values or (), strict=True))


def _json(value: Any, source: str) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        raise GraphError([Fault(source, "nested too deeply", "a graph is an object of nodes by id")]) from None
