"""A step in three parts, its middle recorded: the same bits as node by node, and eager where that cannot be.

Without a CUDA device a stand-in records: like a graph it does nothing while it records, and a replay fills the same
tensors again; it does so by running the nodes once more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

import sr_pipeline.run
import toys
from sr_nodes.assets import graphs
from sr_pipeline.branches import BranchOrder
from sr_pipeline.capture import chosen_capture
from sr_pipeline.check import with_settings
from sr_pipeline.errors import CaptureError, NodeRunError, UsageError
from sr_pipeline.events import Channel, RunStarted, Warned
from sr_pipeline.execute import Context, Executor
from sr_pipeline.folder import RunFolder, read_record
from sr_pipeline.graph import Graph
from sr_pipeline.node import node
from sr_pipeline.plan import Op, Plan, compile_plan
from sr_pipeline.plan.parts import parts
from sr_pipeline.recording import WARM_UP, RecordedStep
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.runner import Result
from sr_pipeline.sockets import SILENT, Backward, Loss, Model, Mutates, Report, Step, Training
from sr_pipeline.sockets import Optimizer as Optim
from sr_pipeline.watch import Watch
from toys import Batch, Heard, Stepped

T = TypeVar("T")
CPU = torch.device("cpu")


@node
def passed(model: Model, x: Batch, training: Training = False) -> Batch:
    """Runs a model, and tells nobody."""
    model.train(training)
    result: Tensor = model(x)
    model.eval()
    return result


@node
def growing(steps: int = 12, jump: int = -1, bad: int = -1) -> Iterator[Batch]:
    """Batches, one of another size, or one of no numbers."""
    for position in range(steps):
        rng = torch.Generator().manual_seed(position)
        batch = torch.randn(6 if position == jump else 4, toys.WIDTH, generator=rng)
        yield batch * float("nan") if position == bad else batch


@node
def pairs(steps: int = 6) -> Iterator[tuple[Tensor, ...]]:
    yield from [(torch.ones(4, toys.WIDTH),)] * steps


@node
def first_of(pair: tuple[Tensor, ...]) -> Batch:
    return pair[0]


@node
def counting(
    loss: Backward[Loss], model: Mutates[Model], optimizer: Mutates[Optim], every_other: bool = True
) -> Stepped:
    """Steps at each second call, which it counts in the optimizer's state."""
    state: dict[Any, Any] = optimizer.state
    count = state.pop("count", {"calls": 0})["calls"] + 1
    state["count"] = {"calls": count}
    optimizer.zero_grad()
    torch.autograd.backward(loss, inputs=list(model.parameters()))
    if count % 2 == 0:
        optimizer.step()
    optimizer.zero_grad()
    return Stepped(model, optimizer)


@node(recordable=True)
def told_once(x: Batch, step: Step = 0, report: Report = SILENT) -> Batch:
    if step == 0:
        report.scalar("first", 1.0)
    return x * 1


@node(recordable=False)
def unrecordable(x: Batch) -> Batch:
    return x


@node
def passing(x: Batch, at: int, step: Step = 0) -> Batch:
    """Fails at one step."""
    if step == at:
        raise ValueError("too blue")
    return x * 1


