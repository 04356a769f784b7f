"""Subgraphs of a workflow put in place of the nodes that stand for them, as the editor does when it posts.

Node 3 within the instance 12 becomes ``12:3``. What crosses an instance's border becomes what a flow knows already: a
linked input or output is a reroute there, and a value that the instance gives to a widget within is a primitive node.
A muted or bypassed instance is left closed: that goes for all within.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from pydantic import BaseModel, Field, ValidationError

from sr_pipeline.errors import Fault, GraphError
from sr_pipeline.server.flow import PRIMITIVE, REROUTE, Flow, FlowLink, Id, Node, Slot

INPUTS, OUTPUTS = "-10", "-20"
"""Ids, within a subgraph, of its borders."""
OWN = "-1"
"""What ``proxyWidgets`` has instead of a node's id where it names an input of the subgraph itself."""
DEEPEST, MOST = 100, 10_000
"""How deep subgraphs may be nested, and how many instances there may be in all."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
"""What the editor names a subgraph by, and no node type."""


class _Wire(FlowLink):
    target_id: Id = ""
    target_slot: int = 0


class _Socket(Slot):
    widget: Any = None


class _Promoting(BaseModel):
    proxies: list[tuple[Id, str] | tuple[Id, str, Any]] = Field(default=[], validation_alias="proxyWidgets")


class _Host(BaseModel):
    """What an instance says of the widgets that it shows for those within."""

    inputs: list[_Socket] = []
    properties: _Promoting = _Promoting()


class _Level(BaseModel):
    """A subgraph, or the workflow around them all."""

    id: str = ""
    nodes: list[Node] = []
    hosts: list[_Host] = Field(default=[], validation_alias="nodes")
    links: list[_Wire] = []
    inputs: list[Slot] = []
    outputs: list[Slot] = []


class _Definitions(BaseModel):
    subgraphs: list[_Level] = []


class _File(BaseModel):
    hosts: list[_Host] = Field(validation_alias="nodes")
    definitions: _Definitions = _Definitions()


def flattened(flow: Flow, workflow: Mapping[str, Any]) -> Flow:
    """The flow of a workflow without its subgraphs.

    Raises:
        GraphError: a subgraph is missing, holds itself, or has not the form of one.
    """
    try:
        file = _File.model_validate(dict(workflow))
    except ValidationError as error:
        told = [(".".join(map(str, e["loc"])), e["msg"][0].lower() + e["msg"][1:]) for e in error.errors()]
        again = "save it again in the editor"
        raise GraphError(Fault(f"{flow.source}: {at}", what, again) for at, what in told) from None
    links = [_Wire(id=link.id, origin_id=link.origin_id, origin_slot=link.origin_slot) for link in flow.links.values()]
    top = _Level().model_copy(update={"nodes": list(flow.nodes.values()), "hosts": file.hosts, "links": links})
    flat = _Flat(flow, {level.id: level for level in file.definitions.subgraphs})
    flat.lay(top, "", ())
    return replace(flow, nodes=flat.nodes, links=flat.links, subgraphs={})


@dataclass
class _Flat:
    flow: Flow
    definitions: dict[str, _Level]
    nodes: dict[str, Node] = field(default_factory=dict)
    links: dict[str, FlowLink] = field(default_factory=dict)
    opened: int = 0

    def lay(self, level: _Level, path: str, inside: tuple[str, ...]) -> None:
        """Put the nodes and links of a level down, and then what is in its instances.

        Args:
            path: what the ids of the level begin with.
            inside: the ids of the subgraphs around.
        """
        opened = set()
        for node, host in zip(level.nodes, level.hosts, strict=True):
            placed = self._placed(node, path)
            if placed.passive or not self._is_instance(placed):
                self._add(placed)
            else:
                opened.add(node.id)
                self._open(placed, host, inside)
        for link in level.links:
            origin, slot = f"{path}{link.origin_id}", link.origin_slot
            if link.origin_id in opened:
                origin, slot = f"{origin}:{OUTPUTS}:{slot}", 0
            elif path and link.origin_id == INPUTS:
                origin, slot = f"{origin}:{slot}", 0
            self._link(path + link.id, origin, slot)

    def _placed(self, node: Node, path: str) -> Node:
        inputs = [s if s.link is None else s.model_copy(update={"link": path + s.link}) for s in node.inputs]
        return node.model_copy(update={"id": path + node.id, "inputs": inputs})

    def _is_instance(self, node: Node) -> bool:
        if node.type not in self.definitions and UUID.fullmatch(node.type):
            self._refuse(node, f"its subgraph {node.type} is not in the file", "save it again in the editor")
        return node.type in self.definitions

    def _open(self, instance: Node, host: _Host, inside: tuple[str, ...]) -> None:
        self.opened += 1
        if instance.type in inside:
            self._refuse(instance, "its subgraph holds itself", "take the subgraph out of itself")
        if len(inside) >= DEEPEST or self.opened > MOST:
            what = f"subgraphs are nested more than {DEEPEST} deep, or are more than {MOST}"
            self._refuse(instance, what, "unpack some in the editor")
        level, path = self.definitions[instance.type], f"{instance.id}:"
        values = _promoted(instance, host, level)
        self.lay(_overridden(level, values), path, (*inside, instance.type))
        linked = {slot.name: slot.link for slot in instance.inputs}
        for n, slot in enumerate(level.inputs):
            self._border(f"{path}{INPUTS}:{n}", linked.get(slot.name), values.get((OWN, slot.name)))
        ends = {wire.target_slot: path + wire.id for wire in reversed(level.links) if wire.target_id == OUTPUTS}
        for n in range(len(level.outputs)):
            self._border(f"{path}{OUTPUTS}:{n}", ends.get(n))

    def _border(self, id_: str, link: str | None, value: Any = None) -> None:
        if link is None and value is not None:
            self._add(Node(id=id_, type=PRIMITIVE, widgets_values=[value]))
        else:
            self._add(Node(id=id_, type=REROUTE, inputs=[Slot(link=link)]))

    def _add(self, node: Node) -> None:
        if node.id in self.nodes:
            self._refuse(node, f"two nodes have the id {node.id}", "save it again in the editor")
        self.nodes[node.id] = node

    def _link(self, id_: str, origin: str, slot: int) -> None:
        self.links[id_] = FlowLink(id=id_, origin_id=origin, origin_slot=slot)

    def _refuse(self, node: Node, what: str, fix: str) -> NoReturn:
        raise GraphError([Fault(self.flow.where(node), what, fix)])


def _promoted(instance: Node, host: _Host, level: _Level) -> dict[tuple[str, str], Any]:
    """What an instance gives to widgets, by the node and the name of each; by ``OWN`` for the subgraph's inputs."""
    values, named = instance.widgets_values, instance.widgets_values_named
    if proxies := [(proxy[0], proxy[1]) for proxy in host.properties.proxies]:
        given = dict(zip(proxies, values if isinstance(values, list) else (), strict=False))
        return {_target(level, *key): value for key, value in given.items()}
    if named is None and isinstance(values, dict):
        named = values
    elif named is None:
        shown = [slot.name for slot in host.inputs if slot.widget is not None]
        named = dict(zip(shown, values or (), strict=False))
    return {(OWN, name): value for name, value in named.items()}


