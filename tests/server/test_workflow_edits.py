"""What people do in the editor, and what they do to its files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

import toys
from sr_pipeline.cli import app
from sr_pipeline.errors import GraphError
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.server.flow import read_flow
from sr_pipeline.server.workflow import templates, to_api, to_workflow

CHAIN = """
    net = network()
    x = batches(steps=2)
    a = double(x)
    b = noisy(a)
    y = forward(net, b)
    loss = size(y)
    log = log(loss, every=3)
"""


class Edited:
    """A workflow under the hands of a user."""

    def __init__(self, text: str = CHAIN) -> None:
        self.workflow: dict[str, Any] = json.loads(json.dumps(to_workflow(toys.graph(text), toys.REGISTRY)))

    def __getitem__(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = next(
            n for n in self.workflow["nodes"] if n.get("properties", {}).get("sr_pipeline", {}).get("id") == id_
        )
        return found

    def add(self, type_: str, **more: Any) -> dict[str, Any]:
        """A new node, without a memory, with the editor's next number."""
        self.workflow["last_node_id"] += 1
        self.workflow["nodes"].append({"id": self.workflow["last_node_id"], "type": type_, "mode": 0, **more})
        added: dict[str, Any] = self.workflow["nodes"][-1]
        return added

    def link(self, origin: dict[str, Any], place: int, target: dict[str, Any], name: str, kind: str = "BATCH") -> None:
        """Link an output to an input, in place of its old link; a widget gets a socket."""
        self.workflow["last_link_id"] += 1
        number = self.workflow["last_link_id"]
        slots = target.setdefault("inputs", [])
        if not any(slot["name"] == name for slot in slots):
            slots.append({"name": name, "type": kind, "widget": {"name": name}})
        slot = next(slot for slot in slots if slot["name"] == name)
        slot["link"] = number
        self.workflow["links"].append([number, origin["id"], place, target["id"], slots.index(slot), kind])

    @property
    def graph(self) -> Graph:
        return to_api(self.workflow, toys.REGISTRY)


def same(edited: Edited, text: str) -> None:
    wanted = toys.graph(text)
    assert edited.graph == wanted
    assert list(edited.graph.nodes) == list(wanted.nodes)


def test_a_widget_is_changed() -> None:
    edited = Edited()
    edited["log"]["widgets_values_named"]["every"] = 5
    edited["net"]["widgets_values_named"]["width"] = 7
    same(edited, CHAIN.replace("every=3", "every=5").replace("network()", "network(width=7)"))


def test_a_widget_set_back_to_a_default_that_was_written_stays_written() -> None:
    edited = Edited()
    edited["log"]["widgets_values_named"]["every"] = 1
    same(edited, CHAIN.replace("every=3", "every=1"))


def test_a_title_is_changed() -> None:
    edited = Edited()
    edited["a"]["title"] = "Twice"
    assert edited.graph.nodes["a"].meta == {"title": "Twice"}
    del edited["a"]["title"]  # the editor leaves out a title that is the type's
    assert edited.graph.nodes["a"].meta == {}


@given(st.lists(st.integers(0, 5), max_size=8))
def test_reroutes_change_nothing(places: list[int]) -> None:
    """Any number of them on any links, one after another."""
    edited = Edited()
    for place in places:
        link = edited.workflow["links"][place]
        reroute = edited.add(
            "Reroute", inputs=[{"name": "", "type": "*", "link": None}], outputs=[{"name": "", "type": "*"}]
        )
        edited.workflow["last_link_id"] += 1
        number = edited.workflow["last_link_id"]
        reroute["inputs"][0]["link"] = number
        edited.workflow["links"].append([number, link[1], link[2], reroute["id"], 0, "*"])
        link[1], link[2] = reroute["id"], 0
    same(edited, CHAIN)


def test_links_of_the_newer_format_are_objects() -> None:
    edited = Edited()
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    edited.workflow["links"] = [dict(zip(keys, link, strict=True)) for link in edited.workflow["links"]]
    for drawn in edited.workflow["nodes"]:
        drawn["id"] = str(drawn["id"])
    same(edited, CHAIN)