@node
class Kept:
    """Keeps each value that it is given, as it was given."""

    def __init__(self) -> None:
        self.all: list[Tensor] = []

    def __call__(self, value: Loss | Batch) -> None:
        self.all.append(value.detach())

    def result(self) -> list[float]:
        return [value.double().sum().item() for value in self.all]

    def state_dict(self) -> dict[str, Any]:
        return {"all": self.result()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.all = [torch.tensor(value, dtype=torch.float64) for value in state["all"]]


@node(output=True)
def told(values: list[float], report: Report = SILENT) -> None:
    for number, value in enumerate(values):
        report.scalar(str(number), value)


TYPES = toys.REGISTRY.with_nodes(
    [passing, passed, growing, pairs, first_of, counting, told_once, unrecordable, Kept, told]
)
GAN = """
    x = growing(steps=12)
    rate = halving(0.05)
    drawn = noisy(x)
    G = network()
    D = network()
    copied = duplicate(G)
    optG = sgd(G)
    optD = adam(D)
    seen = told_once(drawn)
    sr = passed(G, seen)
    fake = passed(D, sr)
    d_loss = size(fake)
    D1 = optimizer_step(d_loss, D, optD)
    judged = passed(D1, sr)
    near = distance(sr, x)
    g_loss = total(near, size)
    size = size(judged)
    G1 = optimizer_step(g_loss, G, optG, rate=rate)
    ema = average(G1, copied)
    look = passed(ema, x)
    w = write(look, every=5)
    log = log(g_loss)
    kept = kept(near)
    told = told(kept)
    items = kept(drawn)
    told_items = told(items)
    mean = mean_of(d_loss)
    report = log(mean)
    rates = log(rate)
    export = export(ema)
"""
"""Two networks, an average, a learning rate that changes, random numbers before, and all that looks on."""


class StandIn:
    """Records as a CUDA graph does."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.records, self.replays = executor, 0, 0

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def _tensors(self) -> list[Tensor]:
        objects = [self.executor.values[slot] for slot in self.executor.plan.state.values()]
        states = [
            o.state if isinstance(o, Optimizer) else dict(o.named_parameters()) | dict(o.named_buffers())
            for o in objects
        ]
        return [
            leaf
            for state in states
            for kept in state.values()
            for leaf in tree_leaves(kept)
            if isinstance(leaf, Tensor)
        ]

    def record(self, work: Callable[[], T], fed: Iterable[Tensor]) -> T:
        before = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]
        self.work, self.out = work, work()
        with torch.no_grad():
            for tensor, was in before:
                tensor.copy_(was)
            for leaf in tree_leaves(self.out):  # nothing is computed yet
                if isinstance(leaf, Tensor):
                    leaf.fill_(float("nan"))
        self.records += 1
        return self.out

    def replay(self) -> None:
        executor = self.executor  # on a device no Python runs now: what it changes here is put back
        around, values, begun = executor.around, list(executor.values), list(executor.begun)
        executor.around = {}
        made = self.work()
        executor.around, executor.values[:], executor.begun[:] = around, values, begun
        self.replays += 1
        for old, new in zip(tree_leaves(self.out), tree_leaves(made), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)

    def job(self, after: Collection[int], read: Iterable[Tensor]) -> AbstractContextManager[None]:
        return nullcontext()

    def changed(self) -> None:
        pass

    def clear(self) -> None:
        pass


class Losing(StandIn):
    """Forgets what it did to the state."""

    def replay(self) -> None:
        before = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]
        super().replay()
        with torch.no_grad():
            for tensor, was in before:
                tensor.copy_(was)


class Stale(StandIn):
    """Goes on with the items of the recording."""

    def record(self, work: Callable[[], T], fed: Iterable[Tensor]) -> T:
        self.first = [value.clone() if isinstance(value, Tensor) else value for value in self.executor.values]
        return super().record(work, fed)

    def replay(self) -> None:
        fed = parts(self.executor.plan).fed
        now = {slot: self.executor.values[slot].clone() for slot in fed}
        for slot in fed:
            self.executor.values[slot].copy_(self.first[slot] + 0.5)
        super().replay()
        for slot, value in now.items():
            self.executor.values[slot].copy_(value)


class Refusing(StandIn):
    def record(self, work: Callable[[], T], fed: Iterable[Tensor]) -> T:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")


class Captured:
    """How a run was captured: with a stand-in for the device's graph."""

    def __init__(self, kind: type[StandIn] = StandIn) -> None:
        self.kind, self.made = kind, list[StandIn]()

    @contextmanager
    def capturing(self, executor: Executor) -> Iterator[None]:
        self.made.append(self.kind(executor))
        executor.instead = RecordedStep(executor, parts(executor.plan), self.made[-1])
        yield

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Of each run: recordings and replays."""
        return [(made.records, made.replays) for made in self.made]


def eager(text: str, folder: Path, **options: Any) -> Result:
    return run(toys.graph(text, TYPES), registry=TYPES, device="cpu", run_dir=folder, **options)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Captured]:
    """Runs that follow are captured."""

    def start(kind: type[StandIn] = StandIn) -> Captured:
        found = Captured(kind)
        monkeypatch.setattr(sr_pipeline.run, "capturing", found.capturing)
        return found

    return start


Start = Callable[..., Captured]


def all_of(folder: Path) -> tuple[Any, ...]:
    """State, numbers told, files written."""
    written = {path.name: path.read_text() for path in folder.glob("write-*.txt")}
    exported = torch.load(folder / "export.pt", weights_only=True)
    return toys.state_of(folder), (folder / "metrics.csv").read_text(), written, repr(exported)


def warnings_of(heard: Heard) -> list[str]:
    return [f"{e.where}: {e.text}" for e in heard if isinstance(e, Warned)]


# the partition


def plan_of(text: str) -> Plan:
    return compile_plan(toys.graph(text, TYPES), TYPES)


def test_a_step_is_divided_by_what_its_nodes_take() -> None:
    found = parts(plan_of(GAN))
    assert {op.node for op in found.before} == {"rate", "drawn"}
    assert [op.node for op in found.recorded] == [
        "seen", "sr", "fake", "d_loss", "D1", "judged", "near", "size", "g_loss", "G1", "ema",
    ]  # fmt: skip
    assert {op.node for op in found.after} == {"look", "w", "log", "kept", "items", "mean", "rates", "export"}


def test_each_value_of_the_plan_is_dropped_once_or_spent() -> None:
    plan = plan_of(GAN)
    found = parts(plan)
    dropped = [slot for op in (*found.before, *found.recorded, *found.after) for slot in op.drop]
    assert sorted([*dropped, *found.spent]) == sorted(slot for op in plan.steps for slot in op.drop)


REFUSED = {
    "y: it takes report, amid what trains": ("y = passed(net, x)", "y = forward(net, x)"),
    "z: it takes rng, amid what trains": ("loss = size(y)", "z = noisy(y)\n    loss = size(z)"),
    "z: it takes rng, amid": ("loss = size(y)", "h = rounded(y)\n    z = noisy(h)\n    loss = distance(y, z)"),
    "z: it takes rng, amid what": (
        "loss = size(y)", "shown = write(y, every=2)\n    z = noisy(y)\n    loss = size(z)",
    ),
    "z: it is declared as not recordable, amid": ("loss = size(y)", "z = unrecordable(y)\n    loss = size(z)"),
    "step: it does not run at each step, amid": ("(loss, net, opt)", "(loss, net, opt, every=2)"),
    "--capture: no node of a step trains anything": ("step = optimizer_step(loss, net, opt)", "w = write(y)"),
    "w.model: it reads what 'step' changes, and works on the host": (
        "log = log(loss)", "w = passed(net, x)\n    log = write(w, every=2)",
    ),
    "w.model: it reads what 'ema' changes, and": (
        "y = passed(net, x)",
        "copied = duplicate(net)\n    w = features(copied, x)\n    v = noisy(w)\n    y = judge(net, x, v)\n"
        "    ema = average(step, copied)",
    ),
}  # fmt: skip
SMALL = """
    net = network()
    opt = adam(net)
    x = batches(steps=6)
    y = passed(net, x)
    loss = size(y)
    step = optimizer_step(loss, net, opt)
    log = log(loss)
"""


@pytest.mark.parametrize("reason", REFUSED)
def test_what_stands_in_the_way_is_named(reason: str) -> None:
    parts(plan_of(SMALL))
    with pytest.raises(CaptureError, match=f"^(graph: )?{reason}.*; its nodes run one by one$"):
        parts(plan_of(SMALL.replace(*REFUSED[reason])))


# the run


def test_a_captured_run_is_the_eager_one_bit_for_bit(tmp_path: Path, captured: Start) -> None:
    """Weights, moments, numbers, files and reducers: also those of nodes that keep what they were given."""
    eager(GAN, tmp_path / "eager")
    made = captured()
    heard = Heard()
    eager(GAN, tmp_path / "captured", sinks=[heard])
    assert made.counts == [(1, 12 - WARM_UP)]
    assert all_of(tmp_path / "captured") == all_of(tmp_path / "eager")
    assert warnings_of(heard) == []
    assert len(set(heard.scalars("rates").values())) == 12


def test_the_watch_sees_each_loss_once(tmp_path: Path, captured: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each replay, and none of the recording, which computes nothing."""
    seen: dict[str, list[float]] = {"eager": [], "captured": []}
    keep_loss = Watch._keep_loss

    def noted(self: Watch, op: Op, arguments: dict[str, Any], call: Callable[[dict[str, Any]], Any]) -> Any:
        seen["captured" if self.executor.instead else "eager"].append(arguments["loss"].item())
        return keep_loss(self, op, arguments, call)

    monkeypatch.setattr(Watch, "_keep_loss", noted)
    eager(GAN, tmp_path / "eager")
    captured()
    eager(GAN, tmp_path / "captured")
    assert len(seen["captured"]) == 2 * 12
    assert seen["captured"] == seen["eager"]


@pytest.mark.parametrize(("node", "saved"), [("y", 0), ("x", 4)])
def test_what_is_saved_after_an_error_is_the_end_of_a_step(
    node: str, saved: int, tmp_path: Path, captured: Start
) -> None:
    """Of a node that follows the replay the step has changed the weights; of one before it has not."""
    text = f"{SMALL}    z = passing({node}, at=4)\n    w = write(z)"
    if node == "x":
        text = text.replace("passed(net, x)", "passed(net, z)")
    made = captured()
    with pytest.raises(NodeRunError, match="z: passing failed at step 5: too blue"):
        eager(text, tmp_path)
    assert made.counts == [(1, 4 - WARM_UP + (node == "y"))]
    assert toys.state_of(tmp_path)[0]["step"] == saved


def test_a_captured_run_resumes_to_the_same_bits(tmp_path: Path, captured: Start) -> None:
    """From a captured run's state or from an eager one's, by either."""
    eager(GAN, tmp_path / "whole")
    eager(GAN, tmp_path / "from_eager", stop=toys.stop_after(5))
    made = captured()
    eager(GAN, tmp_path / "halted", stop=toys.stop_after(6))
    eager(GAN, tmp_path / "halted", resume=True)
    eager(GAN, tmp_path / "from_eager", resume=True)
    assert [records for records, _ in made.counts] == [1, 1, 1]
    for name in ("halted", "from_eager"):
        assert all_of(tmp_path / name) == all_of(tmp_path / "whole")


@pytest.mark.parametrize("policy", ["skip", "back"])
def test_a_step_of_no_numbers_is_left_out(policy: str, tmp_path: Path, captured: Start) -> None:
    """The optimizers are given another state, so the step is recorded anew."""
    text = GAN.replace("growing(steps=12)", "growing(steps=20, bad=7)")
    options: dict[str, Any] = {"on_nan": policy, "checkpoint_every": 4}
    eager(text, tmp_path / "eager", **options)
    made = captured()
    eager(text, tmp_path / "captured", **options)
    assert made.counts[0][0] == 2
    assert all_of(tmp_path / "captured")[0] == all_of(tmp_path / "eager")[0]


def test_a_step_of_no_numbers_names_its_node(tmp_path: Path, captured: Start) -> None:
    captured()
    with pytest.raises(NodeRunError, match=r"x: growing gave 12 NaN of 12 values of batch"):
        eager(GAN.replace("growing(steps=12)", "growing(steps=12, bad=7)"), tmp_path / "captured")


def test_a_step_of_another_shape_runs_node_by_node(tmp_path: Path, captured: Start) -> None:
    text = GAN.replace("growing(steps=12)", "growing(steps=12, jump=6)")
    eager(text, tmp_path / "eager")
    made, heard = captured(), Heard()
    eager(text, tmp_path / "captured", sinks=[heard])
    assert made.counts == [(1, 12 - WARM_UP - 1)]
    assert all_of(tmp_path / "captured") == all_of(tmp_path / "eager")
    (told,) = warnings_of(heard)
    assert told.startswith("graph: x: not captured: it gave float32[6, 3] at step 7, and float32[4, 3] at the first")


def test_a_step_that_cannot_be_recorded_runs_node_by_node(tmp_path: Path, captured: Start) -> None:
    eager(GAN, tmp_path / "eager")
    made, heard = captured(Refusing), Heard()
    eager(GAN, tmp_path / "captured", sinks=[heard])
    assert made.counts == [(0, 0)]
    told = "--capture graph: not captured: the step cannot be recorded: operation not permitted when stream is"
    (warning,) = warnings_of(heard)
    assert warning.startswith(told)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Losing, "graph: G: not captured: the recorded step changes it otherwise than its nodes do, by 100% of the"),
        (Stale, "--capture graph: not captured: its loss differs by "),
    ],
)
def test_a_recording_that_does_something_else_is_not_used(
    kind: type[StandIn], reason: str, tmp_path: Path, captured: Start
) -> None:
    """It is tried once, and what it did is taken back."""
    eager(GAN, tmp_path / "eager")
    made, heard = captured(kind), Heard()
    eager(GAN, tmp_path / "captured", sinks=[heard])
    assert made.counts == [(1, 1)]
    assert all_of(tmp_path / "captured") == all_of(tmp_path / "eager")
    (told,) = warnings_of(heard)
    assert told.startswith(reason)


