"""One line a fault, and one family."""

from __future__ import annotations

import pytest

from sr_pipeline import errors
from sr_pipeline.errors import Fault, GraphError, PipelineError, nearest

FAMILY = ["NodeDeclarationError", "NodeRunError", "CheckpointError", "UsageError"]


def test_a_fault_is_one_line() -> None:
    assert str(Fault("a.json: x.y", "found 1", "write 2")) == "a.json: x.y: found 1; write 2"
    assert str(Fault("a.json: x.y", "found 1")) == "a.json: x.y: found 1"


@pytest.mark.parametrize("name", FAMILY)
def test_an_error_holds_its_fault(name: str) -> None:
    error = getattr(errors, name)("here", "this", "mend")
    assert isinstance(error, PipelineError)
    assert error.faults == (Fault("here", "this", "mend"),)
    assert str(error) == "here: this; mend"


def test_a_graph_error_is_a_line_a_fault() -> None:
    faults = [Fault("a", "b", "c"), Fault("d", "e")]
    error = GraphError(iter(faults))
    assert isinstance(error, PipelineError)
    assert error.faults == tuple(faults)
    assert str(error) == "a: b; c\nd: e"


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("scal", ["hr", "scale"], "did you mean 'scale'?"),
        ("zebra", ["scale", "hr"], "known: hr, scale"),
        ("zebra", [], "there is none"),
        ("?", [f"n{n:02}" for n in range(12)], "known: " + ", ".join(f"n{n:02}" for n in range(12))),
        ("?", [f"n{n:02}" for n in range(13)], "known: " + ", ".join(f"n{n:02}" for n in range(12)) + ", ..."),
    ],
)
def test_the_nearest_name_or_a_few_of_those_known(name: str, known: list[str], words: str) -> None:
    assert nearest(name, known) == words
