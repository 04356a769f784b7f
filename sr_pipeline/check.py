"""Check a graph against a registry: every fault of its wiring at once, or the wiring itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from sr_pipeline.digraph import turned
from sr_pipeline.errors import MAX_FAULTS, Fault, GraphError, UsageError, nearest, quoted
from sr_pipeline.graph import Entry, Graph, Link, as_link
from sr_pipeline.node import Input, NodeType
from sr_pipeline.paths import no_name, out_of_reach
from sr_pipeline.registry import Registry
from sr_pipeline.sockets import SocketType


class Value(NamedTuple):
    """What output ``output`` of node ``node`` carries."""

    node: str
    output: int


@dataclass(frozen=True)
class Wiring:
    """A checked graph: each node's type, its read literals, its resolved links, and what it reads of."""

    graph: Graph
    types: dict[str, NodeType]
    literals: dict[str, dict[str, Any]]
    links: dict[str, dict[str, Value]]
    value_types: dict[Value, SocketType]
    predecessors: dict[str, list[str]]
    """Each node, in the order of the file, and those whose outputs it reads."""
    order: list[str]
    """All nodes, each after its predecessors."""

    @cached_property
    def successors(self) -> dict[str, list[str]]:
        return turned(self.predecessors)

    def where(self, node: str, input_: str = "") -> str:
        return self.graph.where(node, input_)

    def setting(self, node: str, input_: Input) -> Any:
        """The literal of an input, or its default."""
        return self.literals[node].get(input_.name, input_.default)


def check(graph: Graph, registry: Registry) -> Wiring:
    """Read a graph's literals and links as its nodes' types want them.

    Raises:
        GraphError: with every fault found, in the order of the file.
    """
    checker = _Checker(graph, registry)
    checker.check_types()
    checker.check_inputs()
    checker.check_cycles()
    checker.check_link_types()
    checker.check_one_stream()
    if checker.faults:
        raise checker.error()
    return Wiring(
        graph, checker.types, checker.literals, checker.links, checker.value_types, checker.predecessors, checker.order
    )


