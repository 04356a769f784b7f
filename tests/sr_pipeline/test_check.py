"""Checking a graph: every broken one is refused with the words of broken/expected.txt; settings from a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from torch import nn

from sr_pipeline.check import check, with_settings
from sr_pipeline.errors import MAX_FAULTS, GraphError, PipelineError, UsageError
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.sockets import Every, Model

BROKEN = Path(__file__).parent / "broken"
EXPECTED = (BROKEN / "expected.txt").read_text(encoding="utf-8").splitlines()
BY_PYTHON = {"trailing_comma": r"not JSON at line \d, column \d+: (Expecting property name|Illegal trailing comma).*"}
"""Messages whose words are those of the Python that runs the tests."""


@pytest.fixture(scope="module")
def pack() -> Registry:
    return load_packs()


def refusal(path: Path, registry: Registry) -> str:
    """What the user is told of a file, with the file's name in place of its path."""
    with pytest.raises(PipelineError, match=re.escape(str(path))) as error:
        compile_plan(Graph.load(path), registry)
    return str(error.value).replace(str(path), path.name)


@pytest.mark.parametrize("name", sorted(p.stem for p in BROKEN.glob("*.json") if p.stem not in BY_PYTHON))
def test_a_broken_graph_is_refused_in_these_words(name: str, pack: Registry) -> None:
    expected = [line for line in EXPECTED if line.startswith(f"{name}.json: ")]
    assert refusal(BROKEN / f"{name}.json", pack).splitlines() == expected


@pytest.mark.parametrize("name", BY_PYTHON)
def test_a_broken_graph_is_refused_in_such_words(name: str, pack: Registry) -> None:
    assert re.fullmatch(f"{name}.json: {BY_PYTHON[name]}; mend the file there", refusal(BROKEN / f"{name}.json", pack))


def test_each_expected_line_is_of_a_broken_graph() -> None:
    assert {line.partition(": ")[0] for line in EXPECTED} <= {p.name for p in BROKEN.glob("*.json")}


class Pair(NamedTuple):
    small: int
    large: float


@node
def pair(low: int = 1, name: str = "", choices: tuple[int, ...] = (), text: str | int = 0) -> Pair:
    return Pair(low, 2.0)


@node
def use(x: float = 0.0, model: Model | None = None, every: Every = 1) -> None: ...


@node
def same(value: Any) -> Any:
    return value


@node
def numbers() -> Iterator[int]:
    yield from range(3)


NumberOrModule = TypeVar("NumberOrModule")
M = TypeVar("M", bound=nn.Module)
TOYS = Registry([pair, use, same, numbers])


def graph_of(**links: Link) -> Graph:
    graph = Graph()
    graph.add(pair, id="pair")
    graph.add(use, id="use", **links)
    return graph


@pytest.mark.parametrize("output", [0, 1, "small", "large"])
def test_an_output_is_meant_by_index_or_by_name(output: int | str) -> None:
    wiring = check(graph_of(x=Link("pair", output)), TOYS)
    assert wiring.links["use"]["x"] == ("pair", {"small": 0, "large": 1}.get(str(output), output))


def test_literals_are_read_as_their_types_and_settings_know_defaults() -> None:
    graph = Graph()
    graph.add(pair, id="pair", choices=[1, 2])
    wiring = check(graph, TOYS)
    assert wiring.literals["pair"] == {"choices": (1, 2)}
    made = wiring.types["pair"]
    assert [wiring.setting("pair", made.inputs[name]) for name in ("choices", "low")] == [(1, 2), 1]


def test_a_node_that_is_passed_through_keeps_the_type_of_its_source() -> None:
    @node
    def of_type(value: NumberOrModule) -> NumberOrModule:
        return value

    graph = graph_of(model=Link("through"))
    graph.add(of_type, id="through", value=Link("pair", 0))
    with pytest.raises(GraphError, match=re.escape("use.model: found int (through.object), wanted Model or nothing")):
        check(graph, TOYS.with_nodes([of_type]))


