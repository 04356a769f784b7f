"""Saving beside the training: what is kept, when, and what a saving that fails does to a run."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from sr_pipeline import checkpoint
from sr_pipeline.checkpoint import Snapshot, read, snapshot
from sr_pipeline.errors import CheckpointError, NodeRunError, RunFolderError, UsageError
from sr_pipeline.events import Event, Failed, Saved, Scalar, Warned
from sr_pipeline.saver import Saver, best_of


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "checkpoints").glob("*.safetensors"))


def taken(step: int) -> Snapshot:
    return snapshot(step, {}, {})


# the writer


def test_the_newest_three_are_kept(tmp_path: Path) -> None:
    writer = Saver(tmp_path / "checkpoints")
    for step in (1, 5, 9, 10, 200):
        writer.start(taken(step), best=False)
        path = writer.wait()
        assert path is not None
        assert path.name == f"step-{step:09d}.safetensors"
    assert names(tmp_path) == ["step-000000009", "step-000000010", "step-000000200"]
    assert writer.wait() is None


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    writer = Saver(tmp_path / "checkpoints")
    for step in range(1, 9):
        writer.start(taken(step), best=step in (2, 4))
        writer.wait()
    assert names(tmp_path) == ["best-000000004", "step-000000006", "step-000000007", "step-000000008"]
    assert read(tmp_path / "checkpoints" / "best-000000004.safetensors").step == 4


def test_the_best_is_kept_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    writer = Saver(tmp_path / "checkpoints")
    writer.start(taken(2), best=True)
    writer.wait()
    assert read(tmp_path / "checkpoints" / "best-000000002.safetensors").step == 2


def test_the_training_does_not_wait_for_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a checkpoint told of before it is there."""
    may_write, whole = threading.Event(), checkpoint.write

    def slow(path: Path, snapshot: Snapshot) -> None:
        assert may_write.wait(60)
        whole(path, snapshot)

    monkeypatch.setattr(checkpoint, "write", slow)
    writer = Saver(tmp_path / "checkpoints")
    writer.start(taken(1), best=False)
    assert (writer.poll(), names(tmp_path)) == (None, [])
    may_write.set()
    writer.wait()
    assert names(tmp_path) == ["step-000000001"]


def test_what_is_saved_is_told_once_it_is_there(tmp_path: Path) -> None:
    there: list[tuple[int, bool]] = []

    def sink(event: Event) -> None:
        if isinstance(event, Saved):
            there.append((event.step, Path(event.path).is_file()))

    toys.run_of(toys.REGRESSION, tmp_path, checkpoint_every=1, sinks=[sink])
    assert there == [(step, True) for step in range(7)]


# a saving that fails


def test_a_full_disk_stops_the_run_with_the_one_before_intact(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path / "straight")
    folder, heard = tmp_path / "full", toys.Heard()
    with toys.files_no_larger() as limit:

        def fill(event: Event) -> None:
            if isinstance(event, Saved) and event.step == 2:
                limit(Path(event.path).stat().st_size - 100)

        message = r"step-000000004\.safetensors: the state cannot be saved: .*File too large.*; make room"
        with pytest.raises(CheckpointError, match=message):
            toys.run_of(toys.REGRESSION, folder, checkpoint_every=2, sinks=[fill, heard])
    assert names(folder) == ["step-000000000", "step-000000002"]
    assert not list((folder / "checkpoints").glob(".*"))
    assert [e.resume_from for e in heard if isinstance(e, Failed)] == [2]
    toys.run_of(toys.REGRESSION, folder, resume=True)
    assert toys.state_of(folder) == toys.state_of(tmp_path / "straight")


def test_events_that_cannot_be_written_stop_the_run(tmp_path: Path) -> None:
    """The other sinks are told why, the file has whole lines, and the run is resumed as any other."""
    toys.run_of(toys.REGRESSION, tmp_path / "straight", steps=9)
    folder, heard = tmp_path / "full", toys.Heard()
    with toys.files_no_larger() as limit:

        def fill(event: Event) -> None:
            if isinstance(event, Scalar) and event.step == 3:
                limit((folder / "events.jsonl").stat().st_size + 30)

        with pytest.raises(RunFolderError, match=r"events\.jsonl: cannot be written: .*; make room"):
            toys.run_of(toys.REGRESSION, folder, steps=9, sinks=[heard, fill])
    assert isinstance(heard[-1], Failed)
    assert all(event["type"] for event in toys.events_of(folder))
    toys.run_of(toys.REGRESSION, folder, steps=9, resume=True)
    assert toys.state_of(folder) == toys.state_of(tmp_path / "straight")
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "straight" / "metrics.csv").read_bytes()


# what is sound after an error


