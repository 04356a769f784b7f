"""A workflow with subgraphs is the graph of the same workflow without them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from sr_pipeline.errors import GraphError
from sr_pipeline.graph import Graph
from sr_pipeline.server.workflow import to_api, to_workflow

CHAIN = """
    net = network(width=number)
    number = number()
    x = batches(steps=2)
    a = double(x)
    b = noisy(a)
    y = forward(net, b)
    loss = size(y)
    log = log(loss, every=3)
"""
LOADS = "net = network()\nload = load(net, value=2.0)\nshown = show(load)"
KEYS = "id", "origin_id", "origin_slot", "target_id", "target_slot", "type"
Json = dict[str, Any]


def workflow(text: str = CHAIN) -> Json:
    made: Json = json.loads(json.dumps(to_workflow(toys.graph(text), toys.REGISTRY)))
    made["links"] = [dict(zip(KEYS, link, strict=True)) for link in made["links"]]
    return {**made, "definitions": {"subgraphs": []}}


def graph(made: Json) -> Graph:
    return to_api(made, toys.REGISTRY)


def levels(made: Json) -> list[Json]:
    return [made, *made["definitions"]["subgraphs"]]


def at(level: Json, id_: str) -> Json:
    """A node by the id that it remembers."""
    found: Json = next(n for n in level["nodes"] if n.get("properties", {}).get("sr_pipeline", {}).get("id") == id_)
    return found


def fold(made: Json, level: Json, numbers: set[int]) -> Json:
    """Make a subgraph of some of a level's nodes, as the editor does; gives the instance."""
    number = 100 + len(made["definitions"]["subgraphs"])
    inner: Json = {"id": f"00000000-0000-0000-0000-{number:012}", "nodes": [], "links": [], "inputs": [], "outputs": []}
    instance: Json = {"id": number, "type": inner["id"], "mode": 0, "title": "Folded", "inputs": [], "outputs": []}
    inner["nodes"] = [n for n in level["nodes"] if n["id"] in numbers]
    outer = []
    for link in level["links"]:
        begins, ends = link["origin_id"] in numbers, link["target_id"] in numbers
        slot = {"name": f"slot {link['id']}", "type": link["type"]}
        if ends and not begins:
            inner["links"].append({**link, "origin_id": -10, "origin_slot": len(inner["inputs"])})
            outer.append({**link, "target_id": number, "target_slot": len(inner["inputs"])})
            inner["inputs"].append(slot)
            instance["inputs"].append({**slot, "link": link["id"]})
        elif begins and not ends:
            inner["links"].append({**link, "target_id": -20, "target_slot": len(inner["outputs"])})
            outer.append({**link, "origin_id": number, "origin_slot": len(inner["outputs"])})
            inner["outputs"].append(slot)
            instance["outputs"].append(slot)
        else:
            (inner["links"] if begins else outer).append(link)
    level["nodes"] = [*(n for n in level["nodes"] if n["id"] not in numbers), instance]
    level["links"] = outer
    made["definitions"]["subgraphs"].append(inner)
    return instance


def folded(*ids: str, text: str = CHAIN) -> tuple[Json, Json, Json]:
    """A workflow with some nodes in a subgraph, the instance, and the subgraph."""
    made = workflow(text)
    instance = fold(made, made, {at(made, id_)["id"] for id_ in ids})
    return made, instance, made["definitions"]["subgraphs"][0]


def promote(instance: Json, subgraph: Json, id_: str, name: str) -> None:
    """Show a widget of a node within at the instance."""
    slot = {"name": f"{id_} {name}", "type": "*"}
    link = {"id": 900 + len(subgraph["inputs"]), "origin_id": -10, "origin_slot": len(subgraph["inputs"])}
    subgraph["inputs"].append(slot)
    subgraph["links"].append({**link, "target_id": at(subgraph, id_)["id"], "target_slot": 0, "type": "*"})
    at(subgraph, id_)["inputs"].append({"name": name, "type": "*", "widget": {"name": name}, "link": link["id"]})
    instance["inputs"].append({**slot, "widget": {"name": slot["name"]}, "link": None})


@given(st.data())
def test_whatever_is_made_a_subgraph_it_is_the_same_graph(data: st.DataObject) -> None:
    """Also subgraphs within subgraphs, and around others."""
    made = workflow()
    for _ in range(data.draw(st.integers(1, 4))):
        level = data.draw(st.sampled_from(levels(made)))
        fold(made, level, data.draw(st.sets(st.sampled_from([n["id"] for n in level["nodes"]]), min_size=1)))
    assert graph(made) == toys.graph(CHAIN)


