"""Optimizers, rates and steps: against a loop written by hand, and changing nothing but what they should."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import toys
from sr_nodes import optim
from sr_nodes._fused import adam as recorded_adam
from sr_nodes.modules import seeded
from sr_nodes.optim import adam, adamw, copy_model, cosine_schedule, ema, optimizer_step, step_schedule
from sr_pipeline.node import node_type
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sockets import Reporter


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 1))


def batch(seed: int = 0) -> Tensor:
    return torch.rand(8, 3, generator=rng(seed))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    value: Tensor = (model(batch(seed)) - 1).square().mean()
    return value


class Heard(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


OPTIONS: dict[str, Any] = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize(("make", "library"), [(adam, torch.optim.Adam), (adamw, torch.optim.AdamW)])
def test_steps_are_those_of_a_loop_written_by_hand(make: Any, library: Any) -> None:
    model, by_hand = network(), network()
    ours = make(model, **OPTIONS)
    theirs = library(by_hand.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, fused=True)
    for step in range(5):
        with torch.enable_grad():
            loss = loss_of(model, step)
        with torch.no_grad():
            stepped = optimizer_step(loss, model, ours, step=step)
        assert stepped.model is model
        assert stepped.optimizer is ours
        theirs.zero_grad()
        torch.autograd.backward(loss_of(by_hand, step))
        theirs.step()
        assert same(state(model), state(by_hand))


@pytest.mark.parametrize(("make", "decay"), [(adam, 0.0), (adamw, 0.01)])
def test_defaults_are_the_papers(make: Any, decay: float) -> None:
    (group,) = make(network()).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, decay)


def test_adams_first_step_is_the_learning_rate_whatever_the_gradient() -> None:
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    optimizer_step(1000 * model.weight.sum(), model, adam(model, learning_rate=0.5))
    assert model.weight.item() == pytest.approx(before - 0.5, abs=1e-6)


def test_only_parameters_that_ask_for_a_gradient_are_trained() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = state(model)
    optimizer_step(loss_of(model), model, adamw(model, weight_decay=0.5))
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == {"1.weight", "1.bias", "2.weight", "3.weight", "3.bias"}
    with pytest.raises(ValueError, match="Sequential has no parameter to train; wire a model that is not"):
        adam(copy_model(model))


def test_a_given_learning_rate_is_of_every_group_from_this_step_on() -> None:
    model = network()
    groups: list[dict[str, Any]] = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 9.0}]
    optimizer = torch.optim.SGD(groups, lr=1)
    optimizer_step(loss_of(model), model, optimizer, learning_rate=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_a_learning_rate_kept_as_a_tensor_stays_that_tensor() -> None:
    model = network()
    rate = torch.tensor(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    before = state(model)
    gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
    optimizer_step(loss_of(model), model, optimizer, learning_rate=0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert torch.allclose(parameter, before[name] - 0.25 * gradient, atol=1e-7)


def test_no_gradient_leaks_in_or_out() -> None:
    model, clean, crossed = network(), network(), nn.Linear(1, 1)
    optimizer, reference = adam(model), adam(clean)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    optimizer_step(crossed(model(batch())).mean(), model, optimizer)
    optimizer_step(crossed(clean(batch())).mean(), clean, reference)
    assert same(state(model), state(clean))
    assert all(p.grad is None for net in (model, crossed) for p in net.parameters())


def test_a_crossed_models_gradients_are_not_touched() -> None:
    model, crossed = network(), nn.Linear(1, 1)
    kept = torch.ones(1, 1)
    crossed.weight.grad = kept
    optimizer_step(crossed(model(batch())).mean(), model, adam(model))
    assert crossed.weight.grad is kept
    assert kept.item() == 1


def test_two_backward_passes_over_one_forward_pass() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(2, 1)
    shared = first(batch()).tanh()
    optimizer_step(second(shared).mean(), second, adam(second), retain_graph=True)
    optimizer_step(shared.square().mean(), first, adam(first))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(shared.square().mean(), list(first.parameters()))


def test_a_parameter_that_no_gradient_reaches_is_warned_of_once() -> None:
    model, heard = network(), Heard()
    optimizer = adam(model)
    for step in range(3):
        optimizer_step(model[0](batch()).mean(), model, optimizer, step=step, report=heard)
    names = "1.weight, 1.bias, 2.weight, 3.weight, 3.bias"
    assert heard.warnings == [f"the loss gives no gradient to {names} of Sequential"]
    optimizer_step(loss_of(model), model, optimizer, step=0, report=heard)
    assert len(heard.warnings) == 1


def test_a_wrong_step_is_refused_and_changes_nothing() -> None:
    model, other = network(), network(1)
    optimizer = adam(model, learning_rate=0.1)
    before = state(model), optimizer.state_dict()

    def refused(loss: Tensor, match: str, optimizer: torch.optim.Optimizer = optimizer) -> None:
        with pytest.raises(ValueError, match=match):
            optimizer_step(loss, model, optimizer, learning_rate=0.5)

    refused(loss_of(other), "Adam was not made from this Sequential: .*wire model and optimizer from one", adam(other))
    refused(model[0](batch()), r"the loss has shape \[8, 4\]; give a scalar")
    refused(loss_of(model).detach(), "the loss has no gradient, so Sequential cannot learn from it; wire a loss that")
    del before[0]["1.running_mean"], before[0]["1.running_var"], before[0]["1.num_batches_tracked"]
    now = state(model)
    assert all(torch.equal(now[name], tensor) for name, tensor in before[0].items())
    assert optimizer.state_dict() == before[1]


def test_a_step_that_fails_in_its_backward_pass_keeps_the_rate() -> None:
    model = network()
    optimizer = adam(model, learning_rate=0.1)
    loss = loss_of(model)
    torch.autograd.grad(loss, list(model.parameters()))
    with pytest.raises(RuntimeError, match="second time"):
        optimizer_step(loss, model, optimizer, learning_rate=0.5)
    assert optimizer.param_groups[0]["lr"] == 0.1


# clipping


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-3, 10), st.integers(0, 50))
def test_clipping_scales_all_gradients_by_one_factor(clip_norm: float, seed: int) -> None:
    model = network(seed)
    gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).double().norm().item()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer_step(loss_of(model), model, torch.optim.SGD(model.parameters(), lr=1), clip_norm=clip_norm)
    factor = min(1, clip_norm / norm)
    for now, then, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(now, then - factor * gradient, rtol=1e-4, atol=1e-5)


def test_a_gradient_shorter_than_the_clip_is_left_to_the_bit() -> None:
    clipped, free = network(), network()
    optimizer_step(loss_of(clipped), clipped, adam(clipped), clip_norm=1e6)
    optimizer_step(loss_of(free), free, adam(free))
    assert same(state(clipped), state(free))


# accumulation


def without_batch_norm(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_accumulated_steps_are_one_step_on_the_larger_batch(number: int, clip_norm: float | None) -> None:
    """Four updates of Adam, in float64: the parts of a batch one by one against a loop by hand over the whole of it."""
    model, by_hand = without_batch_norm(), without_batch_norm()
    ours, theirs = adam(model, 0.01), torch.optim.Adam(by_hand.parameters(), 0.01)
    for update in range(4):
        whole = torch.rand(4 * number, 3, generator=rng(update), dtype=torch.float64)
        for part in whole.chunk(number):
            optimizer_step((model(part) - 1).square().mean(), model, ours, accumulate=number, clip_norm=clip_norm)
        theirs.zero_grad()
        torch.autograd.backward((by_hand(whole) - 1).square().mean())
        if clip_norm is not None:
            norm = torch.cat([p.grad.flatten() for p in by_hand.parameters() if p.grad is not None]).norm()
            assert norm > clip_norm
            for p in by_hand.parameters():
                p.grad = p.grad * clip_norm / norm if p.grad is not None else None
        theirs.step()
    difference = max((a - b).abs().max().item() for a, b in zip(model.parameters(), by_hand.parameters(), strict=True))
    assert difference < 1e-8  # 6e-17 without clipping, whose factor has 1e-6 added to the norm


def test_gradients_are_averaged_once() -> None:
    """Gradients of 1, 5 and 6, at a rate of 1: the weight moves by their mean, 4, and not before the third."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    weights = []
    for slope in (1, 5, 6, 1, 1, 1, 7):
        optimizer_step(slope * model.weight.sum(), model, optimizer, accumulate=3)
        weights.append(model.weight.item())
    assert weights == [0, 0, -4, -4, -4, -5, -5]
    assert model.weight.grad is None