def test_notes_are_not_of_the_graph() -> None:
    edited = Edited()
    edited.add("Note", widgets_values=["think"])
    edited.add("MarkdownNote", widgets_values=["*think*"])
    same(edited, CHAIN)


def test_a_bypassed_node_lets_through_what_it_is_given() -> None:
    edited = Edited()
    edited["a"]["mode"] = edited["b"]["mode"] = 4
    same(
        edited,
        "\n".join(
            line
            for line in CHAIN.replace("(net, b)", "(net, x)").split("\n")
            if "(a)" not in line and "(x)" not in line
        ),
    )


def test_a_bypassed_node_without_a_fitting_input_gives_nothing() -> None:
    edited = Edited()
    edited["y"]["mode"] = 4  # model and batch in, batch out: the batch goes on
    assert edited.graph.nodes["loss"].inputs == {"x": ("b", 0)}
    edited["net"]["mode"] = 4
    edited["y"]["mode"] = 0
    assert "model" not in edited.graph.nodes["y"].inputs


@pytest.mark.parametrize(
    ("kinds", "output", "passed"),
    [
        (["C", "A,B"], 0, 1),  # the first that fits
        (["A,B", "A"], 1, 1),  # at the same place
        (["A,B", "A"], 0, 0),
        (["A,B", "C", "A"], 1, 2),  # of the very type, before one that only fits
        (["C", "B"], 0, None),
        (["*", "C"], 0, 0),
    ],
)
def test_which_input_a_bypassed_node_lets_through(kinds: list[str], output: int, passed: int | None) -> None:
    """As the editor decides: by the place, by the very type, by a type that fits."""
    flow = read_flow(
        {
            "nodes": [
                *({"id": n, "type": "source", "outputs": [{"type": kind}]} for n, kind in enumerate(kinds)),
                {
                    "id": 10,
                    "type": "passed",
                    "mode": 4,
                    "inputs": [{"type": kind, "link": n} for n, kind in enumerate(kinds)],
                    "outputs": [{"type": "A"}, {"type": "A"}],
                },
                {"id": 11, "type": "reader", "inputs": [{"name": "x", "type": "A", "link": 20}]},
            ],
            "links": [*([n, n, 0, 10, n, "A"] for n in range(len(kinds))), [20, 10, output, 11, 0, "A"]],
        }
    )
    reader = flow.nodes["11"]
    assert flow.origin(reader, reader.inputs[0]) == (None if passed is None else (str(passed), 0))


def test_a_muted_node_is_left_out_and_so_are_its_links() -> None:
    edited = Edited()
    edited["a"]["mode"] = 2
    graph = edited.graph
    assert "a" not in graph.nodes
    assert graph.nodes["b"].inputs == {}


def test_a_widget_is_linked_and_what_it_held_is_not_used() -> None:
    edited = Edited()
    edited.link(edited.add("number", widgets_values=[]), 0, edited["net"], "width", "INT")
    drawn = to_workflow(edited.graph, toys.REGISTRY)["nodes"][0]
    assert drawn["widgets_values_named"] == {"batch_norm": True, "width": toys.WIDTH, "weights": ""}
    same(edited, CHAIN.replace("network()", "network(width=number)") + "\n    number = number()")


def test_a_primitive_node_gives_its_value_to_many() -> None:
    edited = Edited()
    primitive = edited.add("PrimitiveNode", widgets_values=[8, "fixed"], outputs=[{"name": "INT", "type": "INT"}])
    for id_, name in (("net", "width"), ("log", "every")):
        edited.link(primitive, 0, edited[id_], name, "INT")
    same(edited, CHAIN.replace("network()", "network(width=8)").replace("every=3", "every=8"))


def test_a_copy_has_a_name_of_its_own_and_a_new_node_one_of_its_type() -> None:
    edited = Edited()
    pasted = edited.add("noisy")
    pasted |= {**copy.deepcopy(edited["b"]), "id": pasted["id"]}
    edited.link(edited["x"], 0, pasted, "x")
    new = edited.add("double", title="double", inputs=[{"name": "x", "type": "BATCH", "link": None}], widgets_values=[])
    edited.link(pasted, 0, new, "x")
    edited.workflow["nodes"].reverse()  # clicking on a node brings it to the front
    same(edited, CHAIN + "\n    b_2 = noisy(x)\n    double = double(b_2)")


