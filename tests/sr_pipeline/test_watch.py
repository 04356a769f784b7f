"""A number that is none: found, its node named, and the run ended or gone on with as if the step had never been."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import toys
from conftest import FULL
from sr_pipeline import watch
from sr_pipeline.check import with_settings
from sr_pipeline.checkpoint import latest, read
from sr_pipeline.diagnosis import all_finite, unsound
from sr_pipeline.errors import NodeRunError, NotFiniteError, UsageError
from sr_pipeline.events import Channel, Warned
from sr_pipeline.execute import Context, Executor
from sr_pipeline.graph import Graph
from sr_pipeline.node import node
from sr_pipeline.plan import compile_plan
from sr_pipeline.run import run
from sr_pipeline.runner import Result
from sr_pipeline.sinks import read_metrics
from sr_pipeline.sockets import Device, Every, Loss, Model, Seed, Start, Step, Training

STEPS, NEVER = 6, -9
INFINITY, CPU = float("inf"), torch.device("cpu")


@node
def items(steps: int = STEPS, at: int = NEVER, start: Start = 0, seed: Seed = toys.UNSEEDED) -> Iterator[toys.Batch]:
    """Batches; one of them with a NaN."""
    for position, item in enumerate(toys.batches(steps, start=start, seed=seed), start):
        item[0, 0] = torch.nan if position == at else item[0, 0]
        yield item


OPENED: list[int] = []


@node
def read_once(start: Start = 0, seed: Seed = toys.UNSEEDED) -> Iterator[toys.Batch]:
    """A stream whose disk is gone when it is read again."""
    OPENED.append(start)
    for position, item in enumerate(items(start=start, seed=seed), start):
        if position == 1 and len(OPENED) > 1:
            raise OSError("the disk is gone")
        yield item


@node
def spoil(x: toys.Batch, at: int = NEVER, kind: str = "nan", step: Step = 0) -> toys.Batch:
    """Two numbers that are none in the result of a step, or in its gradient alone: the root of 0 has none."""
    if at not in (step, -1):
        return x
    if kind == "large":
        return 1e10 * x
    if kind == "gradient":
        return x + (0 * x).abs().sqrt()
    here = torch.zeros_like(x)
    here.view(-1)[:2] = {"nan": torch.nan, "inf": torch.inf}[kind]
    return x + here


@node
def spoil_loss(loss: Loss, at: int = NEVER, kind: str = "nan", step: Step = 0) -> Loss:
    return spoil(loss, at, kind, step) if at != step or kind in ("gradient", "large") else loss + float(kind)


@node
def rooted(model: Model, x: toys.Batch, at: int = NEVER, training: Training = False, step: Step = 0) -> toys.Batch:
    """A forward pass that spoils the gradient of the model's weights, and no other."""
    y = toys.forward(model, x, training)
    return y + sum((0 * p).abs().sqrt().sum() for p in model.parameters()) if at == step else y


@node
def rate(at: int = NEVER, step: Step = 0) -> float:
    """A learning rate that is none at one step."""
    return INFINITY if at == step else 0.1


@node
def spoilt_network(at: int = 0, buffer: str = "0") -> Model:
    """A network with a number in its weights, or in a buffer, that is none."""
    made = toys.undisturbed(toys.UNSEEDED.rng(0), batch_norm=False)
    if at == 0:
        with torch.no_grad():
            next(made.parameters())[0, 0] = torch.nan
    made.register_buffer("mask", torch.tensor([float(buffer), -INFINITY]))
    return made


@node
def refuse(x: toys.Batch) -> toys.Batch:
    """Raises an error for a number that is none."""
    if not x.isfinite().all():
        raise ValueError("a metric needs numbers")
    return x


@node(output=True)
def validate(x: toys.Batch, every: Every = 4) -> None:
    refuse(x)


SEEN: list[int] = []


@node(output=True)
def see(x: toys.Batch, step: Step = 0) -> None:
    """Notes each step at which it runs."""
    SEEN.append(step)


@node
def infinite(x: toys.Batch, report: float = INFINITY) -> Loss:
    """A metric that may be infinite: of a picture that is perfect."""
    return x.new_full((), torch.inf)


REGISTRY = toys.REGISTRY.with_nodes(
    [items, read_once, spoil, spoil_loss, rooted, rate, spoilt_network, refuse, validate, see, infinite]
)

