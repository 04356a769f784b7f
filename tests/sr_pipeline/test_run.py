"""Whole runs: the numbers of a loop written by hand, however the run is watched, stopped and resumed."""

from __future__ import annotations

import gc
import re
import shutil
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam

import toys
from sr_pipeline.errors import CheckpointError, GraphError, NodeRunError, UsageError
from sr_pipeline.events import Done, Progress, Resumed, Saved, Warned
from sr_pipeline.graph import Graph
from sr_pipeline.node import node
from sr_pipeline.run import run
from sr_pipeline.runner import with_last
from sr_pipeline.sinks import read_metrics
from sr_pipeline.sockets import Model, SeedSource

# against a loop written by hand

NETS = """
    x = batches(steps=5)
    G = network()
    D = network()
    optG = adam(G)
    optD = sgd(D, 0.01)
    rate = halving()
    sr = forward(G, x)
    real = forward(D, x)
    fake = forward(D, sr)
    d_loss = distance(real, fake)
    D1 = optimizer_step(d_loss, D, optD)
"""
END = """
    G1 = optimizer_step(g_loss, G, optG, rate)
    g = export(G1, 'g')
    d = export({}, 'd')
"""


class ByHand:
    """The toy networks and optimizers of seed 0, stepped by a loop as one would write it."""

    def __init__(self) -> None:
        self.G, self.D = (toys.undisturbed(SeedSource(0, id_).rng(0)).train() for id_ in "GD")
        self.opt_g, self.opt_d = Adam(self.G.parameters(), 0.1), SGD(self.D.parameters(), 0.01, momentum=0.5)

    def loop(self, body: Callable[[ByHand, Tensor], None], steps: int = 5) -> None:
        for step in range(steps):
            self.opt_g.param_groups[0]["lr"] = 0.1 / 2**step
            body(self, torch.randn(4, 3, generator=SeedSource(0, "x").rng(step)))

    def step_d(self, x: Tensor, sr: Tensor) -> None:
        self.opt_d.zero_grad()
        loss = (self.D(x) - self.D(sr.detach())).square().mean()
        torch.autograd.backward(loss)
        self.opt_d.step()

    def step_g(self, loss: Tensor) -> None:
        self.opt_g.zero_grad()
        torch.autograd.backward(loss)
        self.opt_g.step()


def paper(hand: ByHand, x: Tensor) -> None:
    sr = hand.G(x)
    hand.step_d(x, sr)
    hand.step_g(hand.D(sr).square().mean())


def old_d(hand: ByHand, x: Tensor) -> None:
    sr = hand.G(x)
    real, fake = hand.D(x), hand.D(sr)
    hand.opt_d.zero_grad()
    torch.autograd.backward((real - fake).square().mean(), inputs=list(hand.D.parameters()), retain_graph=True)
    hand.opt_g.zero_grad()
    torch.autograd.backward(fake.square().mean(), inputs=list(hand.G.parameters()))
    hand.opt_d.step()
    hand.opt_g.step()


def two_passes(hand: ByHand, x: Tensor) -> None:
    sr = hand.G(x)
    hand.opt_d.zero_grad()
    torch.autograd.backward((hand.D(x) - hand.D(sr.detach())).square().mean())
    loss = hand.D(sr).square().mean()
    hand.opt_g.zero_grad()
    torch.autograd.backward(loss, inputs=list(hand.G.parameters()))
    hand.opt_g.step()
    hand.opt_d.step()


def k2(hand: ByHand, x: Tensor) -> None:
    sr = hand.G(x)
    hand.step_d(x, sr)
    hand.step_d(x, sr)
    hand.step_g(hand.D(sr).square().mean())


WIRINGS: dict[str, tuple[str, Callable[[ByHand, Tensor], None]]] = {
    "paper": ("judged = forward(D1, sr)\n    g_loss = size(judged)" + END.format("D1"), paper),
    "old D": ("g_loss = size(fake)" + END.format("D1"), old_d),
    "two passes over the old D": ("again = forward(D, sr)\n    g_loss = size(again)" + END.format("D1"), two_passes),
    "k=2": (
        "real2 = forward(D1, x)\n    fake2 = forward(D1, sr)\n    d_loss2 = distance(real2, fake2)\n"
        "    D2 = optimizer_step(d_loss2, D1, D1.optimizer)\n    judged = forward(D2, sr)\n"
        "    g_loss = size(judged)" + END.format("D2"),
        k2,
    ),
}


def same(module: nn.Module, path: Path) -> bool:
    """Whether an exported file holds the module's state to the bit, buffers included."""
    ours, theirs = module.state_dict(), torch.load(path)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_run_gives_the_bits_of_a_loop_written_by_hand(tmp_path: Path, wiring: str) -> None:
    text, body = WIRINGS[wiring]
    toys.run_of(NETS + "    " + text, tmp_path)
    hand = ByHand()
    hand.loop(body)
    assert same(hand.G, tmp_path / "g.pt")
    assert same(hand.D, tmp_path / "d.pt")