def test_a_fault_upstream_is_told_once() -> None:
    @node
    def copied(value: M) -> M:
        return value

    graph = graph_of(model=Link("copy"))
    graph.add(copied, id="copy")
    with pytest.raises(GraphError, match=r"^graph: copy\.value: missing, wanted Module; add \"value\" to its inputs$"):
        check(graph, TOYS.with_nodes([copied]))


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_a_literal_of_a_program_that_no_json_can_hold_is_refused(value: object) -> None:
    graph = Graph()
    graph.add(pair, id="pair", name=value)
    with pytest.raises(GraphError, match=r"graph: pair\.name: found .*, wanted str; .* is not JSON serializable"):
        check(graph, TOYS)


def settings(graph: Graph, *given: str) -> dict[str, Any]:
    return with_settings(graph, TOYS, given).nodes["pair"].inputs


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("pair.low=3", 3),
        ("pair.low=three", "three"),
        ("pair.low=null", None),
        ("pair.choices=[1, 2, 3]", [1, 2, 3]),
        ('pair.low=["other", 0]', Link("other", 0)),
        ('pair.low=["other", "small"]', Link("other", "small")),
        ("pair.name=cat.png", "cat.png"),
        ('pair.name="cat.png"', "cat.png"),
        ("pair.name=a=b", "a=b"),
        ("pair.name=", ""),
        ("pair.name=10", "10"),
        ("pair.name=1e-4", "1e-4"),
        ("pair.name=true", "true"),
        ("pair.name=null", "null"),
        ("pair.name=" + "7" * 5000, "7" * 5000),
        ("pair.text=10", 10),
        ("pair.text=1.5", "1.5"),
    ],
)
def test_a_setting_is_json_or_a_bare_string(setting: str, value: object) -> None:
    assert settings(graph_of(), setting) == {setting[5:].partition("=")[0]: value}


def test_settings_change_a_copy_and_the_last_one_holds() -> None:
    graph = graph_of()
    assert settings(graph, "pair.low=3", "pair.name=x", "pair.low=4") == {"low": 4, "name": "x"}
    assert graph == graph_of()


def test_a_node_id_with_a_dot_can_be_set() -> None:
    graph = Graph()
    graph.add(pair, id="a.b")
    assert with_settings(graph, TOYS, ["a.b.low=3"]).nodes["a.b"].inputs == {"low": 3}


def test_a_setting_of_an_unknown_type_is_left_to_the_check() -> None:
    graph = Graph()
    graph.add("unheard_of", id="x")
    with pytest.raises(GraphError, match=re.escape("graph: x: unknown node type 'unheard_of'; known: numbers, pair")):
        check(with_settings(graph, TOYS, ["x.y=1"]), TOYS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pair.low", "--set pair.low: is not node.input=value; for example --set crops.batch=4"),
        ("low=3", "--set low=3: is not node.input=value; for example --set crops.batch=4"),
        ("", "--set : is not node.input=value; for example --set crops.batch=4"),
        ("pear.low=3", "--set pear.low=3: there is no node 'pear'; did you mean 'pair'?"),
        ("pair.lo=3", "--set pair.lo=3: pair has no input 'lo'; did you mean 'low'?"),
    ],
)
def test_a_setting_that_names_nothing_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        settings(graph_of(), setting)


def test_two_streams_and_a_wrong_link_are_told_together() -> None:
    graph = graph_of(model=Link("first"))
    graph.add(numbers, id="first")
    graph.add(numbers, id="second")
    with pytest.raises(GraphError, match=r"use\.model: found int") as error:
        check(graph, TOYS)
    assert [f.where for f in error.value.faults] == ["graph: use.model", "graph: second"]


def test_nothing_else_than_a_module_is_a_model() -> None:
    @node
    def module() -> nn.Linear:
        return nn.Linear(1, 1)

    graph = graph_of(model=Link("module"))
    graph.add(module, id="module")
    assert check(graph, TOYS.with_nodes([module])).links["use"] == {"model": ("module", 0)}


def test_a_thousand_faults_of_wiring_are_told_as_a_hundred() -> None:
    graph = Graph()
    for number in range(1000):
        graph.add("u" * 10**4 if number % 2 else "use", x=Link("n" * 10**4, "o" * 10**4))
    with pytest.raises(GraphError, match=r"graph: and more; mend these first$") as error:
        check(graph, TOYS)
    assert len(error.value.faults) == MAX_FAULTS + 1
    assert len(str(error.value)) < 50_000
