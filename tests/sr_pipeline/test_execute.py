"""Execution: gradients only where they are wanted, values no longer than they are read, errors that name their node."""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import toys
from sr_pipeline.check import Value
from sr_pipeline.errors import GraphError, NodeRunError
from sr_pipeline.events import Channel, Event, NodeStarted, Warned
from sr_pipeline.execute import Context, Executor
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.plan import Plan, compile_plan
from sr_pipeline.run import run
from sr_pipeline.sockets import SILENT, Backward, Loss, Model, Mutates, Report, Socket, Step

GAN = """
    x = batches(steps=2)
    G = network()
    D = network()
    vgg = network()
    optG = adam(G)
    optD = adam(D)
    sr = forward(G, x)
    fake = forward(D, sr)
    d_loss = size(fake)
    D1 = optimizer_step(d_loss, D, optD)
    judged = forward(D1, sr)
    g_loss = size(judged)
    G1 = optimizer_step(g_loss, G, optG)
    seen = forward(G1, x)
    features = forward(vgg, seen)
    w = write(features)
"""


@pytest.fixture(autouse=True)
def _own_grad_mode() -> Iterator[None]:
    """An executor without a run around it leaves gradients off."""
    with torch.enable_grad():
        yield


def heard_in(text: str, folder: Path) -> toys.Heard:
    heard = toys.Heard()
    toys.run_of(text, folder, sinks=[heard])
    return heard


@pytest.mark.parametrize(
    ("passes", "grad", "training", "wanted"),
    [
        ("sr", 1, 1, 1),
        ("fake", 1, 1, 1),
        ("judged", 1, 1, 0),  # D is only crossed
        ("seen", 0, 0, 1),  # leads to no loss
        ("features", 0, 0, 0),  # no step is for vgg
    ],
)
def test_gradients_and_modes_are_only_where_they_are_wanted(
    tmp_path: Path, passes: str, grad: int, training: int, wanted: int
) -> None:
    heard = heard_in(GAN, tmp_path)
    for what, value in (("grad", grad), ("training", training), ("wanted", wanted)):
        assert heard.scalars(f"{passes}/{what}") == {1: value, 2: value}


def executor_of(graph: Graph, registry: Any, folder: Path) -> Executor:
    plan = compile_plan(graph, registry)
    return Executor(plan, Context(folder, 0, torch.device("cpu"), Channel([])))


def test_a_crossed_model_is_itself_again_after_the_call(tmp_path: Path) -> None:
    executor = executor_of(toys.graph(GAN), toys.REGISTRY, tmp_path)
    executor.setup()
    for position, item in enumerate(executor.stream(0)):
        executor.step(item, position, last=position == 1)
    wants = {name: {p.requires_grad for p in m.parameters()} for name, m in models(executor)}
    assert wants == {"G": {True}, "D": {True}, "vgg": {False}}
    assert all(p.grad is None for _, m in models(executor) for p in m.parameters())


def models(executor: Executor) -> list[tuple[str, nn.Module]]:
    return [(n, v) for n, v in (executor.state() | executor.unchanged()).items() if isinstance(v, nn.Module)]


def test_a_crossed_model_is_itself_again_after_an_error(tmp_path: Path) -> None:
    text = GAN.replace("judged = forward(D1, sr)", "wide = widened(sr)\n    judged = forward(D1, wide)")
    executor = executor_of(toys.graph(text), toys.REGISTRY, tmp_path)
    executor.setup()
    with pytest.raises(NodeRunError, match=re.escape("graph: judged: forward failed at step 1: RuntimeError: ")):
        executor.step(next(executor.stream(0)), 0, last=False)
    assert {p.requires_grad for p in dict(models(executor))["D"].parameters()} == {True}