def test_wirings_differ(tmp_path: Path) -> None:
    """Otherwise the test above would say little."""
    made = []
    for n, (text, _) in enumerate(WIRINGS.values()):
        toys.run_of(NETS + "    " + text, tmp_path / str(n))
        made.append((tmp_path / str(n) / "g.pt", tmp_path / str(n) / "d.pt"))
    ends = [[t.tolist() for path in pair for t in torch.load(path).values()] for pair in made]
    assert all(a != b for a, b in combinations(ends, 2))


# what changes no numbers


def final(text: str, folder: Path, **options: Any) -> Any:
    toys.run_of(text, folder, **options)
    return toys.state_of(folder)


def test_a_second_run_in_one_process_gives_the_same_bits(tmp_path: Path) -> None:
    assert final(toys.REGRESSION, tmp_path / "a") == final(toys.REGRESSION, tmp_path / "b")
    assert final(toys.REGRESSION, tmp_path / "a2", seed=1) != final(toys.REGRESSION, tmp_path / "b2", seed=2)


@pytest.mark.parametrize(
    "more",
    [
        "w = write(y, every=2)",
        "seen = forward(step, x)\n    w = write(seen, every=3)",
        "before = forward(net, x)\n    w = write(before)",
        "noise = noisy(x)\n    w = write(noise)",
        "other = network()\n    w2 = show(other)",
        "late = log(loss, every=4)",
    ],
)
def test_more_nodes_change_no_numbers(tmp_path: Path, more: str) -> None:
    text = toys.REGRESSION.replace("distance(y, x)", "distance(y, z)").replace("y = for", "z = noisy(x)\n    y = for")
    assert final(text + "    " + more, tmp_path / "more") == final(text, tmp_path / "less")


