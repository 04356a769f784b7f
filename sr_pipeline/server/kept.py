"""What a node of ComfyUI's editor remembers of the graph that it was made of, and the graph made again from that.

The editor numbers its nodes, fills in every widget and gives every node a title. So each node keeps, under
``properties.sr_pipeline``, its id, its ``_meta``, the inputs that its graph leaves to their defaults, and the literals
for which the editor has no widget. The order of the graph is the order of the editor's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from pydantic import BaseModel

from sr_pipeline.graph import Entry, Graph, Link
from sr_pipeline.node import Input, NodeType
from sr_pipeline.registry import Registry
from sr_pipeline.server.widgets import default_literal, widget


class Kept(BaseModel):
    """What one node remembers; nothing, if it is new."""

    id: str = ""
    meta: dict[str, Any] = {}
    unset: list[str] = []
    literals: dict[str, Any] = {}


def remembered(id_: str, entry: Entry, made: NodeType) -> dict[str, Any]:
    """What a node of the editor is to remember of its graph, as ``Kept`` reads it."""
    found = {
        "id": id_,
        "meta": entry.meta,
        "unset": [i.name for i in made.inputs.values() if widget(i) and i.name not in entry.inputs],
        "literals": {
            i.name: entry.inputs[i.name]
            for i in made.inputs.values()
            if i.name in entry.inputs and not widget(i) and not isinstance(entry.inputs[i.name], Link)
        },
    }
    return {name: value for name, value in found.items() if value}


def restored(
    entries: Mapping[str, Entry], kept: Mapping[str, Kept], registry: Registry
) -> tuple[Graph, dict[str, str]]:
    """The graph of the editor's nodes as they remember it, and the editor's id of each of its nodes.

    Args:
        entries: the editor's nodes by its ids, with links to these.
        kept: what each of them remembers, where it does.
    """
    order = sorted(entries, key=by_number)
    known = {id_: kept.get(id_, Kept()) for id_ in order}
    names = _names({id_: (known[id_].id, entries[id_].class_type) for id_ in order})
    nodes = {}
    for id_ in order:
        entry, made = entries[id_], registry.get(entries[id_].class_type)
        inputs = {**known[id_].literals, **{name: _renamed(value, names) for name, value in entry.inputs.items()}}
        unset = {name for name in known[id_].unset if made and _is_default(made.inputs.get(name), inputs.get(name))}
        order_of_type = [name for name in (made.inputs if made else ()) if name in inputs]
        inputs = {name: inputs[name] for name in dict.fromkeys([*order_of_type, *inputs]) if name not in unset}
        nodes[names[id_]] = Entry(entry.class_type, inputs, _meta(entry, known[id_]))
    return Graph(nodes), {names[id_]: id_ for id_ in order}


def _names(nodes: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Our id of each of the editor's: the one that the node remembers, if no earlier node does (one of them is a copy);
    for a new node one after its type, and an id that is a word as it is."""
    names: dict[str, str] = {}
    taken = {kept: id_ for id_, (kept, _) in reversed(list(nodes.items())) if kept}
    for id_, (kept, kind) in nodes.items():
        word = "" if all(map(is_number, id_.split(":"))) else id_
        names[id_] = name = kept if taken.get(kept) == id_ else _free(kept or word or kind, taken)
        taken[name] = id_
    return names


def _free(name: str, taken: Mapping[str, str]) -> str:
    numbered = (name if number == 1 else f"{name}_{number}" for number in count(1))
    return next(found for found in numbered if found not in taken)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    return Link(names.get(value.node, value.node), value.output) if isinstance(value, Link) else value


def _is_default(input_: Input | None, value: Any) -> bool:
    return bool(input_ and not input_.required and not isinstance(value, Link) and value == default_literal(input_))


def _meta(entry: Entry, kept: Kept) -> dict[str, Any]:
    """What the node remembers, under the title that it has now."""
    title = entry.meta.get("title")
    if title in (None, shown_title(kept.id, kept.meta)):
        return kept.meta
    default = not kept.id and isinstance(title, str) and title.replace(" ", "_") == entry.class_type
    return kept.meta if default else {**kept.meta, "title": title}


def shown_title(id_: str, meta: Mapping[str, Any]) -> str:
    """A node's title in the editor: its own, or else its id."""
    title = meta.get("title")
    return title if isinstance(title, str) and title else id_


def by_number(id_: str) -> list[tuple[bool, int]]:
    """Sorts ids as the numbers that they are, ``12:3`` after ``12:2`` and before ``13``; words come last, as they come.

    >>> sorted(["10", "9", "9:10", "9:2", "y", "x"], key=by_number)
    ['9', '9:2', '9:10', '10', 'y', 'x']
    """
    return [(False, int(part)) if is_number(part) else (True, 0) for part in id_.split(":")]


def is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < 20