def test_every_step_gives_its_setup_values_and_state_to_the_next(tmp_path: Path) -> None:
    executor = executor_of(toys.graph(GAN), toys.REGISTRY, tmp_path)
    executor.setup()
    before = dict(models(executor))
    for position, item in enumerate(executor.stream(0)):
        executor.step(item, position, last=False)
    assert dict(models(executor)) == before
    assert executor.plan.slots.keys() >= {("seen", 0)}
    alive = {value.node for value, slot in executor.plan.slots.items() if executor.values[slot] is not None}
    assert alive == {"G", "D", "vgg", "optG", "optD"}


# any wiring means what its wires say, or is refused before it runs


@st.composite
def trainings(draw: st.DrawFn) -> Graph:
    """Two networks, and passes, losses and steps over any version of them, wired at random."""
    graph = Graph()
    tensors = [graph.add(toys.batches, id="x", steps=3)[0]]
    newest = {}
    for id_ in "AB":
        net = graph.add(toys.network, id=id_, batch_norm=False)
        newest[id_] = (net[0], graph.add(toys.sgd, model=net, rate=0.01, momentum=0.0)[0])
    versions, losses = [model for model, _ in newest.values()], list[Link]()
    for id_ in draw(st.lists(st.sampled_from("AB"), min_size=1, max_size=4)):
        model, optimizer = newest[id_]
        through = [model, *draw(st.lists(st.sampled_from(versions[-3:]), max_size=2))]
        y = draw(st.sampled_from(tensors))
        for version in draw(st.permutations(through)):
            y = graph.add(toys.forward, model=version, x=y)[0]
            tensors.append(y)
        losses.append(graph.add(toys.distance, a=y, b=draw(st.sampled_from(tensors[:-1])))[0])
        if draw(st.integers(0, 3)) == 0:
            losses.append(graph.add(toys.total, a=losses[-1], b=draw(st.sampled_from(losses)))[0])
        step = graph.add(toys.optimizer_step, loss=losses[-1], model=model, optimizer=optimizer)
        newest[id_] = (step[0], step[1])
        versions.append(step[0])
    for loss in losses:
        graph.add(toys.log, value=loss)
    return graph


Weights = dict[str, Tensor]


def by_the_wires(plan: Plan, nets: dict[str, nn.Module], items: list[Tensor]) -> dict[str, Weights]:
    """The weights after the steps, where every step gives new weights and leaves the old as they were."""
    weights: dict[str, Weights] = {id_: dict(net.named_parameters()) for id_, net in nets.items()}
    for item in items:
        values: dict[Value, Any] = {Value("x", 0): item}
        for id_, old in weights.items():
            values[Value(id_, 0)] = {name: t.detach().clone().requires_grad_() for name, t in old.items()}
        newest = {id_: Value(id_, 0) for id_ in weights}
        for id_ in (n for n in plan.wiring.graph.nodes if n in {op.node for op in plan.steps}):
            made, links = plan.wiring.types[id_].name, plan.wiring.links[id_]
            given: list[Any] = [values.get(link) for link in links.values()]
            if made == "forward":
                values[Value(id_, 0)] = functional_call(next(iter(nets.values())), given[0], (given[1],))
            elif made == "optimizer_step":
                names, tensors = list(given[1]), list(given[1].values())
                grads = torch.autograd.grad(given[0], tensors, retain_graph=True)
                moved = [(t - 0.01 * g).detach().requires_grad_() for t, g in zip(tensors, grads, strict=True)]
                values[Value(id_, 0)] = dict(zip(names, moved, strict=True))
                newest = {n: Value(id_, 0) if v == links["model"] else v for n, v in newest.items()}
            elif made in ("distance", "total"):
                values[Value(id_, 0)] = plan.wiring.types[id_].function(*given)
        weights = {id_: values[value] for id_, value in newest.items()}
    return weights