GAN = """
    x = items()
    G = network()
    D = network(False)
    optG = adam(G, 0.01)
    optD = sgd(D, 0.01)
    noise = noisy(x)
    lr = spoil(noise)
    sr = rooted(G, lr)
    image = spoil(sr)
    real = forward(D, x)
    fake = rooted(D, image)
    logits = spoil(fake)
    d_loss = distance(real, logits)
    d = spoil_loss(d_loss)
    d_rate = rate()
    D1 = optimizer_step(d, D, optD, d_rate)
    judged = rooted(D1, image)
    judgement = spoil(judged)
    g_loss = size(judgement)
    g = spoil_loss(g_loss)
    G1 = optimizer_step(g, G, optG)
    copied = duplicate(G)
    ema = average(G1, copied)
    log = log(d_loss)
    mean = mean_of(d_loss)
    report = log(mean)
    seen = see(image)
    export = export(G1)
"""
"""SRGAN's wiring, with nodes that can be told to spoil a step in any place."""

PLANTS = [
    *[("x", "item"), ("lr", "nan"), ("lr", "inf"), ("sr", "weights"), ("fake", "weights"), ("d_rate", "rate")],
    *((place, kind) for place in ("image", "logits", "d", "judgement", "g") for kind in ("nan", "inf", "gradient")),
]
"""Nodes, and what is spoilt there."""


def planted(place: str, kind: str, at: int) -> Graph:
    settings = [f"{place}.at={at}", *([f"{place}.kind={kind}"] if kind not in ("item", "weights", "rate") else [])]
    return with_settings(toys.graph(GAN, REGISTRY), REGISTRY, settings)


def train(graph: Graph | str, folder: Path, **options: Any) -> Result:
    made = toys.graph(graph, REGISTRY) if isinstance(graph, str) else graph
    return run(made, registry=REGISTRY, device="cpu", run_dir=folder, **options)


@cache
def without(*left_out: int) -> dict[str, Any]:
    """The states after the steps but some, by a loop that knows nothing of the watch."""
    plan = compile_plan(toys.graph(GAN, REGISTRY), REGISTRY)
    with TemporaryDirectory() as folder, torch.no_grad():
        executor = Executor(plan, Context(Path(folder), 0, torch.device("cpu"), Channel([])))
        executor.setup()
        for step, item in enumerate(executor.stream(0)):
            if step not in left_out:
                executor.step(item, step, step == STEPS - 1)
        return {name: flat(value.state_dict()) for name, value in executor.state().items()}