def test_a_parameter_that_only_some_of_the_steps_reach() -> None:
    model = nn.ParameterList([torch.zeros(1) for _ in range(3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    for reached in (0, 1, 0, 1):
        optimizer_step(2 * model[reached].sum(), model, optimizer, accumulate=4)
    assert [p.item() for p in model] == [-1, -1, 0]


def test_fewer_to_accumulate_takes_what_there_is() -> None:
    """A run that is resumed with another number: those that wait and the new one are averaged."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    for slope, number in ((1, 5), (2, 5), (6, 2), (8, 1)):
        optimizer_step(slope * model.weight.sum(), model, optimizer, accumulate=number)
    assert model.weight.item() == -(1 + 2 + 6) / 3 - 8


def test_two_steps_of_one_optimizer_share_what_they_accumulate() -> None:
    """Two updates of D a step, each with accumulate 2: one update a step, against the mean of both."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    for slope in (1, 3, 5, 7):
        optimizer_step(slope * model.weight.sum(), model, optimizer, accumulate=2)
    assert model.weight.item() == -2 - 6


def test_a_failed_step_keeps_what_was_accumulated() -> None:
    model, clean = network(), network()
    optimizer, reference = adam(model), adam(clean)
    for n in range(3):
        if n == 1:
            spent = loss_of(model, n)
            torch.autograd.grad(spent, list(model.parameters()))
            with pytest.raises(RuntimeError, match="second time"):
                optimizer_step(spent, model, optimizer, accumulate=3)
        optimizer_step(loss_of(model, n), model, optimizer, accumulate=3)
        optimizer_step(loss_of(clean, n), clean, reference, accumulate=3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), clean.parameters(), strict=True))


ACCUMULATING = """
    net = network()
    opt = adam(net)
    x = batches(steps=7)
    y = forward(net, x)
    loss = distance(y, x)
    step = optimizer_step(loss, net, opt, learning_rate=0.01, clip_norm=0.5, accumulate=3)
    export = export(step)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    accumulating_run(folder)
    return folder


def accumulating_run(folder: Path, **options: Any) -> None:
    """The toy network, stepped by the pack's nodes."""
    toy = [n for n in toys.NODES if n.__name__ not in ("adam", "optimizer_step")]
    registry = Registry([*toy, optim.adam, optim.optimizer_step])
    run(toys.graph(ACCUMULATING), registry=registry, device="cpu", run_dir=folder, **options)


@pytest.mark.parametrize("stops", [[1], [2], [3], [4], [5, 6], [1, 2, 3, 4, 5, 6]])
def test_a_run_resumed_amid_an_accumulation_is_bit_identical(tmp_path: Path, straight: Path, stops: list[int]) -> None:
    done = 0
    for stop in stops:
        accumulating_run(tmp_path, stop=toys.stop_after(stop - done), resume=done > 0)
        done = stop
    accumulating_run(tmp_path, resume=True)
    assert toys.state_of(tmp_path) == toys.state_of(straight)


def test_what_a_run_ends_on_waits_in_the_checkpoint(tmp_path: Path, straight: Path) -> None:
    """Seven steps by three: the weights are those of six, and the seventh gradient is used when the run goes on."""
    accumulating_run(tmp_path / "six", steps=6)
    six, seven = torch.load(tmp_path / "six" / "export.pt"), torch.load(straight / "export.pt")
    weights = [name for name in six if "running" not in name and "tracked" not in name]
    assert all(torch.equal(six[name], seven[name]) for name in weights)
    waiting = [name for name in toys.state_of(straight)[1] if name.startswith("opt.state.accumulated.gradients")]
    assert len(waiting) == len(weights) == 6
    accumulating_run(tmp_path / "nine", steps=9)
    accumulating_run(tmp_path / "part", stop=toys.stop_after(7))
    accumulating_run(tmp_path / "part", steps=9, resume=True)
    assert toys.state_of(tmp_path / "part")[1] == toys.state_of(tmp_path / "nine")[1]


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 1, exclude_max=True), st.integers(1, 6))
def test_ema_over_accumulated_steps_is_a_decay_to_the_power(decay: float, number: int) -> None:
    """As the docstring says: the weights stand still for n moves, which are one move of d where each is of d^(1/n)."""
    model, slow, once = without_batch_norm(1), copy_model(without_batch_norm()), copy_model(without_batch_norm())
    for _ in range(number):
        ema(model, slow, decay ** (1 / number))
    ema(model, once, decay)
    for a, b in zip(slow.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_papers_schedule_drops_after_exactly_1e5_updates() -> None:
    rates = [step_schedule(step=step) for step in (0, 99_999, 100_000, 10**6)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5], rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-6, 1), st.integers(1, 1000), st.floats(0, 1), st.integers(0, 2000))