STUCK = {
    "graph: opt: not captured: what it keeps changes on the host from step to step; its nodes run one by one": (
        "optimizer_step(", "counting("
    ),
    "graph: x: not captured: it gives (...), no tensor or float; its nodes run one by one": (
        "batches(steps=6)\n    y = passed(net, x)", "pairs(steps=6)\n    f = first_of(x)\n    y = passed(net, f)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", STUCK)
def test_what_cannot_be_replayed_is_found_before_it_is(reason: str, tmp_path: Path, captured: Start) -> None:
    text = SMALL.replace(*STUCK[reason])
    eager(text, tmp_path / "eager")
    made, heard = captured(), Heard()
    eager(text, tmp_path / "captured", sinks=[heard])
    assert made.counts == [(0, 0)]
    assert toys.state_of(tmp_path / "captured") == toys.state_of(tmp_path / "eager")
    (told,) = warnings_of(heard)
    assert told == reason or reason.partition("(")[0] in told


@pytest.mark.parametrize("node", ["near", "g_loss", "ema"])
def test_one_node_alone_gives_its_value(node: str, tmp_path: Path, captured: Start) -> None:
    """A result that is recorded, a loss, and a model."""
    wanted = eager(GAN, tmp_path / "eager", only=node).outputs[node]
    made = captured()
    found = eager(GAN, tmp_path / "captured", only=node).outputs[node]
    assert made.counts == [(1, 12 - WARM_UP)]
    values = zip(*(v.state_dict().values() if node == "ema" else [v] for v in (found, wanted)), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


# the shipped graphs

TINY = [
    "generator.blocks=1", "generator.channels=4", "start.weights=null", "discriminator.crop=32",
    "discriminator.channels=2", "discriminator.dense=4", "vgg.layer=22", "rate.drop_at=[4]",
    "hr.size=32", "hr.batch=2", "hr.steps=6", "pairs.crop=32", "content_loss.every=1", "preview.every=5",
]  # fmt: skip
TRAINING = sorted(path.name for name in ("train", "weights", "quick") for path in graphs().glob(f"{name}*.json"))


@pytest.mark.parametrize("name", TRAINING)
def test_the_step_of_each_shipped_training_is_recorded_whole(name: str, registry: Registry) -> None:
    """From LR to the generator's update."""
    plan = compile_plan(Graph.load(graphs() / name), registry)
    recorded = {op.node for op in parts(plan).recorded}
    assert recorded >= {"sr", "content", *(op.node for op in plan.steps if op.type.backward)}


# branches


@torch.no_grad()  # which an executor switches, and leaves as it likes
def follows(graph: Graph, registry: Registry) -> dict[str, set[str]]:
    """Of the nodes of a recorded part: all those that each must wait for, by way of others too."""
    executor = Executor(compile_plan(graph, registry), Context(Path(), 0, CPU, Channel([])))
    executor.setup()
    order, names, found = BranchOrder(), list[str](), dict[str, set[str]]()
    found_parts = parts(executor.plan)
    executor._store(executor._stream.op, next(executor.stream(0)))  # type: ignore[union-attr]
    executor.run_due([executor.bind(op) for op in found_parts.before], 0, last=False)
    for op in found_parts.recorded:
        after, _ = order.next(op, executor.values)
        found[op.node] = {name for n in after for name in (names[n], *found[names[n]])}
        names.append(op.node)
        executor.run_due([executor.bind(op)], 0, last=False)
    return found


def test_what_srgans_nodes_wait_for(registry: Registry) -> None:
    """D looks at HR while SR is made, and VGG at SR while D is trained; G waits for both."""
    found = follows(with_settings(Graph.load(graphs() / "train_srgan.json"), registry, TINY), registry)
    assert found["real"] == set()
    assert found["sr"] == {"lr"}
    assert found["fake"] == {"lr", "sr", "real"}  # whose running statistics are one after the other
    assert found["content"] == {"lr", "sr"}
    assert found["d_step"] >= {"real", "fake", "d_loss"}
    assert not found["d_step"] & {"content", "judged"}
    assert "d_step" in found["judged"]
    assert found["g_step"] >= {"content", "judged", "d_step"}


def test_who_changes_a_model_waits_for_a_backward_pass_that_reads_it() -> None:
    """The generator first, through the critic, whose own step links to nothing of that."""
    text = """
        x = growing()
        g = network(batch_norm=False)
        d = network(batch_norm=False)
        g_opt = sgd(g)
        d_opt = sgd(d)
        y = passed(g, x)
        z = passed(d, y)
        g_loss = distance(z, x)
        real = passed(d, x)
        d_loss = distance(real, x)
        g_step = optimizer_step(g_loss, g, g_opt)
        d_step = optimizer_step(d_loss, d, d_opt)
        e = export(d_step)
        f = export(g_step, name="g")
    """
    found = follows(toys.graph(text, TYPES), TYPES)
    assert "real" not in found["z"]
    assert "g_step" in found["d_step"]


@node
def seen(model: Model, x: Batch) -> Batch:
    """Runs a model as it is."""
    result: Tensor = model(x)
    return result


@node
def within(model: Model) -> Model:
    """Another model of the same weights."""
    return torch.nn.Sequential(model)


def test_who_changes_weights_waits_for_whoever_reads_them_by_another_name() -> None:
    text = """
        x = growing()
        net = network(batch_norm=False)
        opt = sgd(net)
        y = passed(net, x)
        loss = distance(y, x)
        other = within(net)
        look = seen(other, x)
        step = optimizer_step(loss, net, opt)
        w = write(look)
        e = export(step)
    """
    registry = TYPES.with_nodes([within, seen])
    found = follows(toys.graph(text, registry), registry)
    assert "look" not in found["y"] | found["loss"]
    assert "look" in found["step"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_srgan_captured_is_srgan_bit_for_bit(
    precision: str, registry: Registry, tmp_path: Path, captured: Start
) -> None:
    """Over six steps, with a learning rate that falls and a preview amid the replays."""
    graph = with_settings(Graph.load(graphs() / "train_srgan.json"), registry, TINY)

    def train(name: str) -> tuple[Any, ...]:
        folder = tmp_path / name
        run(graph, registry=registry, device="cpu", run_dir=folder, precision=precision, sinks=[heard])
        previews = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
        return toys.state_of(folder), (folder / "metrics.csv").read_text(), previews

    heard = Heard()
    wanted = train("eager")
    made = captured()
    found = train("captured")
    assert made.counts == [(1, 6 - WARM_UP)]
    assert len(found[2]) == 2
    assert found == wanted
    assert not any("not captured" in text for text in warnings_of(heard))


# what is chosen


def test_what_is_chosen_on_a_cpu() -> None:
    plan = plan_of(SMALL)
    assert chosen_capture("off", plan, CPU) == chosen_capture("auto", plan, CPU) == ("off", ())
    chosen, (fault,) = chosen_capture("graph", plan, CPU)
    assert (chosen, str(fault)) == ("off", "--capture graph: cpu has no CUDA graphs; its nodes run one by one")
    with pytest.raises(UsageError, match=r"^--capture on: is unknown; give one of off, graph, compile, auto$"):
        chosen_capture("on", plan, CPU)


def test_what_is_chosen_on_cuda() -> None:
    """The device is only asked for its kind."""
    cuda, plan = torch.device("cuda"), plan_of(SMALL)
    assert chosen_capture("auto", plan, cuda) == chosen_capture("graph", plan, cuda) == ("graph", ())
    for name in ("auto", "graph"):
        chosen, (fault,) = chosen_capture(name, plan_of(SMALL.replace("passed", "forward")), cuda)
        assert (chosen, fault.what) == ("off", "it takes report, amid what trains")
    for name in ("auto", "graph", "compile"):
        chosen, (fault,) = chosen_capture(name, plan, cuda, alone=False)
        assert (chosen, fault.what) == ("off", "several processes share the run")
    nothing = plan_of("x = batches()\nw = write(x)")
    assert chosen_capture("auto", nothing, cuda) == ("off", ())
    assert chosen_capture("graph", nothing, cuda)[0] == "off"


def test_a_run_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    heard = Heard()
    folder = toys.run_of(toys.REGRESSION, tmp_path, capture="graph", sinks=[heard]).run_dir
    (started,) = [e for e in heard if isinstance(e, RunStarted)]
    assert started.mode == "fp32, channels_last"
    assert warnings_of(heard) == ["--capture graph: cpu has no CUDA graphs; its nodes run one by one"]
    assert read_record(RunFolder(folder)).settings.capture == "off"


def test_a_record_of_before_there_was_capture_is_read(tmp_path: Path) -> None:
    folder = toys.run_of(toys.REGRESSION, tmp_path).run_dir
    record = json.loads((folder / "run.json").read_text())
    del record["settings"]["capture"]
    (folder / "run.json").write_text(json.dumps(record))
    assert read_record(RunFolder(folder)).settings.capture == "off"


COMPILED = """
import sys
from pathlib import Path
import toys
from torch._dynamo.utils import counters
heard = toys.Heard()
text = toys.REGRESSION.replace("network()", "network(batch_norm=False)")
done = toys.run_of(text, Path(sys.argv[1]), capture="compile", only="step", sinks=[heard])
network = done.outputs["step"][0]
print(*(e.mode for e in heard if hasattr(e, "mode")), *(e.text for e in heard if hasattr(e, "text")), sep=": ")
print(counters["stats"]["unique_graphs"] > 1, network._compiled_call_impl)
"""


def compiled_in(folder: Path, **environment: str) -> list[str]:
    path = os.pathsep.join([str(Path(toys.__file__).parent), *sys.path])
    given = {**os.environ, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), **environment}
    words = [sys.executable, "-c", COMPILED, str(folder / "run")]
    return subprocess.run(words, env=given, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.full
def test_networks_are_compiled_for_one_run_alone(tmp_path: Path) -> None:
    """Weights within 1e-4 of those that are not; the network is itself again afterwards."""
    assert compiled_in(tmp_path) == ["fp32, channels_last, capture compile", "True None"]
    toys.run_of(toys.REGRESSION.replace("network()", "network(batch_norm=False)"), tmp_path / "plain", only="step")
    wanted, found = (load_file(max((tmp_path / name / "checkpoints").iterdir())) for name in ("plain", "run"))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_without_a_compiler_networks_are_as_they_are(tmp_path: Path) -> None:
    first, second = compiled_in(tmp_path, CXX=str(tmp_path / "none"))
    assert first.startswith("fp32, channels_last: torch cannot compile here: ")
    assert first.endswith("; its nodes run one by one")
    assert second == "False None"