def flat(value: Any) -> Any:
    """With tensors as lists, so that states can be compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): flat(v) for k, v in value.items()}
    return [flat(v) for v in value] if isinstance(value, (list, tuple)) else value


def ended(folder: Path) -> dict[str, Any]:
    """The states in the newest checkpoint."""
    newest = latest(folder / "checkpoints")
    assert newest
    return {name: flat(state) for name, state in read(newest).objects.items()}


def rows(folder: Path, name: str = "log") -> list[int]:
    return [step for step, found, _ in read_metrics(folder / "metrics.csv") if found == name]


# a planted number that is none is found, and its node named


@pytest.mark.parametrize("plant", PLANTS, ids="-".join)
@settings(max_examples=25 if FULL else 2)
@given(at=st.integers(0, STEPS - 1), look=st.sampled_from([1, 2, 100]))
def test_the_node_and_the_step_where_it_began_are_named(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    plant: tuple[str, str],
    at: int,
    look: int,
) -> None:
    folder = tmp_path_factory.mktemp("planted")
    monkeypatch.setattr(watch, "EVERY", look)
    with pytest.raises(NotFiniteError, match=f"^graph: {plant[0]}: .*, at step {at + 1}; ") as caught:
        train(planted(*plant, at), folder)
    assert "the checkpoint of step 0 is sound" in str(caught.value)
    assert toys.events_of(folder)[-1]["where"] == f"graph: {plant[0]}"


RANGE = r"\[-?[\d.]+, -?[\d.]+\]"
FORWARD = "; lower the learning rate, clip gradients, or compute in a higher precision"


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("x", "item", r"items gave 1 NaN of 12 values of batch float32\[4, 3\], at step 3; look at what it reads, or"),
        (
            "lr",
            "inf",
            rf"made 2 Inf of 12 values of batch float32\[4, 3\], at step 3; its inputs: x=float32\[4, 3\] in {RANGE}",
        ),
        (
            "image",
            "gradient",
            r"spoil has a gradient of 12 NaN of 12 values of x float32\[4, 3\], at step 3; its inputs: x=",
        ),
        (
            "sr",
            "weights",
            r"has a gradient of 9 NaN of 9 values of model\.0\.weight float32\[3, 3\], at step 3; its inputs: ",
        ),
        (
            "sr",
            "weights",
            rf"its inputs: model=Sequential in {RANGE}, x=float32\[4, 3\] in {RANGE}; keep roots and quotients",
        ),
        (
            "d",
            "nan",
            rf"made 1 NaN of 1 value of loss float32\[\], at step 3; its inputs: loss=float32\[\] in {RANGE}{FORWARD}",
        ),
    ],
)
def test_the_error_tells_how_many_of_what_and_from_what(tmp_path: Path, place: str, kind: str, message: str) -> None:
    with pytest.raises(NotFiniteError, match=message):
        train(planted(place, kind, 2), tmp_path)


def test_of_two_readers_the_one_that_spoils_the_gradient_is_named(tmp_path: Path) -> None:
    text = """
        x = items()
        net = network()
        opt = adam(net)
        y = forward(net, x)
        a = spoil(y, at=2, kind='gradient')
        b = double(y)
        loss = distance(a, b)
        step = optimizer_step(loss, net, opt)
        shown = show(step)
    """
    with pytest.raises(
        NotFiniteError, match=r"^graph: a: spoil has a gradient of 12 NaN of 12 values of x .*, at step 3"
    ):
        train(text, tmp_path)


def test_an_update_that_overflows_names_the_step(tmp_path: Path) -> None:
    graph = with_settings(planted("d", "large", 0), REGISTRY, ["optD.rate=1e35", "D1.rate=null"])
    with pytest.raises(
        NotFiniteError, match=r"^graph: D1: optimizer_step made \d+ Inf of \d+ values? of model\.model\."
    ):
        train(graph, tmp_path)


def test_weights_that_setup_spoiled_name_their_node(tmp_path: Path) -> None:
    text = "x = items()\nnet = {}\nopt = adam(net)\ny = forward(net, x)\nloss = size(y)\n"
    text += "step = optimizer_step(loss, net, opt)"
    message = (
        r"^graph: net: it holds 1 NaN of 9 values of net\.0\.weight float32\[3, 3\], after 0 steps; give it weights"
    )
    with pytest.raises(NotFiniteError, match=message):
        train(text.format("spoilt_network()") + "\ns = show(step)", tmp_path / "trained")
    crossed = text.format("network()") + "\nvgg = spoilt_network()\nf = features(vgg, y)\ns = show(step)"
    crossed = crossed.replace("size(y)", "size(f)")
    message = (
        r"^graph: vgg: spoilt_network gave 1 NaN of 9 values of model\.0\.weight float32\[3, 3\], at step 1; look at"
    )
    with pytest.raises(NotFiniteError, match=message):
        train(crossed, tmp_path / "crossed")


# what is no fault


def test_infinities_that_are_meant_are_none(tmp_path: Path) -> None:
    """A mask in a buffer, a metric of a perfect picture, and the mean of it."""
    text = """
        x = items()
        net = spoilt_network(at=1)
        opt = adam(net)
        y = forward(net, x)
        loss = size(y)
        step = optimizer_step(loss, net, opt)
        psnr = infinite(y)
        mean = mean_of(psnr)
        report = log(mean)
    """
    assert train(text, tmp_path, checkpoint_every=1).step == STEPS
    assert read_metrics(tmp_path / "metrics.csv")[-1] == (STEPS, "report", INFINITY)
    with pytest.raises(NotFiniteError, match=r"graph: net: it holds 1 NaN of 2 values of net\.mask"):
        train(text.replace("at=1", "at=1, buffer='nan'"), tmp_path / "nan")


@given(st.lists(st.floats(width=32), max_size=8), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_all_finite_is_isfinite(numbers: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    parts = [t for t in (tensor[:3], tensor[3:], torch.ones(2)) if t.numel()]
    assert all_finite(parts) == bool(tensor.isfinite().all())
    assert (unsound("x", tensor) == "") == bool(tensor.isfinite().all())


# policies


@settings(max_examples=500 if FULL else 15)
@given(
    plant=st.sampled_from(PLANTS),
    at=st.integers(0, STEPS - 2),
    policy=st.sampled_from(["skip", "back"]),
    every=st.sampled_from([None, 1, 2, 4]),
    look=st.sampled_from([1, 2, 100]),
)
def test_the_run_goes_on_as_if_the_steps_had_never_been(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    plant: tuple[str, str],
    at: int,
    policy: str,
    every: int | None,
    look: int,
) -> None:
    """Bit-identical with a loop that leaves them out, whenever the fault was found; and each other step told once."""
    folder = tmp_path_factory.mktemp("left-out")
    monkeypatch.setattr(watch, "EVERY", look)
    assert train(planted(*plant, at), folder, on_nan=policy, checkpoint_every=every).step == STEPS
    first = at if policy == "skip" else at - at % (every or STEPS)
    left_out = range(first, at + 1)
    assert ended(folder) == without(*left_out)
    assert rows(folder) == [step + 1 for step in range(STEPS) if step not in left_out]
    scalars = [(e["step"], e["name"]) for e in toys.events_of(folder) if e["type"] == "scalar"]
    assert len(scalars) == len(set(scalars))
    told = [e for e in toys.events_of(folder) if e["type"] == "warning" and e["text"].endswith("left out")]
    steps = f"step {at + 1} is" if first == at else f"steps {first + 1} to {at + 1} are"
    assert [(e["where"], steps in e["text"]) for e in told] == [(f"graph: {plant[0]}", True)]


def test_leaving_out_differs_from_not_leaving_out() -> None:
    """Otherwise the test above would say little."""
    assert without() != without(2) != without(1, 2)


@settings(max_examples=200 if FULL else 8)
@given(stops=st.lists(st.integers(0, 9), min_size=1, max_size=4), at=st.integers(0, STEPS - 2))
def test_a_resumed_run_leaves_out_what_the_run_that_nobody_stopped_does(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], at: int
) -> None:
    """Also when it is stopped after the step and before it was found, or while the steps are done again."""
    folder = tmp_path_factory.mktemp("stopped")
    graph, done = planted("image", "nan", at), False
    for n, stop in enumerate(stops):
        done = not train(graph, folder, on_nan="skip", resume=n > 0, stop=toys.stop_after(stop)).interrupted
        if done:
            break
    if not done:
        train(graph, folder, on_nan="skip", resume=True)
    assert ended(folder) == without(at)
    assert rows(folder) == [step + 1 for step in range(STEPS) if step != at]


def test_after_the_error_the_run_can_be_resumed_without_the_step(tmp_path: Path) -> None:
    graph = planted("g", "inf", 3)
    with pytest.raises(NotFiniteError, match="the checkpoint of step 2 is sound"):
        train(graph, tmp_path, checkpoint_every=2)
    assert train(graph, tmp_path, resume=True, on_nan="skip").step == STEPS
    assert ended(tmp_path) == without(3)


def test_a_state_that_is_not_finite_is_not_saved_on_an_interrupt(tmp_path: Path) -> None:
    result = train(planted("d", "nan", 2), tmp_path, stop=toys.stop_after(4))
    assert (result.step, result.interrupted) == (4, True)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000000.safetensors"]
    assert "this state is not saved" in json.dumps(toys.events_of(tmp_path))


def test_an_error_while_steps_are_done_again_saves_nothing(tmp_path: Path) -> None:
    """The state is then of another step than the run's."""
    OPENED.clear()
    graph = planted("d", "nan", 3)
    graph.nodes["x"].class_type = "read_once"
    with pytest.raises(NodeRunError, match="graph: x: read_once failed at step 2: OSError: the disk is gone"):
        train(graph, tmp_path)
    assert OPENED == [0, 0]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000000.safetensors"]