def test_torchs_own_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    toys.run_of(toys.REGRESSION + "    z = noisy(x)\n    w = write(z)", tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_the_graph_given_is_not_changed(tmp_path: Path) -> None:
    graph = toys.graph(toys.REGRESSION)
    run(graph, registry=toys.REGISTRY, steps=2, run_dir=tmp_path, device="cpu")
    assert graph == toys.graph(toys.REGRESSION)


# interrupt and resume

WATCHED = toys.REGRESSION.replace("log(loss)", "log(loss, every=2)") + "    w = write(y, every=4)\n    z = log(loss)\n"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of WATCHED that nobody stopped."""
    folder = tmp_path_factory.mktemp("straight")
    toys.run_of(WATCHED, folder)
    return folder


@given(stops=st.lists(st.integers(0, 5), min_size=1, max_size=3), every=st.sampled_from([None, 1, 4]))
def test_a_resumed_run_is_the_run_that_nobody_stopped(
    tmp_path_factory: pytest.TempPathFactory, straight: Path, stops: list[int], every: int | None
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    done, resumed = 0, []
    for n, steps in enumerate(stops):
        stop = toys.stop_after(steps)
        result = toys.run_of(WATCHED, folder, resume=n > 0, stop=stop, checkpoint_every=every)
        resumed += [done] * (n > 0)
        done = min(done + steps, 6)
        assert (result.step, result.interrupted) == (done, done < 6)
        if done == 6:
            break
    toys.run_of(WATCHED, folder, resume=True)
    events = toys.events_of(folder)
    assert [e["step"] for e in events if e["type"] == "resumed"] == [*resumed, done]
    assert toys.state_of(folder) == toys.state_of(straight)
    assert (folder / "metrics.csv").read_bytes() == (straight / "metrics.csv").read_bytes()
    assert {p.name: p.read_bytes() for p in folder.glob("write-*")} == {
        p.name: p.read_bytes() for p in straight.glob("write-*")
    }
    shutil.rmtree(folder)


def test_an_interrupt_fires_nothing(tmp_path: Path) -> None:
    result = toys.run_of(WATCHED, tmp_path, stop=toys.stop_after(3))
    assert (result.step, result.interrupted) == (3, True)
    assert not list(tmp_path.glob("write-*"))
    assert not (tmp_path / "export.pt").exists()
    assert {name for _, name, _ in read_metrics(tmp_path / "metrics.csv")} == {"log", "z"} | FORWARD
    assert toys.events_of(tmp_path)[-1]["interrupted"] is True


FORWARD = {"net/made", "y/training", "y/grad", "y/wanted"}


def test_a_stop_after_the_last_step_is_no_interrupt(tmp_path: Path) -> None:
    assert not toys.run_of(WATCHED, tmp_path, stop=toys.stop_after(6)).interrupted
    assert (tmp_path / "export.pt").exists()


def test_steps_replaces_the_streams_own_on_resume_too(tmp_path: Path) -> None:
    assert toys.run_of(toys.REGRESSION, tmp_path / "a", steps=2).step == 2
    assert toys.run_of(toys.REGRESSION, tmp_path / "a", steps=9, resume=True).step == 9
    toys.run_of(toys.REGRESSION.replace("steps=6", "steps=9"), tmp_path / "b")
    assert toys.state_of(tmp_path / "a") == toys.state_of(tmp_path / "b")
    assert Graph.load(tmp_path / "a" / "graph.json").nodes["x"].inputs["steps"] == 9


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path)
    before = toys.state_of(tmp_path), (tmp_path / "export.pt").read_bytes()
    (tmp_path / "export.pt").rename(tmp_path / "kept.pt")
    result = toys.run_of(toys.REGRESSION, tmp_path, resume=True)
    assert (result.step, result.interrupted) == (6, False)
    assert (toys.state_of(tmp_path), (tmp_path / "kept.pt").read_bytes()) == before
    assert not (tmp_path / "export.pt").exists()


def test_fewer_steps_than_done_take_none_back(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path)
    assert toys.run_of(toys.REGRESSION, tmp_path, resume=True, steps=3).step == 6


@pytest.mark.parametrize("stream", ["count(number=7)", "forgetful()"])
def test_a_stream_without_steps_is_limited_and_resumed(tmp_path: Path, stream: str) -> None:
    text = f"x = {stream}\ns = size(x)\nmean = mean_of(s)\nw = write(x)\nlog = log(mean)"
    toys.run_of(text, tmp_path, steps=3)
    toys.run_of(text, tmp_path, steps=5, resume=True)
    assert float((tmp_path / "write-5.txt").read_text()) == 15
    assert read_metrics(tmp_path / "metrics.csv")[-1] == (5, "log", (1 + 4 + 9 + 16 + 25) / 5)


def test_a_finite_stream_ends_the_run_and_fires(tmp_path: Path) -> None:
    result = toys.run_of("x = count(number=7)\nw = write(x, every=3)\nlast = write(x, every=0)", tmp_path)
    assert (result.step, sorted(p.name for p in tmp_path.glob("write-*"))) == (
        7,
        ["write-3.txt", "write-6.txt", "write-7.txt"],
    )


def test_checkpoints_come_as_often_as_asked(tmp_path: Path) -> None:
    heard = toys.Heard()
    toys.run_of(toys.REGRESSION, tmp_path, checkpoint_every=4, sinks=[heard])
    assert [e.step for e in heard if isinstance(e, Saved)] == [0, 4, 6]


def test_events_tell_the_run(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path, stop=toys.stop_after(2))
    heard = toys.Heard()
    toys.run_of(toys.REGRESSION, tmp_path, resume=True, sinks=[heard])
    assert [e for e in heard if isinstance(e, Resumed)] == [Resumed(2)]
    progress = [e for e in heard if isinstance(e, Progress)]
    assert (progress[0].step, progress[-1].step, progress[-1].total) == (3, 6, 6)
    assert all(e.rate > 0 for e in progress)
    assert isinstance(heard[-1], Done)
    assert (heard[-1].step, heard[-1].interrupted) == (6, False)


def test_a_warning_of_the_plan_is_told(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION + "    early = show(net)", tmp_path)
    (warning,) = [e for e in toys.events_of(tmp_path) if e["type"] == "warning"]
    assert warning["where"] == "graph: early.model"


# refusals


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path)
    message = f"--run-dir {tmp_path}: holds a run already; give another folder, or --resume to go on with it"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        toys.run_of(toys.REGRESSION, tmp_path)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    message = f"--run-dir {tmp_path}: there is no run to resume; give the folder of a run, or run without --resume"
    with pytest.raises(UsageError, match=re.escape(message)):
        toys.run_of(toys.REGRESSION, tmp_path, resume=True)


def test_another_seed_is_refused_on_resume(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path, stop=toys.stop_after(2), seed=3)
    with pytest.raises(UsageError, match=re.escape("--seed 4: the run to resume has the seed 3; leave --seed out")):
        toys.run_of(toys.REGRESSION, tmp_path, resume=True, seed=4)
    assert toys.run_of(toys.REGRESSION, tmp_path, resume=True).step == 6


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "--steps 0: is no number of steps; give 1 or more"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0: is no number of steps; give 1 or more"),
    ],
)
def test_numbers_of_steps_are_checked(tmp_path: Path, option: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        toys.run_of(toys.REGRESSION, tmp_path / "new", **option)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "--device gpu: is no device; give auto, cpu, cuda or cuda:N"),
        ("meta", "--device meta: is no device; give auto, cpu, cuda or cuda:N"),
        ("cuda:99", "--device cuda:99: there is no such device"),
    ],
)
def test_devices_are_checked(tmp_path: Path, device: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        run(toys.graph(toys.REGRESSION), registry=toys.REGISTRY, run_dir=tmp_path, device=device)


def test_a_faulty_graph_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="nothing to do"):
        toys.run_of("x = batches()", tmp_path / "new")
    assert not (tmp_path / "new").exists()


FIX = "resume with the graph that the run's folder holds, or go on with what fits: --allow-changed"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("net", "model", "fits: mean; differs: opt (its model is another); new: model; left over: net"),
        ("mean = mean_of(loss)\n    report = log(mean)", "", "fits: net, opt; left over: mean"),
        (
            "network()",
            "network(width=5)",
            "fits: mean; differs: net (0.bias is [3] in the file, [5] in the graph), opt (its model is another)",
        ),
        (
            "network()",
            "network(False)",
            "fits: mean; differs: net (1.num_batches_tracked is [] in the file, absent in the graph), "
            "opt (an optimizer of other parameters)",
        ),
        ("adam(net)", "sgd(net)", "fits: mean, net; differs: opt (Adam in the file, SGD in the graph)"),
    ],
)
def test_another_graph_is_refused_on_resume_and_harms_nothing(tmp_path: Path, old: str, new: str, message: str) -> None:
    toys.run_of(toys.REGRESSION, tmp_path, stop=toys.stop_after(2))
    graph = (tmp_path / "graph.json").read_text()
    other = re.sub(rf"\b{re.escape(old)}(?!\w)", new, toys.REGRESSION)
    with pytest.raises(CheckpointError, match=re.escape(f": it is of another graph: {message}; {FIX}")):
        toys.run_of(other, tmp_path, resume=True)
    assert (tmp_path / "graph.json").read_text() == graph
    assert toys.run_of(toys.REGRESSION, tmp_path, resume=True).step == 6


CROSSED = """
    vgg = network(False)
    net = network()
    opt = adam(net)
    x = batches()
    y = forward(net, x)
    f = features({}, y)
    loss = size(f)
    step = optimizer_step(loss, net, opt)
    log = log(loss)
    {}
"""


def test_other_unchanged_weights_are_refused_on_resume(tmp_path: Path) -> None:
    toys.run_of(CROSSED.format("vgg", ""), tmp_path, stop=toys.stop_after(2))
    other = CROSSED.format("loaded", "loaded = load(vgg)")
    message = f"it is of another graph: fits: net, opt; other weights: vgg; {FIX}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        toys.run_of(other, tmp_path, resume=True)
    heard = toys.Heard()
    assert toys.run_of(other, tmp_path, resume=True, allow_changed=True, sinks=[heard]).step == 6
    (warning,) = [e for e in heard if isinstance(e, Warned)]
    assert warning.text == "the graph was changed: fits: net, opt; other weights: vgg"


# size


def test_a_thousand_nodes_run(tmp_path: Path) -> None:
    graph = Graph()
    last = graph.add(toys.batches, id="x", steps=3)
    for _ in range(1000):
        last = graph.add(toys.double, x=last)
    graph.add(toys.write, x=last, every=0)
    assert run(graph, registry=toys.REGISTRY, run_dir=tmp_path).step == 3


def test_the_last_item_is_known_and_one_is_read_ahead() -> None:
    taken: list[int] = []

    def items() -> Any:
        for n in range(3):
            taken.append(n)
            yield n

    seen = [(item, last, len(taken)) for item, last in with_last(items())]
    assert seen == [(0, False, 2), (1, False, 3), (2, True, 3)]
    assert list(with_last([])) == []


def test_files_of_a_run_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"cannot be written: Is a directory: .*events.jsonl; give another folder"):
        toys.run_of(toys.REGRESSION, tmp_path)


# memory


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
def test_what_a_run_made_is_let_go_without_a_search_for_garbage(fails: bool, tmp_path: Path) -> None:
    """Python searches so seldom beside torch's many objects that the next run would meet a full device."""
    made = list[weakref.ref[nn.Module]]()

    @node
    def remembered() -> Model:
        net = toys.undisturbed(SeedSource().rng(0))
        made.append(weakref.ref(net))
        return net

    types = toys.REGISTRY.with_nodes([remembered])
    text = toys.REGRESSION.replace("network()", "remembered()") + ("    f = fail(x, at=2)" if fails else "")
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(NodeRunError) if fails else nullcontext():
            run(toys.graph(text, types), registry=types, device="cpu", run_dir=tmp_path)
        assert [one() for one in made] == [None]
    finally:
        gc.enable()
