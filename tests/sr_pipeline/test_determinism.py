"""A run that is repeated from its folder: the same bits, by the same settings; and torch as it was afterwards."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from sr_pipeline.check import check
from sr_pipeline.determinism import deterministic, threads
from sr_pipeline.errors import GraphError, NodeRunError, UsageError
from sr_pipeline.folder import RunFolder, Settings, new_folder, read_record
from sr_pipeline.graph import Graph
from sr_pipeline.loading import Order, to_run
from sr_pipeline.node import node
from sr_pipeline.registry import Registry
from sr_pipeline.run import run

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "seed": 7, "deterministic": True, "threads": 1, "checkpoint_every": 2, "steps": 4, "best": "loss:min",
}  # fmt: skip


def repeated(order: Order, **options: Any) -> Path:
    settings = {**order.settings, **options}
    return run(order.graph, registry=toys.REGISTRY, run_dir=order.run_dir, **settings).run_dir


def order_of(folder: Path, target: Path | None = None) -> Order:
    return to_run(str(folder), toys.REGISTRY, (), (), target, resume=False)


def bits(folder: Path) -> tuple[Any, bytes]:
    return toys.state_of(folder), (folder / "metrics.csv").read_bytes()


def test_a_folder_is_repeated_to_the_bit(tmp_path: Path) -> None:
    options = {**OPTIONS, "best": None}
    first = toys.run_of(toys.REGRESSION, tmp_path / "a", **options).run_dir
    order = order_of(first, tmp_path / "b")
    assert order.warnings == ()
    assert {name: order.settings[name] for name in options} == options
    second = repeated(order)
    assert bits(second) == bits(first)
    assert asdict(read_record(RunFolder(second))) == asdict(read_record(RunFolder(first)))
    assert bits(repeated(order_of(first, tmp_path / "c"), seed=8)) != bits(first)


def test_settings_that_no_graph_holds_are_repeated(tmp_path: Path) -> None:
    """The stream has no ``steps``; one node alone was run."""
    first = toys.run_of("x = forgetful()\nw = write(x)", tmp_path / "a", steps=3, only="w", on_nan="skip").run_dir
    order = order_of(first, tmp_path / "b")
    assert [order.settings[name] for name in ("steps", "only", "on_nan")] == [3, "w", "skip"]
    done = run(order.graph, registry=toys.REGISTRY, run_dir=order.run_dir, **order.settings)
    assert done.step == 3


def test_the_settings_are_those_of_run() -> None:
    names = set(run.__annotations__) - {"return"}
    told = {"graph", "registry", "run_dir", "resume", "allow_changed", "sinks", "stop", "cache", "apart"}
    from sr_pipeline.folder import Settings

    assert set(Settings.__dataclass_fields__) == names - told


def test_what_is_not_as_it_was_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = toys.run_of(toys.REGRESSION, tmp_path / "a", steps=1).run_dir
    path = first / "run.json"
    record = json.loads(path.read_text())
    record["versions"] |= {"torch": "1.0", "gone": "3"}
    del record["versions"]["safetensors"]
    record["machine"] = "Plan9 mips"
    record["processes"] = 2
    path.write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    warnings = "\n".join(order_of(first).warnings)
    assert f"{first}: torch was 1.0 and is {torch.__version__}" in warnings
    assert "safetensors was absent and is " in warnings
    assert "gone" not in warnings  # which no bits come from
    assert "the machine was Plan9 mips and is " in warnings
    assert "it was started in " in warnings
    assert "2 processes shared it, and now it is 1; --nproc says how many" in warnings
    assert len(order_of(first).warnings) == 5


def test_a_repeat_may_read_what_the_run_might(tmp_path: Path) -> None:
    graph = toys.graph("x = batches(steps=1)\nw = write(x)").limited_to(tmp_path)
    first = run(graph, registry=toys.REGISTRY, device="cpu", run_dir=tmp_path / "a").run_dir
    for resume in (False, True):
        again = to_run(str(first), toys.REGISTRY, (), (), None, resume).graph
        assert again.folders == (Path.cwd(), tmp_path)
    assert order_of(toys.run_of("x = batches(steps=1)\nw = write(x)", tmp_path / "b").run_dir).graph.folders is None


def test_the_folder_of_a_repeat_has_the_name_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cats-20260101-120000", "cats-20260101-120000-2", "mine"):
        toys.run_of("x = batches(steps=1)\nw = write(x)", Path("runs") / name)
        made = new_folder(None, order_of(Path("runs") / name).graph).path
        assert made.name.startswith(name.partition("-")[0] + "-20")
    assert new_folder(None, Graph(source="elsewhere/graph.json")).path.name.startswith("graph-20")


def test_a_folder_is_resumed_by_its_name_with_its_settings_but_those_of_the_machine(tmp_path: Path) -> None:
    first = toys.run_of(toys.REGRESSION, tmp_path / "a", steps=1, best="log:min", on_nan="skip", threads=1)
    order = to_run(str(first.run_dir), toys.REGISTRY, (), (), None, True)
    assert order.run_dir == tmp_path / "a"
    assert [order.settings[name] for name in ("best", "on_nan", "steps")] == ["log:min", "skip", 1]
    assert {"device", "threads", "capture"}.isdisjoint(order.settings)
    assert {*order.settings, "device", "threads", "capture"} == {f.name for f in fields(Settings)}


def test_a_repeat_that_was_stopped_goes_on_and_not_what_it_repeats(tmp_path: Path) -> None:
    first = toys.run_of(toys.REGRESSION, tmp_path / "first", steps=2)
    toys.run_of(toys.REGRESSION, tmp_path / "again", steps=2, stop=toys.stop_after(0))
    order = to_run(str(first.run_dir), toys.REGISTRY, (), (), tmp_path / "again", True)
    assert order.run_dir == tmp_path / "again"


def test_a_limit_of_folders_is_checked(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "g.json"
    path.write_text('{"p": {"class_type": "load_image", "inputs": {"path": "/a/b.png"}}}')
    check(to_run(str(path), registry, (), (), None, False).graph, registry)
    with pytest.raises(
        GraphError, match=r'p\.path: the string "/a/b\.png" is outside .*; if it is meant, --allow-folder /a$'
    ):
        check(to_run(str(path), registry, (), (tmp_path,), None, False).graph, registry)
    check(to_run(str(path), registry, (), (Path("/a"),), None, False).graph, registry)


# torch as it was


def flags() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.get_num_threads(),
    )


def test_inside_torch_is_deterministic_and_afterwards_as_it_was() -> None:
    before = flags()
    inside = []
    with suppress(KeyError), deterministic(True, CPU), threads(1):
        inside.append(flags())
        raise KeyError
    assert inside == [(True, False, True, False, 1)]
    assert flags() == before
    with deterministic(False, CPU), threads(None):
        assert flags() == before


@node
def no_way(x: toys.Batch) -> None:
    """Something of which torch has only an algorithm that is not deterministic."""
    torch.empty(3).put_(torch.tensor([0]), torch.ones(1), accumulate=False)


def test_what_has_no_deterministic_way_is_an_error_of_its_node(tmp_path: Path) -> None:
    graph, registry = Graph(), toys.REGISTRY.with_nodes([no_way])
    graph.add("no_way", id="n", x=graph.add("batches", steps=1))
    run(graph, registry=registry, device="cpu", run_dir=tmp_path / "a")
    with pytest.raises(
        NodeRunError, match="n: no_way failed at step 1: RuntimeError: put_ does not have a deterministic"
    ):
        run(graph, registry=registry, device="cpu", run_dir=tmp_path / "b", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("number", [0, -1, 2000])
def test_no_number_of_threads(tmp_path: Path, number: int) -> None:
    with pytest.raises(UsageError, match=f"^--threads {number}: is no number of threads; give 1 to 1024$"):
        toys.run_of(toys.REGRESSION, tmp_path / "a", threads=number)
