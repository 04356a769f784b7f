"""Commands of packs: what a flag sets, and the time left of a stream that knows its length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sr_pipeline import packcommands
from sr_pipeline.command import Command, Flag
from sr_pipeline.errors import Fault, GraphError, NodeRunError, PipelineError, UsageError
from sr_pipeline.events import Event, NodeProgress, NodeStarted, Progress, RunStarted, Saved, Warned
from sr_pipeline.graph import Graph
from sr_pipeline.packcommands import Told, in_flags

COMMAND = Command(
    name="grow",
    graph="g",
    help="",
    flags=(
        Flag("in", ("a.inputs",), "", required=True, multiple=True),
        Flag("out", ("a.output",), "", required=True),
        Flag("--tile", ("a.tile", "b.tile"), "", words={"auto": "auto", "none": None}, number=True),
        Flag("--bare", ("a.metadata",), "", switch=True, constant=False),
    ),
    result="r",
    text="t",
    pipe="out",
)


def invoke(*words: str) -> Any:
    app = typer.Typer()
    app.command("grow")(packcommands._callback(COMMAND))
    return CliRunner().invoke(app, list(words))


def values(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[dict[str, Any], bool]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(packcommands, "_run", lambda *given: calls.append(given))
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    ((_, found, _, _, _, _, pipes),) = calls
    return found, pipes


def test_arguments_by_position_words_numbers_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert values(monkeypatch, "x", "y", "z") == ({"a.inputs": ["x", "y"], "a.output": "z"}, False)
    given = ["x", "z", "--tile", "none", "--bare"]
    wanted = {"a.inputs": ["x"], "a.output": "z", "a.tile": None, "b.tile": None, "a.metadata": False}
    assert values(monkeypatch, *given) == (wanted, False)
    found, pipes = values(monkeypatch, "-", "-", "--tile", "64")
    assert (found["a.inputs"], found["a.output"], found["b.tile"], pipes) == (["-"], "-", 64, True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["x", "z", "--tile", "6x"], "Invalid value for '--tile': '6x' is not auto or none or a whole number"),
        (["z"], "Missing argument"),
        (["x", "z", "--nix"], "No such option"),
    ],
)
def test_mistakes_exit_with_2(words: list[str], error: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert error in result.output


def test_the_total_of_a_stream_that_tells_it() -> None:
    heard: list[Event] = []
    tell = Told(heard.append, "grow", frozenset({"pictures"}), kept=True)
    tell(Progress(1, None, 2.0))
    tell(NodeProgress("tiles", 3, 99))
    tell(Progress(2, None, 2.0))
    tell(NodeProgress("pictures", 3, 10))
    tell(Progress(3, None, 2.0))
    tell(Progress(4, 7, 2.0))
    assert [event.total for event in heard if isinstance(event, Progress)] == [None, None, 10, 7]
    assert len(heard) == 6
    assert tell.total == 10


@pytest.mark.parametrize("kept", [True, False])
def test_of_a_temporary_folder_nothing_is_said_and_of_nodes_only_what_they_warn_of(kept: bool) -> None:
    heard: list[Event] = []
    tell = Told(heard.append, "grow", frozenset(), kept)
    spoken: list[Event] = [RunStarted("g", "runs/g", 0, "cpu", 3), NodeStarted("a", "setup"), Saved(1, "runs/g/c")]
    for event in (*spoken, Warned("a", "is small")):
        tell(event)
    assert heard == [*(spoken if kept else []), Warned("grow", "is small")]


def failed(where: str, cause: Exception) -> NodeRunError:
    error = NodeRunError(where, f"shrink failed: {cause}", "its inputs: tile=3")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (GraphError([Fault("g.json: b.tile", "found 0", "write 1"), Fault("g.json: a.inputs", "found 1", "")]),
         "--tile: found 0; write 1\nIN: found 1"),
        (GraphError([Fault("g.json: c", "unknown node type", "")]), "g.json: c: unknown node type"),
        (failed("g.json: a", ValueError("no such picture")), "sr-pipeline grow: no such picture"),
        (failed("g.json: b", ValueError("too small a tile")), "--tile: too small a tile"),
        (failed("g.json: c", ValueError("no summary")), "sr-pipeline grow: no summary"),
        (failed("g.json: b", KeyError("x")), "g.json: b: shrink failed: 'x'; its inputs: tile=3"),
        (UsageError("--device x", "is no device", ""), "--device x: is no device"),
    ],
)  # fmt: skip
def test_an_error_names_the_flag(error: PipelineError, text: str) -> None:
    """Users' mistakes are told by the flag; faults of the program keep the place where they are to be mended."""
    told = in_flags(error, COMMAND, Graph(source="g.json"))
    assert str(told) == text
    assert type(told) is type(error)


def test_where_the_result_goes_decides_whether_the_folder_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(packcommands, "_run", lambda *given: calls.append(given))
    flags = (Flag("out", ("a.output",), ""), Flag("--bare", ("a.metadata",), "", switch=True))
    app = typer.Typer()
    made = replace(COMMAND, flags=flags, temporary_with="out", sets={"r.strict": False})
    app.command("grow")(packcommands._callback(made))
    for words in (["x"], [], ["x", "--run-dir", "runs/x"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert [kept for _, _, _, _, kept, _, _ in calls] == [False, True, True]
    assert calls[0][1] == {"r.strict": False, "a.output": "x"}


def test_the_usage_names_no_hidden_argument() -> None:
    flags = (Flag("--testset", ("a.folders",), "", required=True, multiple=True),)
    app = typer.Typer()
    app.command("measure")(packcommands._callback(replace(COMMAND, flags=flags, pipe="")))
    usage = CliRunner().invoke(app, ["--help"]).output
    assert "[TESTSET]..." in usage
    assert "more" not in usage


def test_a_folder_that_holds_a_run_is_refused_without_a_word_of_resume(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    with pytest.raises(UsageError, match=r"^--run-dir .*: holds a run already; give another folder$"):
        packcommands._run(COMMAND, {}, "cpu", tmp_path, True, False, False)
