"""A workflow file of ComfyUI's editor: its form, and where each of its links comes from in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from sr_pipeline.errors import Fault, GraphError
from sr_pipeline.graph import Link
from sr_pipeline.server.kept import Kept, by_number

MUTED, BYPASSED = 2, 4
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
ASIDE = frozenset({REROUTE, PRIMITIVE, "Note", "MarkdownNote"})
"""Nodes that the editor itself keeps, and no graph has."""


def _number(value: Any) -> Any:
    """Ids are numbers in one version of the editor and strings in another."""
    return str(value) if type(value) in (int, str) else value


def _link(value: Any) -> Any:
    """A link is a list in version 0.4 of the format, an object in version 1."""
    if isinstance(value, list):
        return dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), value, strict=False))
    return value


Id = Annotated[str, BeforeValidator(_number)]


class Properties(BaseModel):
    sr_pipeline: Kept = Kept()


class Slot(BaseModel):
    name: str = ""
    type: Id = "*"
    link: Id | None = None


class Node(BaseModel):
    id: Id
    type: str
    mode: int = 0
    title: str | None = None
    inputs: list[Slot] = []
    outputs: list[Slot] = []
    properties: Properties = Properties()
    widgets_values: list[Any] | dict[str, Any] | None = None
    widgets_values_named: dict[str, Any] | None = None

    @property
    def passive(self) -> bool:
        return self.mode in (MUTED, BYPASSED)


class FlowLink(BaseModel):
    id: Id
    origin_id: Id
    origin_slot: int = Field(ge=0)


class Subgraph(BaseModel):
    id: str
    nodes: list[Node] = []


class Definitions(BaseModel):
    subgraphs: list[Subgraph] = []


class _File(BaseModel):
    nodes: list[Node]
    links: list[Annotated[FlowLink | None, BeforeValidator(_link)]] = []
    definitions: Definitions = Definitions()


@dataclass(frozen=True)
class Literal:
    """What a link from a primitive node stands for."""

    value: Any


@dataclass(frozen=True)
class Flow:
    """A workflow as it was read; ``source`` names it in messages."""

    nodes: dict[str, Node]
    links: dict[str, FlowLink]
    subgraphs: dict[str, dict[str, Node]]
    source: str

    def where(self, node: Node) -> str:
        name = node.properties.sr_pipeline.id or node.title or node.type
        return f"{self.source}: node {node.id} ({name})"

    def at(self, path: str) -> Node | None:
        """The node of an id; ``12:3`` is node 3 of the subgraph that node 12 stands for."""
        nodes: Mapping[str, Node] = self.nodes
        node = None
        for part in path.split(":"):
            node = nodes.get(part)
            nodes = self.subgraphs.get(node.type, {}) if node else {}
        return node

    def origin(self, node: Node, slot: Slot) -> Link | Literal | None:
        """What an input is linked to in the end: through reroutes and bypassed nodes, as the editor goes.

        None where nothing is linked there, or only a muted node.

        Raises:
            GraphError: a link or its node is missing, or the way comes back to itself.
        """
        wanted, link_id, seen = slot.type, slot.link, set[str]()
        while link_id is not None:
            link = self.links.get(link_id)
            origin = self.nodes.get(link.origin_id) if link else None
            if link is None or origin is None or link_id in seen:
                what = f"the link {link_id} of {slot.name!r} " + ("runs in a ring" if origin else "comes from nowhere")
                raise GraphError([Fault(self.where(node), what, "link it again in the editor")])
            seen.add(link_id)
            if origin.mode == MUTED:
                return None
            if origin.mode == BYPASSED:
                link_id = _bypass(origin, link.origin_slot, wanted)
            elif origin.type == REROUTE:
                link_id = origin.inputs[0].link if origin.inputs else None
            elif origin.type == PRIMITIVE:
                return _primitive(origin)
            else:
                return None if origin.type in ASIDE else Link(origin.id, link.origin_slot)
        return None


def _primitive(node: Node) -> Literal | None:
    values = node.widgets_values
    first = next(iter(values.values() if isinstance(values, dict) else values or ()), None)
    return None if first is None else Literal(first)


def _bypass(node: Node, output: int, wanted: str) -> str | None:
    """The link that stands for an output of a bypassed node: of its input at the same place, or else of the first of
    the wanted type, or else of the first that fits."""
    if output >= len(node.outputs):
        return None
    given = node.outputs[output].type

    def fits(slot: Slot) -> bool:
        return _connects(slot.type, given) and _connects(slot.type, wanted)

    if wanted in ("*", ""):
        candidates = node.inputs[output : output + 1] or node.inputs[:1]
    else:
        same = [slot for slot in node.inputs[output : output + 1] if fits(slot)]
        exact = [slot for slot in node.inputs if slot.type == wanted]
        candidates = [*same, *exact, *filter(fits, node.inputs)]
    return candidates[0].link if candidates else None


def _connects(one: str, other: str) -> bool:
    names, others = (set(kind.lower().split(",")) for kind in (one, other))
    return bool(names & others or {"*", ""} & (names | others))


def read_flow(workflow: Mapping[str, Any], source: str = "workflow") -> Flow:
    """Read a workflow.

    Raises:
        GraphError: it has not the form of one; with all the faults.
    """
    try:
        file = _File.model_validate(dict(workflow), strict=False)
    except ValidationError as error:
        faults = [Fault(f"{source}: {'.'.join(map(str, e['loc']))}", e["msg"]) for e in error.errors()]
        raise GraphError(_with_fix(fault) for fault in faults) from None
    nodes: dict[str, Node] = {}
    for node in file.nodes:
        if node.id in nodes:
            _refuse(source, f"two nodes have the id {node.id}", "save it again in the editor")
        nodes[node.id] = node
    subgraphs = {g.id: {node.id: node for node in g.nodes} for g in file.definitions.subgraphs}
    return Flow(nodes, {link.id: link for link in file.links if link}, subgraphs, source)


def _with_fix(fault: Fault) -> Fault:
    return Fault(fault.where, fault.what[0].lower() + fault.what[1:], "save it again in the editor")


def _refuse(where: str, what: str, fix: str) -> NoReturn:
    raise GraphError([Fault(where, what, fix)])


def active(flow: Flow) -> Iterator[Node]:
    """The nodes that a graph is made of, in the order of their ids."""
    for id_ in sorted(flow.nodes, key=by_number):
        node = flow.nodes[id_]
        if node.type not in ASIDE and not node.passive:
            yield node