def test_new_nodes_within_are_named_after_their_types_and_told_by_the_editors_ids() -> None:
    made, _, subgraph = folded("a", "b")
    b = at(subgraph, "b")
    at(subgraph, "a")["properties"] = b["properties"] = {}
    instance = fold(made, subgraph, {b["id"]})
    found = graph(made).nodes
    assert found["noisy"].inputs["x"] == ("double", 0)
    assert found["y"].inputs["x"] == ("noisy", 0)
    b["inputs"][0]["link"] = 999
    told = f"workflow: node 100:{instance['id']}:{b['id']} (b): the link 100:{instance['id']}:999 of 'x' comes from"
    with pytest.raises(GraphError, match=f"^{re.escape(told)}"):
        graph(made)


def test_a_second_instance_is_a_copy() -> None:
    made, instance, _ = folded("load", text=LOADS)
    made["nodes"].append({**copy.deepcopy(instance), "id": 200, "outputs": []})
    assert graph(made) == toys.graph(LOADS + "\nload_2 = load(net, value=2.0)")


def test_a_link_straight_through_a_subgraph() -> None:
    made, instance, subgraph = folded("load", text=LOADS)
    entering = next(link for link in subgraph["links"] if link["origin_id"] == -10)
    leaving = next(link for link in subgraph["links"] if link["target_id"] == -20)
    leaving |= {"origin_id": -10, "origin_slot": entering["origin_slot"]}
    assert graph(made).nodes["shown"].inputs == {"model": ("net", 0)}
    instance["inputs"][0]["link"] = None
    assert graph(made).nodes["shown"].inputs == {}


@pytest.mark.parametrize("values", [[3.5], {"load value": 3.5}])
def test_a_promoted_widget_has_the_instances_value(values: Any) -> None:
    made, instance, subgraph = folded("load", text=LOADS)
    promote(instance, subgraph, "load", "value")
    assert graph(made) == toys.graph(LOADS)
    instance["widgets_values"] = values
    wanted = toys.graph(LOADS.replace("2.0", "3.5"))
    assert graph(made) == wanted
    fold(made, subgraph, {at(subgraph, "load")["id"]})
    assert graph(made) == wanted
    del instance["widgets_values"]
    instance["widgets_values_named"] = {"load value": 3.5}
    assert graph(made) == wanted


@pytest.mark.parametrize("linked", [False, True])
def test_a_promoted_widget_of_an_older_editor(linked: bool) -> None:
    """Named by the node within, whether it is linked to an input of the subgraph or not."""
    made, instance, subgraph = folded("load", "net", text=LOADS)
    if linked:
        promote(instance, subgraph, "load", "value")
    instance["properties"] = {
        "proxyWidgets": [["77", "gone"], ["1", "width"], [str(at(subgraph, "load")["id"]), "value"]]
    }
    instance["widgets_values"] = [1, None, 3.5]
    assert graph(made) == toys.graph(LOADS.replace("2.0", "3.5"))
    instance["properties"]["proxyWidgets"][2:] = [["2", "model"]]
    assert graph(made) == toys.graph(LOADS)  # a link is kept


def test_a_promoted_widget_of_a_primitive_node_within() -> None:
    made, instance, subgraph = folded("load", text=LOADS)
    subgraph["nodes"].append({"id": 50, "type": "PrimitiveNode", "widgets_values": [1.0]})
    subgraph["links"].append({"id": 60, "origin_id": 50, "origin_slot": 0, "target_id": 2, "target_slot": 1})
    at(subgraph, "load")["inputs"].append({"name": "value", "type": "FLOAT", "link": 60})
    assert graph(made) == toys.graph(LOADS.replace("2.0", "1.0"))
    instance |= {"properties": {"proxyWidgets": [["50", "value"]]}, "widgets_values": [3.5]}
    assert graph(made) == toys.graph(LOADS.replace("2.0", "3.5"))


@pytest.mark.parametrize(("mode", "given"), [(2, {}), (4, {"x": ("x", 0)})])
def test_a_muted_or_bypassed_instance_is_so_with_all_within(mode: int, given: dict[str, Any]) -> None:
    made, instance, subgraph = folded("a", "b")
    instance["mode"] = mode
    found = graph(made).nodes
    assert not {"a", "b"} & set(found)
    assert found["y"].inputs == {"model": ("net", 0), **given}
    subgraph["nodes"] = []
    assert graph(made).nodes == found