@given(trainings())
def test_a_wiring_is_refused_or_trains_as_its_wires_say(tmp_path: Path, graph: Graph) -> None:
    try:
        plan = compile_plan(graph, toys.REGISTRY)
    except GraphError:
        event("refused")
        return
    event(f"{len(plan.state) // 2} networks trained")
    executor = Executor(plan, Context(tmp_path, 0, torch.device("cpu"), Channel([])))
    executor.setup()
    nets = {id_: m for id_, m in models(executor) if id_ in "AB"}
    with torch.enable_grad():
        items = [item.clone() for item in executor.stream(0)]
        meant = by_the_wires(plan, copy.deepcopy(nets), items)
    for position, item in enumerate(items):
        executor.step(item, position, last=position == 2)
    for id_, weights in meant.items():
        for name, tensor in nets[id_].named_parameters():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-4, atol=1e-5, equal_nan=True)


# lifetimes


class Thing:
    """A value whose death can be seen."""


Things = Annotated[list[weakref.ref[Thing]], Socket("Things")]


@node
def things() -> Things:
    return []


@node
def thing(x: toys.Batch, seen: Things) -> Thing:
    made = Thing()
    seen.append(weakref.ref(made))
    return made


@node(output=True)
def use(thing: Thing) -> None:
    """Reads one."""


@node(output=True)
def alive(x: toys.Batch, seen: Things, every: int = 1, report: Report = SILENT) -> None:
    """Reports how many live."""
    report.scalar("", sum(ref() is not None for ref in seen))


def test_a_value_dies_after_its_last_reader(tmp_path: Path) -> None:
    graph = Graph()
    x, seen = graph.add(toys.batches, id="x", steps=3), graph.add(things, id="seen")
    made = graph.add(thing, id="made", x=x, seen=seen)
    graph.add(use, id="first", thing=made)
    graph.add(alive, id="between", x=x, seen=seen)
    graph.add(use, id="last", thing=made)
    graph.add(alive, id="after", x=x, seen=seen)
    heard = toys.Heard()
    run(graph, registry=toys.REGISTRY.with_nodes([things, thing, use, alive]), run_dir=tmp_path, sinks=[heard])
    assert heard.scalars("between") == {1: 1, 2: 1, 3: 1}
    assert heard.scalars("after") == {1: 0, 2: 0, 3: 0}


# errors

INPUTS = "its inputs: at=1, kind='ValueError', scale=2.5, x=float32[4, 3]"


def test_an_error_names_node_step_and_inputs_and_keeps_its_cause(tmp_path: Path) -> None:
    message = f"graph: bad: fail failed at step 2: too blue; {INPUTS}"
    with pytest.raises(NodeRunError, match=f"^{re.escape(message)}$") as caught:
        toys.run_of("x = batches()\nbad = fail(x, at=1, kind='ValueError', scale=2.5)", tmp_path)
    assert str(caught.value.__cause__) == "too blue"
    last = toys.events_of(tmp_path)[-1]
    assert (last["type"], last["where"], last["text"]) == ("error", "graph: bad", message)


def test_an_error_that_is_no_users_mistake_names_its_kind(tmp_path: Path) -> None:
    with pytest.raises(NodeRunError, match=re.escape("graph: bad: fail failed at step 1: KeyError: 'too blue'")):
        toys.run_of("x = batches()\nbad = fail(x, at=0, kind='KeyError')", tmp_path)


def test_an_error_in_setup_names_no_step(tmp_path: Path) -> None:
    message = "graph: net: network failed: RuntimeError: "
    with pytest.raises(NodeRunError, match=f"^{re.escape(message)}.*; its inputs: width=-1$"):
        toys.run_of("net = network(width=-1)\nshow = show(net)", tmp_path)


def test_an_error_in_the_stream_names_the_item(tmp_path: Path) -> None:
    message = "graph: x: count failed at step 4: OSError: the disk is gone; its inputs: fail_at=3"
    with pytest.raises(NodeRunError, match=f"^{re.escape(message)}$") as caught:
        toys.run_of("x = count(fail_at=3)\nw = write(x)", tmp_path)
    assert isinstance(caught.value.__cause__, OSError)
    assert toys.events_of(tmp_path)[-1]["type"] == "error"


