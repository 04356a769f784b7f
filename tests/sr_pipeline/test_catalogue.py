"""The registry described: the JSON Schema agrees with the checker, the data and the reference with the nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from sr_pipeline.catalogue import describe_node, json_schema, markdown
from sr_pipeline.check import check
from sr_pipeline.errors import GraphError
from sr_pipeline.graph import Graph
from sr_pipeline.node import node
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.sockets import Loss, Model, Mutates

BROKEN = Path(__file__).parent / "broken"
SHIPPED = sorted((Path(__file__).parents[2] / "graphs").glob("*.json"))
REFUSED_BY_SCHEMA = (
    "bool_for_int class_type_empty class_type_number cadence_negative empty_object float_for_int "
    "injected_as_input inputs_list inputs_null list_at_top list_unwrapped_number literal_for_link meta_string "
    "misspelt_input missing_input no_class_type null_at_top null_not_allowed number_at_open_bound number_at_top "
    "number_for_boolean number_for_string number_too_high number_too_low object_for_number raw_list "
    "raw_list_of_three slot_fraction slot_negative string_as_node string_for_boolean string_for_number "
    "string_for_number_choice two_unknown_keys unknown_key unknown_type wrong_choice wrong_in_list "
    "wrong_number_choice"
)


@pytest.fixture(scope="module")
def pack() -> Registry:
    return load_packs()


@pytest.fixture(scope="module")
def schema(pack: Registry) -> jsonschema.Draft202012Validator:
    made = json.loads(json.dumps(json_schema(pack)))
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_schema_accepts_shipped_graphs(path: Path, schema: jsonschema.Draft202012Validator) -> None:
    schema.validate(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", REFUSED_BY_SCHEMA.split())
def test_the_schema_refuses_broken_graphs(name: str, schema: jsonschema.Draft202012Validator) -> None:
    assert not schema.is_valid(json.loads((BROKEN / f"{name}.json").read_text(encoding="utf-8")))


@node(category="toys")
def sized(
    model: Mutates[Model],
    size: Annotated[int, Field(ge=1)] = 4,
    mode: Literal["fast", "slow"] = "fast",
    weights: tuple[float, ...] = (1.0,),
    path: Path | None = None,
    loss: Loss | float = 0.0,
) -> Model:
    """Set sizes.

    More | of it.

    Args:
        size: in a | b pixels.
    """
    return model


@node(category="toys")
def numbers(up_to: int = 3) -> Iterator[int]:
    """Count."""
    yield from range(up_to)


@node(output=True)
def bare() -> None: ...


TOYS = Registry([sized, numbers, bare])
TOY_SCHEMA = jsonschema.Draft202012Validator(json_schema(TOYS))
scalars = st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([0.5, "fast", "a.png"])
literals = scalars | st.builds(lambda v: {"__value__": v}, st.lists(scalars, max_size=2)) | st.just(["model", 0])


@given(st.dictionaries(st.sampled_from(["size", "mode", "weights", "path", "loss", "seize"]), literals))
def test_schema_and_checker_agree_on_literals(inputs: dict[str, Any]) -> None:
    content = {"model": {"class_type": "sized", "inputs": {"model": ["model", 0], **inputs}}}
    try:
        check(Graph.parse(json.dumps(content)), TOYS)
        faults: list[str] = []
    except GraphError as error:
        faults = [f.what for f in error.faults if not f.what.startswith(("a cycle", "found Model"))]
    assert TOY_SCHEMA.is_valid(content) == (not faults)


def test_a_node_without_needs_may_leave_its_inputs_out() -> None:
    TOY_SCHEMA.validate({"bare": {"class_type": "bare"}, "n": {"class_type": "numbers", "_meta": {"title": "N"}}})
    assert not TOY_SCHEMA.is_valid({"sized": {"class_type": "sized"}})


def test_a_node_as_data() -> None:
    described = describe_node(TOYS["sized"])
    assert json.loads(json.dumps(described)) == described
    assert {k: described[k] for k in ("name", "category", "kind", "output_node", "summary")} == {
        "name": "sized",
        "category": "toys",
        "kind": "function",
        "output_node": False,
        "summary": "Set sizes.",
    }
    assert described["inputs"]["model"] == {"type": "Model", "required": True, "help": "", "mutates": True}
    assert described["inputs"]["size"] == {
        "type": "int",
        "required": False,
        "help": "in a | b pixels.",
        "default": 4,
        "schema": {"minimum": 1, "type": "integer"},
    }
    assert described["inputs"]["weights"]["default"] == [1.0]
    assert described["inputs"]["mode"]["schema"] == {"enum": ["fast", "slow"], "type": "string"}
    assert described["outputs"] == [{"name": "model", "type": "Model"}]


def test_every_node_of_the_pack_can_be_described(pack: Registry) -> None:
    described = json.loads(json.dumps({name: describe_node(made) for name, made in pack.items()}))
    for name, made in pack.items():
        assert list(described[name]["inputs"]) == list(made.inputs)
        assert all(described[name][key] for key in ("category", "summary", "module"))
        assert all(i["help"] for i in described[name]["inputs"].values()), f"{name} has an input without help"


def test_the_reference_is_a_section_a_category_and_a_table_a_node() -> None:
    text = markdown(TOYS)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Nodes",
        "## other",
        "### bare",
        "## toys",
        "### numbers",
        "### sized",
    ]
    assert f"`{sized.__module__}.sized`, a function, gives model: Model." in text
    assert "a function, gives nothing." in text
    assert "| model | changes Model | needed |  |" in text
    assert "| size | int | `4` | in a or b pixels. |" in text
    assert "More | of it." in text
    assert "Args:" not in text


def test_the_reference_names_every_input_of_the_pack(pack: Registry) -> None:
    sections = {s.partition("\n")[0]: s for s in markdown(pack).split("\n### ")[1:]}
    assert sorted(sections) == sorted(pack)
    for name, made in pack.items():
        rows = [line for line in sections[name].splitlines() if line.startswith("| ")][1:]
        assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(made.inputs)
        assert all(row.count("|") == 5 for row in rows), f"a bar inside a cell of {name}"
        assert ("\nRaises " in sections[name]) == ("Raises:" in made.doc or "\nRaises " in made.doc)
        assert "Raises:" not in sections[name]