def test_nothing_is_written_while_steps_are_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY", 1)
    SEEN.clear()
    train(planted("d", "nan", 3), tmp_path, on_nan="skip")
    assert SEEN == [0, 1, 2, 3, 4, 5]


def test_the_last_step_cannot_be_left_out(tmp_path: Path) -> None:
    graph, last = planted("d", "nan", STEPS - 1), STEPS - 1
    with pytest.raises(NotFiniteError, match=f"it is the run's last step, which .* --resume with --steps {last}$"):
        train(graph, tmp_path, on_nan="skip")
    assert train(graph, tmp_path, resume=True, steps=last).step == last
    assert (tmp_path / "export.pt").exists()


def test_steps_are_not_left_out_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST", 3)
    graph = planted("image", "nan", -1)
    with pytest.raises(NotFiniteError, match=r"at step 4; .*; 3 of the last 1000 steps were left out already$"):
        train(graph, tmp_path, on_nan="skip")
    monkeypatch.setattr(watch, "WINDOW", 2)
    with pytest.raises(NotFiniteError, match=r"at step 6; .*it is the run's last step"):
        train(graph, tmp_path / "rare", on_nan="skip")


def test_a_fault_that_does_not_come_again_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def once(kept: list[Tensor]) -> bool:
        calls.append(len(kept))
        return len(calls) != 3 and all_finite(kept)

    monkeypatch.setattr(watch, "EVERY", 1)
    monkeypatch.setattr(watch, "all_finite", once)
    with pytest.raises(
        NotFiniteError, match=r"was not finite by step 2, but is when the steps are done again; .*--determ"
    ):
        train(GAN, tmp_path / "stop")
    calls.clear()
    heard = toys.Heard()
    assert train(GAN, tmp_path / "skip", on_nan="skip", sinks=[heard]).step == STEPS
    assert [e.text[-18:] for e in heard if isinstance(e, Warned)][1:] == ["steps are done again"[-18:]]
    assert ended(tmp_path / "skip") == without()


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    message = "--on-nan ignore: is unknown; give one of stop, skip, back"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        train(GAN, tmp_path / "new", on_nan="ignore")
    assert not (tmp_path / "new").exists()