def test_a_reducer_of_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    message = "graph: mean: mean_of failed: ZeroDivisionError: float division by zero"
    with pytest.raises(NodeRunError, match=f"^{re.escape(message)}$"):
        toys.run_of("x = count(number=0)\ns = size(x)\nmean = mean_of(s)\nlog = log(mean)", tmp_path)


def test_keyboard_interrupt_passes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="too blue"):
        toys.run_of("x = batches()\nbad = fail(x, at=0, kind='KeyboardInterrupt')", tmp_path)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("at", [1, 100], ids=["after an error", "after a run"])
def test_the_callers_grad_mode_is_left_as_it_was(tmp_path: Path, mode: bool, at: int) -> None:
    with torch.set_grad_enabled(mode):
        try:
            toys.run_of(f"x = batches()\nbad = fail(x, at={at})", tmp_path)
        except NodeRunError:
            assert at == 1
        assert torch.is_grad_enabled() == mode


def test_setup_and_finish_announce_their_nodes(tmp_path: Path) -> None:
    heard = heard_in(toys.REGRESSION, tmp_path)
    told = [(e.node, e.phase) for e in heard if isinstance(e, NodeStarted)]
    assert told == [("net", "setup"), ("opt", "setup"), ("report", "finish")]


def test_outputs_are_what_the_targets_returned_last(tmp_path: Path) -> None:
    result = toys.run_of("x = count(number=3)\ny = double(x)", tmp_path, only="y")
    assert torch.equal(result.outputs["y"], torch.full((1, 3), 6.0))
    stepped = toys.run_of(toys.REGRESSION, tmp_path / "other", only="step").outputs["step"]
    assert [type(v).__name__ for v in stepped] == ["Sequential", "Adam"]


@node
def step_twice(loss: Backward[Loss], model: Mutates[Model], step: Step = 0) -> Model:
    """A backward pass that frees its graph, whatever the plan says."""
    torch.autograd.backward(loss, inputs=list(model.parameters()))
    return model


def test_without_retaining_the_old_wiring_would_fail(tmp_path: Path) -> None:
    """The plan's retain_graph is what makes it run: a step that does not ask for it frees what the next one needs."""
    text = GAN.replace("judged = forward(D1, sr)", "judged = double(fake)")
    toys.run_of(text, tmp_path / "retained")
    broken = toys.graph(text)
    del broken.nodes["G1"].inputs["optimizer"]
    broken.nodes["G1"].class_type = "step_twice"
    with pytest.raises(NodeRunError, match="backward through the graph a second time"):
        run(broken, registry=toys.REGISTRY.with_nodes([step_twice]), run_dir=tmp_path / "freed")


def test_tensors_are_told_by_dtype_and_shape(tmp_path: Path) -> None:
    with pytest.raises(NodeRunError, match=re.escape("its inputs: model=Sequential, x=float32[4, 6]")):
        toys.run_of("x = batches()\nwide = widened(x)\nnet = network()\ny = forward(net, wide)\nw = write(y)", tmp_path)


@pytest.mark.parametrize("cut", [lambda y: y.mean().item(), lambda y: y.detach().mean()], ids=["float", "detached"])
def test_a_loss_that_teaches_nothing_is_warned_of_once(cut: Callable[[Tensor], Any], tmp_path: Path) -> None:
    @node
    def spoiled(y: toys.Batch) -> Loss:
        made: Loss = cut(y)
        return made

    types = toys.REGISTRY.with_nodes([spoiled])
    text = toys.REGRESSION.replace("optimizer_step(loss", "optimizer_step(both").replace(
        "    step =", "    bad = spoiled(y)\n    both = total(loss, bad)\n    step ="
    )
    heard: list[Event] = []
    run(toys.graph(text, types), registry=types, device="cpu", run_dir=tmp_path, sinks=[heard.append])
    (warning,) = (one for one in heard if isinstance(one, Warned))
    assert warning.where == "graph: bad"
    assert "has no gradient, on the way from a model to its loss" in warning.text
