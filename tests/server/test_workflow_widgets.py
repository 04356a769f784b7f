"""Sockets and widgets as the editor is told of them, against what the check accepts."""

from __future__ import annotations

import json
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st

from sr_pipeline.graph import Entry, Graph
from sr_pipeline.node import node, node_type
from sr_pipeline.registry import Registry
from sr_pipeline.server.objects import object_info
from sr_pipeline.server.widgets import input_spec, output_name, read, shown, widget
from sr_pipeline.server.workflow import to_api, to_workflow
from sr_pipeline.sockets import Loss, Model

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3))


@node
def kinds(
    model: Model,
    either: Loss | float,
    whole: int = 3,
    number: float = 1e-4,
    switch: bool = True,
    text: str = "a",
    words: Literal["x", "y"] = "x",
    sizes: Literal[1, 2] = 1,
    mixed: Literal[1, "x"] = 1,
    maybe: float | None = None,
    many: tuple[int, ...] = (1, 2),
) -> Loss:
    """An input of each kind."""
    return model(whole).sum()  # type: ignore[no-any-return]


INPUTS = node_type(kinds).inputs


def test_each_kind_has_its_widget() -> None:
    found = {name: known.kind if (known := widget(i)) else None for name, i in INPUTS.items()}
    assert found == {
        "model": None,
        "either": None,
        "whole": "INT",
        "number": "FLOAT",
        "switch": "BOOLEAN",
        "text": "STRING",
        "words": "COMBO",
        "sizes": "COMBO",
        "mixed": "JSON",
        "maybe": "JSON",
        "many": "JSON",
    }


def test_specs() -> None:
    registry = Registry([kinds])
    specs = {name: input_spec(i, registry) for name, i in INPUTS.items()}
    assert specs["sizes"] == [[1, 2], {"default": 1}]
    assert specs["many"] == ["LIST", {"default": "[1, 2]", "widgetType": "STRING"}]
    assert specs["maybe"] == ["FLOAT", {"default": "null", "widgetType": "STRING"}]
    assert specs["mixed"] == ["INT", {"default": "1", "widgetType": "STRING"}]
    assert specs["either"] == ["FLOAT,LOSS", {"forceInput": True}]
    assert specs["number"][1] == {"default": 1e-4, "min": -1e300, "max": 1e300, "step": 1e-6}


@node
def unbounded(number: float = float("inf"), many: tuple[float, ...] = (1.0, float("nan"))) -> float:
    """Defaults that JSON has not."""
    return number + len(many)


def test_a_default_that_json_cannot_write_is_left_out_and_comes_back_as_none_was_given() -> None:
    registry = Registry([unbounded])
    info = json.dumps(object_info(registry), allow_nan=False)
    assert ["default" in spec for _, spec in json.loads(info)["unbounded"]["input"]["optional"].values()] == [False] * 2
    graph = Graph({"a": Entry("unbounded")})
    workflow = json.loads(json.dumps(to_workflow(graph, registry), allow_nan=False))
    assert to_api(workflow, registry) == graph


@given(values)
def test_what_is_shown_is_read_back(value: Any) -> None:
    """To the byte: 1 is not 1.0, and the text "null" is not null."""
    for input_ in INPUTS.values():
        assert json.dumps(read(input_, json.loads(json.dumps(shown(input_, value))))) == json.dumps(value)
    assert isinstance(shown(INPUTS["maybe"], value), str)


def test_a_text_that_is_no_finite_number_stays_a_text() -> None:
    for text in ("1e999", "[-1e999]", "NaN"):
        assert read(INPUTS["maybe"], text) == text


def test_the_editor_links_what_the_check_accepts(registry: Registry) -> None:
    """Each output with each input of the pack. A whole number is not linked to a widget that is a plain number, and an
    output that has the type of what is linked to its node goes wherever one of them may go."""
    outputs = {(o.type, output_name(o.type, registry)) for made in registry.values() for o in made.outputs}
    pairs = 0
    for made in registry.values():
        for input_ in made.inputs.values():
            spec = input_spec(input_, registry)[0]
            names = set(spec.split(",")) if isinstance(spec, str) else {"COMBO"}
            for kind, name in outputs:
                pairs += 1
                connects, accepts = bool(names & set(name.split(","))), input_.type.accepts(kind)
                if kind.variable or (str(kind), spec) == ("int", "FLOAT") or "one of" in str(input_.type):
                    continue
                assert connects == accepts, (made.name, input_.name, name)
    assert pairs > 1000
