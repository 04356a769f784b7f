"""Graphs become workflows of the editor and come back the same, also through what the editor makes of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from sr_pipeline.errors import GraphError
from sr_pipeline.graph import Entry, Graph, Link
from sr_pipeline.node import Input, node
from sr_pipeline.registry import Registry
from sr_pipeline.server.workflow import from_export, read_prompt, templates, to_api, to_workflow
from sr_pipeline.shipped import shipped
from sr_pipeline.sockets import Loss

SHIPPED = sorted(shipped())


@node
def anything(
    words: tuple[str, ...] = ("a",),
    path: str | None = None,
    tile: int | Literal["auto"] | None = "auto",
    table: dict[str, float] | None = None,
    level: Literal[1, 2, 4] = 2,
    kind: Literal["x", "y"] = "x",
    file: Path = Path("a/b"),
    switch: bool = True,
    scale: float = 1.0,
    weighted: Loss | float = 0.5,
    text: str = "",
) -> float:
    """Every kind of literal."""
    return scale


REGISTRY = toys.REGISTRY.with_nodes([anything])
LITERALS: list[Any] = [None, True, False, 0, 1, 4, 0.5, -1.0, "", "a", "null", "auto", "x", '"', '"a"', "[1]"]
LITERALS += ["1e999", "NaN", [], ["a", "null"], {}, {"a": 1.5}, {"__value__": 1.0}]
WORDS = st.characters(exclude_categories=["Cs"])


def fits(input_: Input, literal: Any) -> bool:
    try:
        input_.type.read(json.dumps(literal))
    except ValueError:
        return False
    return True


def choices(graph: Graph, input_: Input) -> list[Any]:
    """What may stand at an input: nothing (``...``), a literal, an output of the graph."""
    literals = [v for v in LITERALS if input_.type.is_json and fits(input_, v)]
    links = [
        Link(id_, n)
        for id_, entry in graph.nodes.items()
        for n, output in enumerate(REGISTRY[entry.class_type].outputs)
        if input_.type.accepts(output.type)
    ]
    return [*([] if input_.required else [...]), *literals, *links]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A right graph of toy nodes."""
    graph, streams = Graph({"net": Entry("network")}, "toy"), 0
    for kind in draw(st.lists(st.sampled_from(sorted(REGISTRY)), max_size=12)):
        made = REGISTRY[kind]
        able = {i.name: choices(graph, i) for i in made.inputs.values()}
        if not all(able.values()) or (made.kind == "stream" and streams):
            continue
        streams += made.kind == "stream"
        chosen = {name: draw(st.sampled_from(values)) for name, values in able.items()}
        id_ = draw(st.text(WORDS, min_size=1, max_size=5).filter(lambda word: word not in graph.nodes))
        meta = draw(st.dictionaries(st.sampled_from(["title", "note"]), st.text(WORDS, max_size=5), max_size=2))
        graph.nodes[id_] = Entry(kind, {name: value for name, value in chosen.items() if value is not ...}, meta)
    return graph


def through_json(value: Any, numbers: bool = True) -> Any:
    """As a browser gives it back: its numbers have no kinds, so 1.0 is 1."""

    def whole(text: str) -> float | int:
        return int(float(text)) if numbers and float(text).is_integer() else float(text)

    return json.loads(json.dumps(value), parse_float=whole)


def same(found: Graph, graph: Graph) -> None:
    """Equal, and in the same order, which names the order of passes."""
    assert found == graph
    assert list(found.nodes) == list(graph.nodes)


@given(graphs())
def test_a_graph_comes_back_as_it_was(graph: Graph) -> None:
    workflow = through_json(to_workflow(graph, REGISTRY))
    same(to_api(workflow, REGISTRY), graph)
    for drawn in workflow["nodes"]:
        del drawn["widgets_values_named"]
    same(to_api(workflow, REGISTRY), graph)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_graph_comes_back_to_the_byte(name: str, registry: Registry) -> None:
    graph = templates()[name]
    workflow = through_json(to_workflow(graph, registry), numbers=False)
    assert to_api(workflow, registry).to_json() == shipped()[name].read_text(encoding="utf-8")
    assert workflow["extra"] == {"sr_pipeline": {"graph": name}}
    assert [n["title"] for n in workflow["nodes"]] == [e.meta.get("title", id_) for id_, e in graph.nodes.items()]


