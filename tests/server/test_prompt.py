"""What is wrong with a posted graph is told on the node and input where it is, in the words of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pack import training
from sr_pipeline.errors import GraphError
from sr_pipeline.graph import Graph
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.server.prompt import PromptError, job_of, read_body
from sr_pipeline.server.workflow import to_workflow

PACK = str(Path(__file__).parent / "pack.py")


@pytest.fixture(scope="module")
def nodes() -> Registry:
    return load_packs([PACK])


def refusal(nodes: Registry, prompt: Any, folder: Path = Path("input"), **more: Any) -> dict[str, Any]:
    with pytest.raises(PromptError, match=r"\w") as caught:
        job_of(read_body({"prompt": prompt, **more}), nodes, 1, folder)
    return caught.value.body


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    prompt = json.loads(json.dumps(training()))
    prompt[node]["inputs"] |= inputs
    return dict(prompt)


@pytest.mark.parametrize(
    ("prompt", "node", "input_", "message"),
    [
        (changed("ticks", steps=0), "ticks", "steps", "found 0, wanted int"),
        (changed("ticks", steps="5"), "ticks", "steps", 'found the string "5", wanted int'),
        (changed("ticks", seconds="false"), "ticks", "seconds", "wanted float"),
        (changed("loss", mode="cubic"), "loss", "mode", "one of 'linear', 'square'"),
        (changed("loss", tick=["model", 0]), "loss", "tick", "found Model"),
        (changed("loss", tick=["nobody", 0]), "loss", "tick", "there is no node 'nobody'"),
        (changed("loss", tick=["ticks", 7]), "loss", "tick", "has no output 7"),
        (changed("loss", colour=1), "loss", "colour", "has no input 'colour'"),
        (changed("shade", every=["made", 0]), "shade", "every", "found float"),
    ],
)
def test_a_fault_is_told_on_its_input(
    nodes: Registry, prompt: dict[str, Any], node: str, input_: str, message: str
) -> None:
    told = refusal(nodes, prompt)
    assert told["error"]["type"] == "prompt_outputs_failed_validation"
    assert list(told["node_errors"]) == [node]
    errors = told["node_errors"][node]["errors"]
    assert [(e["type"], e["extra_info"]["input_name"]) for e in errors] == [("custom_validation_failed", input_)]
    assert message in errors[0]["message"]
    assert told["node_errors"][node]["class_type"] == prompt[node]["class_type"]


def test_all_faults_are_told_together_and_are_the_command_lines(nodes: Registry) -> None:
    prompt = changed("ticks", steps=0, seconds=-1.0)
    prompt["shade"]["inputs"] = {}
    prompt["loss"]["inputs"]["by"] = "much"
    told = refusal(nodes, prompt)
    assert {node: len(e["errors"]) for node, e in told["node_errors"].items()} == {"ticks": 2, "shade": 1, "loss": 1}
    assert told["node_errors"]["shade"]["errors"][0]["type"] == "required_input_missing"
    with pytest.raises(GraphError) as caught:
        compile_plan(Graph.parse(json.dumps(prompt)), nodes)
    errors = [e for node in told["node_errors"].values() for e in node["errors"]]
    assert sorted(e["message"] for e in errors) == sorted(fault.what for fault in caught.value.faults)
    words = [e["details"].removeprefix(f"{e['extra_info']['input_name']}: ") for e in errors]
    assert sorted(words) == sorted(f"{fault.what}; {fault.fix}" for fault in caught.value.faults)


def test_a_missing_node_type_is_named(nodes: Registry) -> None:
    prompt = training(sampler={"class_type": "KSampler", "inputs": {}, "_meta": {"title": "Sample"}})
    told = refusal(nodes, prompt)
    assert told["error"]["type"] == "missing_node_type"
    assert told["error"]["extra_info"] == {"node_id": "sampler", "class_type": "KSampler", "node_title": "Sample"}


@pytest.mark.parametrize(
    ("prompt", "details"),
    [
        (changed("loss", tick=["step", 0]) | {"a": {}}, "class_type"),
        ({"a": {"class_type": "ticks", "inputs": []}}, "inputs is a list"),
        ({"a": 1}, "found a number"),
    ],
)
def test_what_has_not_the_form_of_a_graph(nodes: Registry, prompt: Any, details: str) -> None:
    told = refusal(nodes, prompt)
    words = json.dumps(told)
    assert details in words


def test_a_cycle_is_told(nodes: Registry) -> None:
    prompt = changed("loss", by=["again", 0]) | {"again": {"class_type": "scale", "inputs": {"tick": ["loss", 0]}}}
    told = refusal(nodes, prompt)
    error = told["node_errors"]["loss"]["errors"][0]
    assert "a cycle: " in error["message"]
    assert (error["type"], error["extra_info"]) == ("exception_during_validation", {})


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"prompt": []},
        {"prompt": {}},
        {"prompt": {"a": {}}, "extra_data": []},
        {"prompt": {"a": {}}, "number": "1"},
        {"prompt": {"a": {}}, "front": 1},
        {"prompt": {"a": {}}, "prompt_id": "../a"},
        {"prompt": {"a": {}}, "prompt_id": 7},
        {"prompt": {"a": {}}, "partial_execution_targets": "a"},
    ],
)
def test_a_body_without_the_form_of_a_prompt(body: Any) -> None:
    with pytest.raises(PromptError, match="prompt"):
        read_body(body)


def test_a_graph_may_read_the_uploads_and_what_ships_and_nothing_else(nodes: Registry, tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()

    def reading(path: str) -> dict[str, Any]:
        image = {"class_type": "load_image", "inputs": {"path": path}}
        return {"cat": image, "saved": {"class_type": "save_image", "inputs": {"image": ["cat", 0]}}}

    for path in ("/etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "\\\\evil\\share\\x.png"):
        told = refusal(nodes, reading(path), tmp_path)
        assert list(told["node_errors"]) == ["cat"]
    for path in (str(tmp_path / "cat.png"), "sr_nodes:samples/test/picture-1a.jpg"):
        assert (
            job_of(read_body({"prompt": reading(path)}), nodes, 1, tmp_path).graph.nodes["cat"].inputs["path"] == path
        )
    away = reading("sr_nodes:samples/test/picture-1a.jpg")
    away["saved"]["inputs"]["filename"] = "../../x.png"
    assert list(refusal(nodes, away, tmp_path)["node_errors"]) == ["saved"]


def test_an_id_that_no_message_can_carry_is_a_fault(nodes: Registry) -> None:
    """The client's, or the one that a node of the editor remembers."""
    note = {"class_type": "scale", "inputs": {"tick": 1.0}}
    told = refusal(nodes, {**training(), "\ud800": note})
    assert told["node_errors"]["\ud800"]["errors"][0]["message"] == "a node's id holds half of a surrogate pair"
    remembers = {**note, "_meta": {"sr_pipeline": {"id": "a\udfff"}}}
    told = refusal(nodes, {**training(), "7": remembers})
    assert list(told["node_errors"]) == ["7"]