def test_an_error_of_a_node_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(NodeRunError, match="too blue") as caught:
        train(GAN + "    bad = fail(image, at=2)", tmp_path)
    assert not isinstance(caught.value, NotFiniteError)


@pytest.mark.parametrize("kind", ["nan", "gradient"])
@pytest.mark.parametrize("place", ["fake = rooted(D, checked)", "again = see(checked)", "w = validate(image)"])
def test_a_node_that_refuses_what_is_not_finite_is_not_the_one_named(tmp_path: Path, place: str, kind: str) -> None:
    """One that trains, or one that only looks on, at once or some steps later."""
    text = GAN.replace("    fake = rooted(D, image)\n", f"    checked = refuse(image)\n    {place}\n")
    text = text if "fake =" in text else text.replace("    logits", "    fake = rooted(D, image)\n    logits")
    graph = with_settings(toys.graph(text, REGISTRY), REGISTRY, [f"image.kind={kind}", "image.at=2"])
    with pytest.raises(NotFiniteError, match=r"^graph: image: spoil .*, at step 3; "):
        train(graph, tmp_path / "stop")
    assert [p.name for p in (tmp_path / "stop" / "checkpoints").iterdir()] == ["step-000000000.safetensors"]
    train(graph, tmp_path / "skip", on_nan="skip")
    assert ended(tmp_path / "skip") == without(2)


def test_a_refusal_for_another_reason_stays_itself(tmp_path: Path) -> None:
    """Numbers that are none were about when it came, but not from the training."""
    text = GAN + "    nothing = infinite(image)\n    shown = log(nothing)\n    bad = fail(image, at=2)"
    with pytest.raises(NodeRunError, match="too blue"):
        train(text, tmp_path)


# on the device


@node
def moved(x: toys.Batch, device: Device = CPU) -> toys.Batch:
    return x.to(device)


@node
def placed(device: Device = CPU) -> Model:
    return toys.undisturbed(toys.UNSEEDED.rng(0)).to(device)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_what_is_on_a_device_is_watched_there(tmp_path: Path, device: str, kind: str) -> None:
    text = """
        x = items()
        there = moved(x)
        net = placed()
        opt = adam(net)
        y = forward(net, there)
        z = spoil(y, at=3, kind=KIND)
        loss = size(z)
        step = optimizer_step(loss, net, opt)
        export = export(step)
    """.replace("KIND", repr(kind))
    registry = REGISTRY.with_nodes([moved, placed])
    graph = toys.graph(text, registry)
    with pytest.raises(NotFiniteError, match=r"^graph: z: spoil .*, at step 4; "):
        run(graph, registry=registry, device=device, run_dir=tmp_path / "stop")
    assert run(graph, registry=registry, device=device, run_dir=tmp_path / "skip", on_nan="skip").step == STEPS
    weights = torch.load(tmp_path / "skip" / "export.pt").values()
    assert all(w.isfinite().all() and w.device.type == device for w in weights)