def as_posted(workflow: Mapping[str, Any], memory: bool = False) -> dict[str, Any]:
    """What the editor posts: all widgets' values, links by its numbers, nodes in any order, titles; and, since our
    addition to it, what each node remembers."""
    links = {link[0]: link for link in workflow["links"]}
    posted = {}
    for drawn in workflow["nodes"]:
        inputs = {n: {"__value__": v} if isinstance(v, list) else v for n, v in drawn["widgets_values_named"].items()}
        for slot in drawn["inputs"]:
            if slot["link"] is not None:
                _, origin, place, *_ = links[slot["link"]]
                inputs[slot["name"]] = [str(origin), place]
        meta = {"title": drawn["title"], **({"sr_pipeline": drawn["properties"]["sr_pipeline"]} if memory else {})}
        posted[str(drawn["id"])] = {"class_type": drawn["type"], "inputs": inputs, "_meta": meta}
    shuffled = list(posted.items())
    random.Random(0).shuffle(shuffled)
    return dict(shuffled)


@given(graphs(), st.integers(0, 1000))
def test_a_posted_prompt_has_the_graphs_ids_again(graph: Graph, offset: int) -> None:
    """Whatever numbers the editor gave, and in whatever order it posts."""
    workflow = through_json(to_workflow(graph, REGISTRY))
    for drawn in workflow["nodes"]:
        drawn["id"] += offset
    for link in workflow["links"]:
        link[1] += offset
        link[3] += offset
    random.Random(1).shuffle(workflow["nodes"])
    posted = read_prompt(as_posted(workflow), workflow, REGISTRY)
    same(posted.graph, graph)
    assert posted.ids == {id_: str(n + offset) for n, id_ in enumerate(graph.nodes, 1)}
    same(to_api(workflow, REGISTRY), graph)


@given(graphs())
def test_a_graph_that_the_editor_exported_is_the_graph_again(graph: Graph) -> None:
    """From a client that posts the file without its workflow, and from the file itself."""
    exported = as_posted(through_json(to_workflow(graph, REGISTRY)), memory=True)
    same(read_prompt(exported, None, REGISTRY).graph, graph)
    same(from_export(Graph.parse(json.dumps(exported)), REGISTRY), graph)
    assert from_export(graph, REGISTRY) is graph


def test_a_new_node_of_an_export_is_named_after_its_type() -> None:
    exported = {"7": {"class_type": "network", "inputs": {}, "_meta": {"title": "network", "sr_pipeline": {}}}}
    assert from_export(Graph.parse(json.dumps(exported)), REGISTRY).nodes == {"network": Entry("network")}
    exported["7"]["_meta"] = {"sr_pipeline": {"unset": 3}}
    with pytest.raises(GraphError, match=r"^graph: _meta.sr_pipeline: Input should be a valid list; export it again"):
        from_export(Graph.parse(json.dumps(exported)), REGISTRY)


def test_a_prompt_without_a_workflow_is_taken_as_it_is() -> None:
    """Clients post graph files: their literals are no texts of widgets."""
    graph = Graph()
    first = graph.add(anything, id="a", path="null", words=["null"], tile=None)
    graph.add(anything, id="b", scale=first)
    posted = read_prompt(json.loads(graph.to_json()), None, REGISTRY)
    same(posted.graph, graph)
    assert posted.ids == {"a": "a", "b": "b"}


def test_our_own_words_posted_beside_a_workflow_are_kept() -> None:
    """As by a client that read both out of a picture."""
    graph = toys.graph(toys.REGRESSION)
    workflow = to_workflow(graph, REGISTRY)
    posted = read_prompt(json.loads(graph.to_json()), workflow, REGISTRY)
    same(posted.graph, graph)
    assert posted.ids == {id_: id_ for id_ in graph.nodes}


def test_subgraphs_are_flattened_by_the_editor_and_their_nodes_have_their_ids() -> None:
    graph = toys.graph("net = network()\nload = load(net, value=2.0)\nshown = show(load)")
    workflow = to_workflow(graph, REGISTRY)
    inner = [workflow["nodes"].pop(1)]
    workflow["nodes"].append({"id": 12, "type": "a-b-c"})
    workflow["definitions"] = {"subgraphs": [{"id": "a-b-c", "nodes": inner}]}
    prompt = {
        "1": {"class_type": "network", "inputs": {}},
        "12:2": {"class_type": "load", "inputs": {"model": ["1", 0], "value": 2.0}},
        "3": {"class_type": "show", "inputs": {"model": ["12:2", 0]}},
    }
    posted = read_prompt(prompt, workflow, REGISTRY)
    assert posted.graph == graph
    assert posted.ids == {"net": "1", "shown": "3", "load": "12:2"}
