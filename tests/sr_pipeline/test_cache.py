"""Setup values kept between runs: made once, never what a run changes, and never a stale one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import toys
from sr_pipeline.cache import SetupCache
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.run import run

TEXT = """
    vgg = network(False)
    net = network()
    opt = adam(net)
    x = batches()
    y = forward(net, x)
    f = features(vgg, y)
    loss = size(f)
    step = optimizer_step(loss, net, opt)
    log = log(loss)
"""


def made(text: str, cache: SetupCache | None, folder: Path, **options: Any) -> list[str]:
    """The networks that a run made."""
    heard = toys.Heard()
    toys.run_of(text, folder / str(len(list(folder.iterdir()))), cache=cache, sinks=[heard], **options)
    return [id_ for id_ in ("vgg", "net", "twin") if heard.scalars(f"{id_}/made")]


def test_a_second_run_makes_only_what_the_steps_change(tmp_path: Path) -> None:
    cache = SetupCache()
    assert made(TEXT, cache, tmp_path) == ["vgg", "net"]
    assert len(cache) == 1
    assert made(TEXT, cache, tmp_path) == ["net"]
    assert made(TEXT, None, tmp_path) == ["vgg", "net"]


def test_the_bits_are_those_of_a_run_without(tmp_path: Path) -> None:
    cache = SetupCache()
    for name in "ab":
        toys.run_of(TEXT, tmp_path / name, cache=cache)
    toys.run_of(TEXT, tmp_path / "c")
    assert toys.state_of(tmp_path / "a") == toys.state_of(tmp_path / "b") == toys.state_of(tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "old", "new"),
    [
        ({}, "network(False)", "network(False, width=4)"),
        ({"seed": 5}, "", ""),
        ({}, "vgg", "vgh"),  # another id is another stream of random numbers
    ],
    ids=["literal", "seed", "id"],
)
def test_a_change_misses(tmp_path: Path, options: dict[str, Any], old: str, new: str) -> None:
    cache = SetupCache()
    made(TEXT, cache, tmp_path)
    made(TEXT.replace(old, new) if old else TEXT, cache, tmp_path, **options)
    assert len(cache) == 2


def test_a_value_that_setup_changes_is_made_anew(tmp_path: Path) -> None:
    """Otherwise the second run would be given what the first one has loaded into it."""
    text = (
        "vgg = network()\ntwin = duplicate(vgg)\nloaded = load(vgg{})\nout = export(twin)\nout2 = export(loaded, 'l')"
    )
    cache = SetupCache()
    assert made(text.format(""), cache, tmp_path) == made(text.format(", 0.1"), cache, tmp_path) == ["vgg"]
    assert cache == {}
    assert (tmp_path / "0" / "export.pt").read_bytes() == (tmp_path / "1" / "export.pt").read_bytes()


def test_a_changed_file_misses(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a").write_text("1")
    text, cache, runs = f"vgg = network(weights={str(weights)!r})\nshow = show(vgg)", SetupCache(), tmp_path / "runs"
    runs.mkdir()
    assert [made(text, cache, runs), made(text, cache, runs)] == [["vgg"], []]
    os.utime(weights / "a", ns=(1, 1))
    assert made(text, cache, runs) == ["vgg"]
    (weights / "b").touch()
    assert made(text, cache, runs) == ["vgg"]


def test_a_changed_file_at_home_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").write_text("1")
    text, cache = "vgg = network(weights='~/a')\nshow = show(vgg)", SetupCache()
    runs = tmp_path / "runs"
    runs.mkdir()
    assert [made(text, cache, runs), made(text, cache, runs)] == [["vgg"], []]
    os.utime(tmp_path / "a", ns=(1, 1))
    assert made(text, cache, runs) == ["vgg"]


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", ""])
def test_a_text_that_can_be_no_path_is_a_text(tmp_path: Path, text: str) -> None:
    cache = SetupCache()
    for expected in (["vgg"], []):
        assert made(f"vgg = network(weights={text!r})\nshow = show(vgg)", cache, tmp_path) == expected


PACK = """
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Report

@node
def constant(report: Report = SILENT) -> float:
    report.scalar("made", 1)
    return {value}
"""


def load(path: Path, value: float) -> ModuleType:
    path.write_text(PACK.format(value=value))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def test_changed_code_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, found = SetupCache(), []
    for n, value in enumerate([1.0, 1.0, 2.0]):
        module = load(tmp_path / "cached_pack.py", value)
        monkeypatch.setitem(sys.modules, "cached_pack", module)
        graph, heard = Graph(), toys.Heard()
        graph.add(toys.log, id="log", value=graph.add("constant", id="c"))
        registry = Registry([*toys.NODES, module.constant])
        run(graph, registry=registry, run_dir=tmp_path / str(n), cache=cache, sinks=[heard])
        found.append((len(heard.scalars("c/made")), heard.scalars("log")[0]))
    assert found == [(1, 1.0), (0, 1.0), (1, 2.0)]


def test_code_without_a_file_is_not_cached(tmp_path: Path) -> None:
    typed: dict[str, Any] = {"__name__": "typed_in"}
    exec(compile(PACK.format(value=1.0), "<prompt>", "exec"), typed)
    graph, cache = Graph(), SetupCache()
    graph.add(toys.log, value=graph.add("constant"))
    run(graph, registry=Registry([*toys.NODES, typed["constant"]]), run_dir=tmp_path, cache=cache)
    assert cache == {}


def test_a_long_setup_is_cached(tmp_path: Path) -> None:
    graph, cache = Graph(), SetupCache()
    last = graph.add(toys.network)
    for _ in range(1500):
        last = graph.add(toys.duplicate, model=last)
    graph.add(toys.show, model=last)
    run(graph, registry=toys.REGISTRY, run_dir=tmp_path, cache=cache)
    assert len(cache) == 1501