def _target(level: _Level, id_: str, name: str) -> tuple[str, str]:
    """The subgraph's input that a widget within is linked to, or else the widget itself."""
    for node in level.nodes:
        link = next((s.link for s in node.inputs if node.id == id_ and s.name == name), None)
        for wire in level.links:
            if wire.id == link and wire.origin_id == INPUTS and wire.origin_slot < len(level.inputs):
                return OWN, level.inputs[wire.origin_slot].name
    return id_, name


def _overridden(level: _Level, values: Mapping[tuple[str, str], Any]) -> _Level:
    """The level with a primitive node linked to each widget that is given a value and has no link."""
    nodes, hosts, links = list(level.nodes), list(level.hosts), list(level.links)
    places = {node.id: n for n, node in enumerate(nodes)}
    for (id_, name), value in values.items():
        if id_ not in places or value is None:
            continue
        node = nodes[places[id_]]
        if node.type == PRIMITIVE:
            nodes[places[id_]] = node.model_copy(update={"widgets_values": [value]})
        elif not any(slot.name == name and slot.link is not None for slot in node.inputs):
            giver = f"{id_}:{OWN}:{name}"
            inputs = [*(slot for slot in node.inputs if slot.name != name), Slot(name=name, link=giver)]
            nodes[places[id_]] = node.model_copy(update={"inputs": inputs})
            nodes.append(Node(id=giver, type=PRIMITIVE, widgets_values=[value]))
            hosts.append(_Host())
            links.append(_Wire(id=giver, origin_id=giver, origin_slot=0))
    return level.model_copy(update={"nodes": nodes, "hosts": hosts, "links": links})