def test_cosine_falls_between_its_ends(initial: float, steps: int, share: float, step: int) -> None:
    final = initial * share
    rate = cosine_schedule(initial, steps, final, step)
    assert final * (1 - 1e-9) <= rate <= initial * (1 + 1e-9)
    assert cosine_schedule(initial, steps, final, step + 1) <= rate * (1 + 1e-9) + 1e-15
    if step >= steps:
        assert rate == pytest.approx(final, abs=1e-15)
    assert cosine_schedule(initial, steps, final, 0) == pytest.approx(initial)
    middle = cosine_schedule(initial, 2 * steps, final, steps)
    assert middle == pytest.approx((initial + final) / 2, rel=1e-9)


def test_a_copy_shares_nothing_and_asks_for_no_gradient() -> None:
    model = network()
    copy = copy_model(model)
    before = state(model)
    assert same(state(copy), before)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert same(state(copy), before)


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 50))
def test_ema_is_its_formula_for_parameters_and_buffers(decay: float, seed: int) -> None:
    model, average = network(seed), copy_model(network(seed + 100))
    loss_of(model)  # moves BatchNorm's statistics
    old, now = state(average), state(model)
    assert ema(model, average, decay) is average
    assert same(state(model), now)
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            expected = decay * old[name].double() + (1 - decay) * now[name].double()
            assert torch.allclose(tensor.double(), expected, atol=1e-6)
    assert average.get_buffer("1.num_batches_tracked").item() == 1