def _nest_deeply(made: Json, instance: Json, subgraph: Json) -> None:
    names = [f"level {n}" for n in range(2000)]
    levels = [{"id": a, "nodes": [{"id": 1, "type": b}]} for a, b in pairwise(names)]
    made["definitions"]["subgraphs"] += levels
    instance["type"] = names[0]


def _many(made: Json, instance: Json, subgraph: Json) -> None:
    names = [f"level {n}" for n in range(40)]
    levels = [{"id": a, "nodes": [{"id": n, "type": b} for n in range(2)]} for a, b in pairwise(names)]
    made["definitions"]["subgraphs"] += levels
    made["definitions"]["subgraphs"].append({"id": names[-1]})
    instance["type"] = names[0]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (
            lambda made, instance, subgraph: made.update(definitions={}),
            "workflow: node 100 (Folded): its subgraph 00000000-0000-0000-0000-000000000100 is not in the file; "
            "save it again in the editor",
        ),
        (
            lambda made, instance, subgraph: subgraph["nodes"].append({"id": 9, "type": subgraph["id"]}),
            "workflow: node 100:9 (00000000-0000-0000-0000-000000000100): its subgraph holds itself; "
            "take the subgraph out of itself",
        ),
        (
            lambda made, instance, subgraph: subgraph["nodes"].append(subgraph["nodes"][0]),
            "workflow: node 100:2 (load): two nodes have the id 100:2; save it again in the editor",
        ),
        (
            lambda made, instance, subgraph: subgraph.update(links=[]),
            "workflow: node 100:2 (load): the link 100:1 of 'model' comes from nowhere; link it again in the editor",
        ),
        (
            lambda made, instance, subgraph: subgraph.update(inputs=[]),
            "workflow: node 100:2 (load): the link 100:1 of 'model' comes from nowhere; link it again in the editor",
        ),
        (
            lambda made, instance, subgraph: subgraph.update(outputs=[]),
            "workflow: node 3 (shown): the link 2 of 'model' comes from nowhere; link it again in the editor",
        ),
        (
            lambda made, instance, subgraph: instance["inputs"][0].update(link=7),
            "workflow: node 100:2 (load): the link 7 of 'model' comes from nowhere; link it again in the editor",
        ),
        (
            lambda made, instance, subgraph: (
                made["links"][0].update(origin_id=100, origin_slot=0)
                or subgraph["links"][1].update(origin_id=-10, origin_slot=0)
            ),
            "the link 100:2 of 'model' runs in a ring; link it again in the editor",
        ),
        (
            lambda made, instance, subgraph: subgraph["links"][0].pop("origin_slot"),
            "workflow: definitions.subgraphs.0.links.0.origin_slot: field required; save it again in the editor",
        ),
        (_nest_deeply, "subgraphs are nested more than 100 deep, or are more than 10000; unpack some in the editor"),
        (_many, "subgraphs are nested more than 100 deep, or are more than 10000; unpack some in the editor"),
    ],
)
def test_a_faulty_subgraph_is_refused(edit: Callable[[Json, Json, Json], Any], told: str) -> None:
    made, instance, subgraph = folded("load", text=LOADS)
    edit(made, instance, subgraph)
    with pytest.raises(GraphError, match=re.escape(told)):
        graph(made)


VALUES = st.sampled_from([None, True, -1, 0, 3, -10, -20, "", "x", "1", [], [1, 2], {}, {"a": 1}])


@given(st.data())
def test_whatever_stands_in_a_subgraph_it_is_a_graph_or_refused(data: st.DataObject) -> None:
    made, instance, subgraph = folded("load", text=LOADS)
    promote(instance, subgraph, "load", "value")
    instance |= {"properties": {"proxyWidgets": [["2", "value"]]}, "widgets_values": [3.5]}
    for _ in range(data.draw(st.integers(1, 4))):
        here: Any = data.draw(st.sampled_from([instance, subgraph]))
        while isinstance(here, (dict, list)) and here:
            key = data.draw(st.sampled_from(list(here) if isinstance(here, dict) else list(range(len(here)))))
            if data.draw(st.booleans()):
                here[key] = data.draw(VALUES)
                break
            here = here[key]
    try:
        found = graph(made)
    except GraphError as error:
        wrong = [fault for fault in error.faults if not fault.where.startswith("workflow")]
    else:
        wrong = []
        assert Graph.parse(found.to_json()) == found
    assert not wrong
