"""Events and their files: in order, in bundles, exact, and readable by strict parsers."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import toys
from sr_pipeline.events import (
    Channel,
    Done,
    Event,
    Failed,
    ImageWritten,
    NodeProgress,
    NodeReporter,
    NodeStarted,
    Progress,
    Resumed,
    RunStarted,
    Saved,
    Scalar,
    Warned,
)
from sr_pipeline.sinks import JsonLines, MetricsCsv, read_metrics

# bundles


class Watched(Tensor):
    """Counts how often its numbers are read."""

    reads = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.tolist, Tensor.item, Tensor.__float__, Tensor.__bool__):
            cls.reads += 1
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_tensors_are_read_together_and_only_at_a_flush() -> None:
    Watched.reads, heard = 0, toys.Heard()
    channel = Channel([heard], flushed=math.inf)
    for step in range(1, 6):
        channel.step = step
        channel.scalar("a", torch.tensor(step / 4, requires_grad=True).as_subclass(Watched))
        channel.scalar("b", 7)
    assert (Watched.reads, heard) == (0, [])
    channel.flush()
    assert Watched.reads == 1
    assert heard == [Scalar(step, name, step / 4 if name == "a" else 7.0) for step in range(1, 6) for name in "ab"]
    channel.flush()
    assert len(heard) == 10


def test_a_scalar_is_what_it_was_when_it_was_told() -> None:
    heard, weight = toys.Heard(), torch.tensor([[2.5]])
    channel = Channel([heard], flushed=math.inf)
    channel.scalar("weight", weight)
    weight.fill_(9)
    channel.flush()
    assert heard == [Scalar(0, "weight", 2.5)]


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(0)])
def test_what_is_no_scalar_is_refused_at_once(value: Tensor) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        Channel([]).scalar("x", value)


def test_scalars_do_not_wait_for_ever() -> None:
    heard = toys.Heard()
    patient, old = Channel([heard], flushed=math.inf), Channel([heard], flushed=-math.inf)
    old.scalar("x", 1.0)
    assert len(heard) == 1
    for _ in range(1000):
        patient.scalar("x", 1.0)
    assert len(heard) == 1001


def test_a_node_reports_under_its_id() -> None:
    heard = toys.Heard()
    channel = Channel([heard], step=3)
    reporter = NodeReporter(channel, "net")
    reporter.scalar("", 1.0)
    reporter.scalar("loss", 2)
    reporter.image(Path("a.png"))
    reporter.warning("hm")
    reporter.progress(1, 2)
    channel.flush()
    assert sorted(heard, key=repr) == [
        ImageWritten(3, "net", "a.png"),
        NodeProgress("net", 1, 2),
        Scalar(3, "net", 1.0),
        Scalar(3, "net/loss", 2.0),
        Warned("net", "hm"),
    ]


# events.jsonl

EVENTS: list[Event] = [
    RunStarted("graph", "runs/x", 0, "cpu", 3),
    NodeStarted("net", "setup"),
    NodeProgress("net", 1, 2),
    Resumed(4),
    Progress(5, None, 2.5),
    Scalar(5, "loss", 0.25),
    ImageWritten(5, "preview", "a.png"),
    Warned("net", "Größe\nzwei"),
    Saved(5, "b"),
    Failed("net", "no"),
    Done(5, True, 1.5),
]


def test_every_event_but_the_ticking_ones_is_a_line(tmp_path: Path) -> None:
    with closing(JsonLines(tmp_path / "events.jsonl")) as sink:
        for event in EVENTS:
            sink(event)
    with closing(JsonLines(tmp_path / "events.jsonl")) as sink:
        sink(Resumed(9))
    lines = toys.events_of(tmp_path)
    kept = [e for e in EVENTS if not isinstance(e, (Progress, NodeProgress))]
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines] == [
        *(e.to_dict() for e in kept),
        {"type": "resumed", "step": 9},
    ]
    assert all(line["time"] > 0 for line in lines)


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@given(st.floats())
def test_any_number_is_valid_json_and_comes_back(tmp_path: Path, value: float) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    with closing(JsonLines(path)) as sink:
        sink(Scalar(1, "x", value))
    back = float(strict(path.read_text())["value"])
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_in_events_jsonl_each_step_is_told_once(tmp_path: Path) -> None:
    """What is told of steps that are done again is dropped; what was done once stays, and so does any other line."""
    path = tmp_path / "events.jsonl"
    with closing(JsonLines(path)) as sink:
        for event in (Scalar(0, "made", 1.0), *EVENTS[3:9], Scalar(6, "loss", math.nan), Scalar(6, "b\u2028", 1.0)):
            sink(event)
    path.write_bytes(path.read_bytes() + b'not JSON\n{"type": "scalar", "step": 7, "name": "lo')
    with closing(JsonLines(path)) as sink:
        sink(Scalar(0, "made", 1.0))
        sink(Resumed(5))
        sink(Scalar(6, "loss", 0.5))
        sink(ImageWritten(6, "preview", "b.png"))
    with closing(JsonLines(path)) as sink:
        sink(Resumed(4))
        sink(Scalar(5, "loss", 0.25))
    lines = path.read_text().splitlines()
    assert lines.pop(4) == "not JSON"
    told = [(e["type"], e.get("step"), e.get("name", "")) for e in map(json.loads, lines)]
    assert told == [
        ("scalar", 0, "made"),
        ("resumed", 4, ""),
        ("warning", None, ""),
        ("saved", 5, ""),
        ("resumed", 5, ""),
        ("resumed", 4, ""),
        ("scalar", 5, "loss"),
    ]


# metrics.csv


@given(st.lists(st.tuples(st.integers(0, 9), st.text(st.characters(exclude_categories=["Cs"])), st.floats())))
def test_metrics_come_back(tmp_path: Path, rows: list[tuple[int, str, float]]) -> None:
    path = tmp_path / "metrics.csv"
    path.unlink(missing_ok=True)
    with closing(MetricsCsv(path)) as sink:
        for step, name, value in rows:
            sink(Scalar(step, name, value))
    assert repr(read_metrics(path)) == repr(rows)
    written = path.read_bytes()
    MetricsCsv(path).close()
    assert path.read_bytes() == written


def metrics(path: Path) -> Path:
    """Three scalars at each of the steps 9, 10 and 11."""
    with closing(MetricsCsv(path)) as sink:
        for step in (9, 10, 11):
            for name in ("a", "b,c", "d"):
                sink(Scalar(step, name, step / 64))
        sink(Warned("x", "no scalar"))
    return path


def test_rows_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = metrics(tmp_path / "metrics.csv")
    rows = read_metrics(path)
    with closing(MetricsCsv(path)) as sink:
        assert read_metrics(path) == rows  # a resume that is refused must lose nothing
        sink(Resumed(10))
        sink(Scalar(10, "a", 1.0))  # told again: it is there
        sink(Scalar(11, "a", 2.0))
    assert read_metrics(path) == [*rows[:6], (11, "a", 2.0)]


def test_a_row_cut_short_is_left_out(tmp_path: Path) -> None:
    path = metrics(tmp_path / "metrics.csv")
    rows, text = read_metrics(path), path.read_bytes()
    for end in range(len(text) + 1):
        path.write_bytes(text[:end])
        whole = max(text[:end].count(b"\r\n") - 1, 0)
        assert read_metrics(path) == rows[:whole]


def test_rows_that_a_spreadsheet_saved_are_read(tmp_path: Path) -> None:
    path = metrics(tmp_path / "metrics.csv")
    rows, text = read_metrics(path), path.read_bytes()
    path.write_bytes(text.replace(b"\r\n", b"\n") + b"mean,,0.5\n\n")
    assert read_metrics(path) == rows
    MetricsCsv(path).close()
    assert path.read_bytes() == text


def test_no_file_has_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_a_number_that_is_none_is_warned_of_once() -> None:
    heard: list[Event] = []
    channel = Channel([heard.append])
    for step, value in enumerate((1.0, float("nan"), float("nan")), start=1):
        channel.step = step
        channel.scalar("loss", torch.tensor(value))
    channel.flush()
    warnings = [event for event in heard if isinstance(event, Warned)]
    assert warnings == [Warned("loss", "it is nan at step 2; look at what leads to it")]