def test_a_node_of_unknown_type_is_told_by_the_check_and_not_dropped() -> None:
    edited = Edited()
    edited.add("KSampler", widgets_values_named={"seed": 3})
    assert edited.graph.nodes["KSampler"].inputs == {"seed": 3}


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (
            lambda e: e.workflow.update(nodes=3),
            "workflow: nodes: input should be a valid list; save it again in the editor",
        ),
        (lambda e: e["a"].pop("type"), "workflow: nodes.2.type: field required; save it again in the editor"),
        (
            lambda e: e["a"].update(id=True),
            "workflow: nodes.2.id: input should be a valid string; save it again in the editor",
        ),
        (lambda e: e["a"].update(id=1), "workflow: two nodes have the id 1; save it again in the editor"),
        (
            lambda e: e["a"]["properties"].update(sr_pipeline={"unset": 3}),
            "workflow: nodes.2.properties.sr_pipeline.unset: input should be a valid list; save it again in the editor",
        ),
        (
            lambda e: e["net"]["widgets_values_named"].update(width=1e400),
            "workflow: net.width: found Infinity or a number too large; give a finite number",
        ),
        (
            lambda e: e.workflow.update(links=[]),
            "workflow: node 3 (a): the link 1 of 'x' comes from nowhere; link it again in the editor",
        ),
        (
            lambda e: e["net"].update(widgets_values=[1, 2], widgets_values_named=None),
            "workflow: node 1 (net): found 2 widget values, wanted 3: batch_norm, width, weights; "
            "open it in the editor and save it again",
        ),
    ],
)
def test_a_faulty_file_is_refused(edit: Callable[[Edited], Any], told: str) -> None:
    edited = Edited()
    edit(edited)
    with pytest.raises(GraphError, match=re.escape(told)):
        _ = edited.graph


def test_a_ring_of_reroutes_is_refused() -> None:
    edited = Edited()
    pair = [edited.add("Reroute", inputs=[{"name": "in", "type": "*"}]) for _ in range(2)]
    edited.link(pair[0], 0, pair[1], "in", "*")
    edited.link(pair[1], 0, pair[0], "in", "*")
    edited.link(pair[0], 0, edited["a"], "x")
    with pytest.raises(GraphError, match=r"^workflow: node 3 \(a\): the link 8 of 'x' runs in a ring; link it again"):
        _ = edited.graph


VALUES = st.sampled_from([None, True, -1, 0, 3, 1e400, 10**30, "", "x", "1", [], [1, 2, 3], {}, {"a": 1}, "\ud800"])


@given(st.data())
def test_whatever_stands_in_a_file_it_is_a_graph_or_refused(data: st.DataObject) -> None:
    edited = Edited()
    for _ in range(data.draw(st.integers(1, 4))):
        at: Any = edited.workflow
        while isinstance(at, (dict, list)) and at:
            key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
            if data.draw(st.booleans()) and data.draw(st.booleans()):
                at[key] = data.draw(VALUES)
                break
            at = at[key]
    try:
        graph = edited.graph
    except GraphError as error:
        wrong = [fault for fault in error.faults if not fault.where.startswith("workflow")]
    else:
        wrong = []
        assert Graph.parse(graph.to_json()) == graph
    assert not wrong


def test_the_command_line_reads_a_workflow_and_a_picture_that_carries_one(registry: Registry, tmp_path: Path) -> None:
    graph = templates()["upscale"]
    workflow = json.dumps(to_workflow(graph, registry))
    (tmp_path / "workflow.json").write_text(workflow, encoding="utf-8")
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", workflow)
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png", pnginfo=info)
    plans = {}
    for name in ("upscale", str(tmp_path / "workflow.json"), str(tmp_path / "picture.png")):
        result = CliRunner().invoke(app, ["plan", name, "--json"])
        assert result.exit_code == 0, result.output
        plans[name] = {k: v for k, v in json.loads(result.stdout).items() if k != "graph"}
    assert len({json.dumps(plan) for plan in plans.values()}) == 1
    with pytest.raises(GraphError, match="this is a workflow of ComfyUI's editor; "):
        Graph.load(tmp_path / "picture.png")