def test_the_editors_numbers_become_our_ids_and_errors_come_back_under_its_numbers(nodes: Registry) -> None:
    graph = Graph.parse(json.dumps(training()))
    workflow = to_workflow(graph, nodes)
    number = {node["properties"]["sr_pipeline"]["id"]: str(node["id"]) for node in workflow["nodes"]}

    def renumbered(prompt: dict[str, Any]) -> dict[str, Any]:
        return {
            number[id_]: {
                **entry,
                "inputs": {k: [number[v[0]], v[1]] if isinstance(v, list) else v for k, v in entry["inputs"].items()},
            }
            for id_, entry in prompt.items()
        }

    extra = {"extra_pnginfo": {"workflow": workflow}}
    job = job_of(read_body({"prompt": renumbered(changed("ticks")), "extra_data": extra}), nodes, 1, Path("input"))
    assert job.graph.nodes.keys() == graph.nodes.keys()
    assert job.names == number
    assert job.stepping == ("ticks", "step")
    assert set(job.outputs) == {number[id_] for id_ in ("curve", "shade", "kept")}
    told = refusal(nodes, renumbered(changed("loss", mode="cubic")), extra_data=extra)
    assert list(told["node_errors"]) == [number["loss"]]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["class_type", "inputs", "tick", "a", "_meta", "0"]) | st.text(max_size=3),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_anything_is_refused_in_words(nodes: Registry, content: Any) -> None:
    for prompt in (content, {"a": content}, {"a": {"class_type": "scale", "inputs": content}}):
        body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": content}}}
        with pytest.raises(PromptError, match=r"\w"):
            job_of(read_body(body), nodes, 1, Path())