class _Checker:
    def __init__(self, graph: Graph, registry: Registry) -> None:
        self.graph, self.registry = graph, registry
        self.faults: list[tuple[str, Fault]] = []
        self.types: dict[str, NodeType] = {}
        self.literals: dict[str, dict[str, Any]] = {}
        self.links: dict[str, dict[str, Value]] = {}
        self.value_types: dict[Value, SocketType] = {}
        self.predecessors = {
            id_: list(
                dict.fromkeys(v.node for v in entry.inputs.values() if isinstance(v, Link) and v.node in graph.nodes)
            )
            for id_, entry in graph.nodes.items()
        }
        self.order = list(graph.nodes)

    def fault(self, node: str, input_: str, what: str, fix: str) -> None:
        self.faults.append((node, Fault(self.graph.where(node, input_), what, fix)))
        if len(self.faults) == MAX_FAULTS:
            raise self.error(Fault(self.graph.source, "and more", "mend these first"))

    def error(self, *more: Fault) -> GraphError:
        """The faults in the order of the file."""
        order = {id_: n for n, id_ in enumerate(self.graph.nodes)}
        return GraphError([*(f for _, f in sorted(self.faults, key=lambda item: order.get(item[0], -1))), *more])

    def check_types(self) -> None:
        for id_, entry in self.graph.nodes.items():
            if entry.class_type in self.registry:
                self.types[id_] = self.registry[entry.class_type]
            else:
                fix = f"{nearest(entry.class_type, self.registry)} (a node of your own needs its --pack)"
                self.fault(id_, "", f"unknown node type {quoted(entry.class_type)}", fix)

    def check_inputs(self) -> None:
        for id_, entry in self.graph.nodes.items():
            self.literals[id_], self.links[id_] = {}, {}
            for name, value in entry.inputs.items():
                if isinstance(value, Link):
                    self._check_link(id_, name, value)
            if id_ in self.types:
                self._check_names(id_, entry)

    def _check_names(self, id_: str, entry: Entry) -> None:
        known = self.types[id_].inputs
        for name, value in entry.inputs.items():
            if name not in known:
                self.fault(id_, name, f"{entry.class_type} has no input {quoted(name)}", nearest(name, known))
            elif not isinstance(value, Link):
                self._read_literal(id_, known[name], value)
            elif known[name].type.path in ("read", "write") and self.graph.folders is not None:
                fix = "write it here, where it can be checked"
                self.fault(id_, name, f"found a link to {value}, wanted a path", fix)
        for name, input_ in known.items():
            if input_.required and name not in entry.inputs:
                self.fault(id_, name, f"missing, wanted {_wanted(input_)}", f'add "{name}" to its inputs')

    def _read_literal(self, id_: str, input_: Input, value: Any) -> None:
        if not input_.type.is_json:
            fix = "link an output of another node"
            self.fault(id_, input_.name, f"found {show(value)}, wanted {_wanted(input_)}", fix)
            return
        try:
            self.literals[id_][input_.name] = input_.type.read(json.dumps(value))
        except (TypeError, ValueError) as error:
            self.fault(id_, input_.name, f"found {show(value)}, wanted {_wanted(input_)}", str(error))
        else:
            self._check_paths(id_, input_, self.literals[id_][input_.name])

    def _check_paths(self, id_: str, input_: Input, value: Any) -> None:
        """A graph from elsewhere reads only what it may, and every graph writes where its nodes say."""
        folders = self.graph.folders
        for text in texts(value):
            if input_.type.path == "name" and (found := no_name(text)):
                self.fault(id_, input_.name, f"{show(text)} {found}", "give a path in the run's folder")
            elif input_.type.path == "read" and folders is not None and (found := out_of_reach(text, folders)):
                fix = f"if it is meant, --allow-folder {shlex.quote(str(Path(text).parent))}"
                self.fault(id_, input_.name, f"{show(text)} {found}", fix)
            elif input_.type.path == "write" and folders is not None:
                what = f"{show(text)} is written to, and this graph may write in the run's folder alone"
                self.fault(id_, input_.name, what, "leave it out")

    def _check_link(self, id_: str, name: str, link: Link) -> None:
        if link.node not in self.graph.nodes:
            self.fault(id_, name, f"there is no node {quoted(link.node)}", nearest(link.node, self.graph.nodes))
            return
        source = self.types.get(link.node)
        if source is None:
            return
        outputs = [o.name for o in source.outputs]
        if isinstance(link.output, str) and link.output in outputs:
            self.links[id_][name] = Value(link.node, outputs.index(link.output))
        elif isinstance(link.output, int) and 0 <= link.output < len(outputs):
            self.links[id_][name] = Value(link.node, link.output)
        else:
            what = f"{quoted(link.node)} ({source.name}) has no output {_shown(link.output)}"
            have = ", ".join(f"{n} {o!r}" for n, o in enumerate(outputs))
            self.fault(id_, name, what, f"its outputs: {have}" if have else "it has no outputs")

    def check_cycles(self) -> None:
        try:
            self.order = list(TopologicalSorter(self.predecessors).static_order())
        except CycleError:
            self._tell_cycles()

    def _tell_cycles(self) -> None:
        import networkx as nx

        order = {id_: n for n, id_ in enumerate(self.graph.nodes)}
        dag: nx.DiGraph[str] = nx.DiGraph((before, id_) for id_ in order for before in self.predecessors[id_])
        for component in nx.strongly_connected_components(dag):
            first = min(component, key=order.__getitem__)
            if len(component) == 1 and not dag.has_edge(first, first):
                continue
            walk = nx.find_cycle(dag.subgraph(component), first)
            path = " -> ".join([walk[0][0], *(edge[1] for edge in walk)])
            self.fault(first, "", f"a cycle: {path}", "remove one of these links; a changed model is its step's output")

    def check_link_types(self) -> None:
        for id_ in self.order:
            if id_ not in self.types:
                continue
            for name, value in self.links[id_].items():  # a type variable is left where a fault upstream was told
                input_ = self.types[id_].inputs.get(name)
                source = self.value_types.get(value) or self.types[value.node].outputs[value.output].type
                if input_ and not source.variable and not input_.type.accepts(source):
                    label = f"{source} ({value.node}.{self.types[value.node].outputs[value.output].name})"
                    self.fault(id_, name, f"found {label}, wanted {_wanted(input_)}", _suggest(self, input_))
            self._resolve_outputs(id_)

    def _resolve_outputs(self, id_: str) -> None:
        """An output that is a changed input, or shares its type variable, has the type of what is linked there."""
        made = self.types[id_]
        changed = {output: name for name, output in made.mutations.items()}
        for n, output in enumerate(made.outputs):
            same = changed.get(n) or next(
                (i.name for i in made.inputs.values() if i.type.variable and i.type.variable == output.type.variable),
                None,
            )
            source = self.links[id_].get(same) if same else None
            self.value_types[Value(id_, n)] = (self.value_types.get(source) if source else None) or output.type

    def check_one_stream(self) -> None:
        streams = [id_ for id_, made in self.types.items() if made.kind == "stream"]
        for extra in streams[1:]:
            what = f"a second stream: {streams[0]!r} ({self.types[streams[0]].name}) is one already"
            self.fault(extra, "", what, "a graph has one stream; read other data as a setup value")