@pytest.mark.parametrize(
    ("old", "new", "saved"),
    [
        ("    y = forward", "    f = fail(x, 3)\n    y = forward", 3),  # before anything changes
        (
            "network()\n    opt = adam(net)\n    x = batches(steps=6)",
            "network(False)\n    opt = adam(net)\n    x = count(number=6, fail_at=4)",
            3,
        ),  # the stream, which reads one ahead
        ("    loss =", "    f = fail(y, 3)\n    loss =", 2),  # after BatchNorm
        ("log = log(loss)", "seen = forward(step, x)\n    f = fail(seen, 3)", 2),  # after the optimizer
    ],
)
def test_an_error_saves_what_is_sound(tmp_path: Path, old: str, new: str, saved: int) -> None:
    text = toys.REGRESSION.replace(old, new, 1)
    assert text != toys.REGRESSION
    with pytest.raises(NodeRunError, match=r"graph: (f|x): \w+ failed at step [45]"):
        toys.run_of(text, tmp_path / "failed", checkpoint_every=2)
    content, _ = toys.state_of(tmp_path / "failed")
    assert content["step"] == saved
    assert toys.events_of(tmp_path / "failed")[-1]["resume_from"] == saved
    mended = re.sub(r"fail\((\w+), 3\)", r"fail(\1, 99)", text).replace("fail_at=4", "fail_at=99")
    toys.run_of(mended, tmp_path / "failed", resume=True)
    toys.run_of(mended, tmp_path / "straight")
    assert toys.state_of(tmp_path / "failed") == toys.state_of(tmp_path / "straight")


def test_without_buffers_a_training_pass_changes_nothing(tmp_path: Path) -> None:
    text = toys.REGRESSION.replace("network()", "network(False)").replace("loss =", "f = fail(y, 3)\n    loss =", 1)
    with pytest.raises(NodeRunError, match="fail failed at step 4"):
        toys.run_of(text, tmp_path)
    assert toys.state_of(tmp_path)[0]["step"] == 3


def test_an_error_in_finish_keeps_the_last_step(tmp_path: Path) -> None:
    text = "x = count(number=4)\ns = size(x)\nmean = mean_of(s)\nf = flawed(mean)"
    with pytest.raises(NodeRunError, match="flawed failed: ArithmeticError: no"):
        toys.run_of(text, tmp_path)
    assert toys.state_of(tmp_path)[0]["step"] == 4


def test_an_interrupt_within_a_node_waits_for_the_writer_and_keeps_what_is_sound(tmp_path: Path) -> None:
    text = toys.REGRESSION.replace("    y = forward", "    f = fail(x, 3, 'KeyboardInterrupt')\n    y = forward")
    with pytest.raises(KeyboardInterrupt, match="too blue"):
        toys.run_of(text, tmp_path)
    assert names(tmp_path) == ["step-000000000", "step-000000003"]


# the best by a metric


@given(st.lists(st.floats() | st.integers(-3, 3).map(float), max_size=9), st.booleans())
def test_the_best_is_the_first_extreme(values: list[float], least: bool) -> None:
    best = best_of("a:min" if least else "a")
    for step, value in enumerate(values):
        best(Scalar(step, "a", value))
        best(Scalar(step, "b", 1e9))
    numbers = [value for value in values if value == value]
    assert best.value == ((min if least else max)(numbers) if numbers else None)
    assert best.step == (values.index(best.value) if best.value is not None else -1)


@pytest.mark.parametrize("text", ["", ":max", "a:least", "a:max:min"])
def test_what_is_no_metric(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--best {text}: is no metric; give NODE or NODE/NAME, then :max")):
        best_of(text)


RISING = """
    x = count(number=9)
    net = network(False)
    opt = sgd(net, 0.01)
    y = forward(net, x)
    loss = distance(y, x)
    step = optimizer_step(loss, net, opt)
    score = log(loss)
"""


def score_of(folder: Path) -> dict[int, float]:
    heard = toys.Heard()
    toys.run_of(RISING, folder, sinks=[heard])
    return heard.scalars("score")


@pytest.mark.parametrize("direction", ["max", "min"])
def test_a_run_keeps_its_best_state_and_a_resumed_one_knows_it(tmp_path: Path, direction: str) -> None:
    score = score_of(tmp_path / "whole")
    best = max(score, key=score.__getitem__) if direction == "max" else min(score, key=score.__getitem__)
    folder, name = tmp_path / "run", f"score:{direction}"
    for number in range(9):
        toys.run_of(RISING, folder, best=name, resume=number > 0, stop=toys.stop_after(1))
    kept = folder / "checkpoints" / f"best-{best:09d}.safetensors"
    assert [path.stem for path in kept.parent.glob("best-*")] == [kept.stem]
    assert read(kept).best == {"metric": "score", "direction": direction, "step": best, "value": score[best]}


def test_the_best_state_is_that_of_the_run(tmp_path: Path) -> None:
    """Stopped at that step, a run has the same bits."""
    score = score_of(tmp_path / "whole")
    best = min(score, key=score.__getitem__)
    toys.run_of(RISING, tmp_path / "best", best="score:min")
    toys.run_of(RISING, tmp_path / "stopped", stop=toys.stop_after(best))
    (kept,) = (tmp_path / "best" / "checkpoints").glob("best-*")
    stopped = checkpoint.latest(tmp_path / "stopped" / "checkpoints")
    assert stopped is not None
    ours, theirs = read(kept), read(stopped)
    assert (ours.step, theirs.step) == (best, best)
    assert str(ours.objects) == str(theirs.objects)


def test_a_metric_that_no_node_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("--best scor/x: no node 'scor' runs; did you mean 'score'?")):
        toys.run_of(RISING, tmp_path / "new", best="scor/x")
    assert not (tmp_path / "new").exists()


def test_a_metric_that_no_node_reported_is_warned_of(tmp_path: Path) -> None:
    heard = toys.Heard()
    toys.run_of(RISING, tmp_path, best="score/psnr", sinks=[heard])
    (warning,) = (e for e in heard if isinstance(e, Warned))
    assert (warning.where, warning.text) == (
        "--best score/psnr", "its node reports no such metric: did you mean 'score'?",
    )  # fmt: skip