def test_ema_is_not_inverted() -> None:
    model, average = network(0), copy_model(network(1))
    loss_of(model)
    assert same(state(ema(model, average, decay=0.0)), state(model))
    start = network(1).state_dict()["0.weight"]
    slow = ema(model, copy_model(network(1)), decay=0.999).state_dict()["0.weight"]
    moved, distance = (slow - start).norm().item(), (model.state_dict()["0.weight"] - start).norm().item()
    assert moved == pytest.approx(0.001 * distance, rel=1e-3)


def test_ema_of_something_else_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="average is the model itself; give it a copy_model of the model"):
        ema(model, model)
    with pytest.raises(ValueError, match=r"the model Linear do not fit the network: missing: 0\.weight"):
        ema(nn.Linear(3, 4), copy_model(model))


def test_ema_of_a_model_without_weights() -> None:
    model = nn.Sequential(nn.ReLU())
    assert list(ema(model, copy_model(model)).state_dict()) == []


def test_the_engine_reads_the_nodes() -> None:
    step = node_type(optimizer_step)
    assert step.mutations == {"model": 0, "optimizer": 1}
    assert step.backward is not None
    assert [(o.name, o.type.variable) for o in step.outputs] == [("model", "M"), ("optimizer", None)]
    assert node_type(ema).mutations == {"average": 0}
    assert node_type(copy_model).mutations == {}
    assert node_type(step_schedule).inputs["drop_at"].type.read("[10, 20]") == (10, 20)
    with pytest.raises(ValueError, match="greater than 0"):
        step.inputs["learning_rate"].type.read("-1.0")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        step.inputs["accumulate"].type.read("0")
    with pytest.raises(ValueError, match="greater than 0"):
        step.inputs["clip_norm"].type.read("0.0")
    assert step.inputs["learning_rate"].type.read("null") is None


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_in_pieces_is_adam(kind: type[torch.optim.Adam], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a recorded step runs it: in the order in which weights lie in memory, over several launches. A CPU's kernel
    rounds the last few numbers of each piece otherwise."""
    monkeypatch.setattr("sr_nodes._fused.adam.recorded_stream", lambda device: object())
    monkeypatch.setattr("sr_nodes._fused.adam._MANY", 3)
    monkeypatch.setattr("sr_nodes._fused.lists._PIECE", 100)
    launches, name = list[int](), f"_fused_{kind.__name__.lower()}_"
    step = getattr(torch, name)

    def counted(*given: Any, **options: Any) -> None:
        launches.append(len(given[0]))
        step(*given, **options)

    monkeypatch.setattr(torch, name, counted)
    with seeded(torch.Generator().manual_seed(0)):
        one = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3))
    one.to(memory_format=torch.channels_last)
    other = copy.deepcopy(one)
    optimizers = [kind(net.parameters(), 1e-2, weight_decay=0.1, fused=True) for net in (one, other)]
    for number in range(4):
        rng = torch.Generator().manual_seed(number)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=rng).contiguous(memory_format=_order(p))
            q.grad = p.grad.clone()
        optimizers[0].step()
        recorded_adam.update(optimizers[1])
        torch.testing.assert_close(list(other.parameters()), list(one.parameters()), rtol=1e-6, atol=1e-8)
    # 189, 7, 7, 7, 315 and 5 numbers in pieces of 100; the first step is torch's, which makes what it keeps.
    assert launches == [6, 6, *[6, 3, 3, 3, 1] * 3]


def _order(p: Tensor) -> torch.memory_format:
    return torch.channels_last if p.dim() == 4 else torch.contiguous_format