def _shown(output: int | str) -> str:
    return quoted(output) if isinstance(output, str) else str(output)[:100]


def texts(value: Any) -> Iterator[str]:
    """The strings that a literal is or holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts(inner)


def _suggest(checker: _Checker, input_: Input) -> str:
    fitting = [
        f'["{id_}", {n}]'
        for id_, made in checker.types.items()
        for n, output in enumerate(made.outputs)
        if input_.type.accepts(output.type) and output.type.alternatives[0].python is not object
    ]
    if not fitting:
        return "write a value" if input_.type.is_json else "no node of this graph gives one"
    return f"of that type: {', '.join(fitting[:4])}"


def _wanted(input_: Input) -> str:
    return str(input_.type)


def show(value: Any) -> str:
    """A literal as the file has it, with its JSON type where that is what is wrong.

    >>> show("false")
    'the string "false"'
    """
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text if text.isprintable() else json.dumps(value, default=repr)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"the string {text}" if isinstance(value, str) else text


def with_settings(graph: Graph, registry: Registry, settings: Iterable[str]) -> Graph:
    """A copy of the graph with each ``node.input=value`` set; the value is JSON, or a bare string where one fits.

    Raises:
        UsageError: no ``=``, no such node, or no such input.
    """
    changed = graph.copy()
    for setting in settings:
        key, separator, text = setting.partition("=")
        node, dot, name = key.rpartition(".")
        where = f"--set {setting}"
        if not separator or not dot:
            raise UsageError(where, "is not node.input=value", "for example --set crops.batch=4")
        if node not in changed.nodes:
            raise UsageError(where, f"there is no node {node!r}", nearest(node, changed.nodes))
        entry = changed.nodes[node]
        made = registry.get(entry.class_type)
        if made is not None and name not in made.inputs:
            raise UsageError(where, f"{entry.class_type} has no input {name!r}", nearest(name, made.inputs))
        entry.inputs[name] = _setting_value(text, made.inputs[name].type if made else None)
    return changed


def _setting_value(text: str, wanted: SocketType | None) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, list) and (link := as_link(value)):
        return link
    if wanted and wanted.is_json and not isinstance(value, str) and not _fits(wanted, json.dumps(value)):
        return text if _fits(wanted, json.dumps(text)) else value
    return value


def _fits(wanted: SocketType, text: str) -> bool:
    try:
        wanted.read(text)
    except ValueError:
        return False
    return True
