"""The benchmarks compare like with like: the loop beside ours does the same step, and a figure is what it says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import levers
import loops
import measure
import replay
import step
from sr_pipeline.precision import Mode

CPU = torch.device("cpu")
SMALL = loops.Size(batch=2, crop=32, blocks=1, channels=8)
CHANNELS_LAST, BF16 = Mode("fp32", "channels_last"), Mode("bf16", "channels_last")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that the loops build, generator and discriminator by turns."""
    found: list[nn.Module] = []
    networks = loops.networks

    def noted(*arguments: Any) -> tuple[nn.Module, nn.Module]:
        pair = networks(*arguments)
        found.extend(pair)
        return pair

    monkeypatch.setattr(loops, "networks", noted)
    return found


def batches() -> list[Tensor]:
    rng = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, 32, 32, generator=rng) for _ in range(2)]


def moved(mode: Mode, gan: bool, built: list[nn.Module]) -> tuple[Tensor, Tensor]:
    """How far two steps moved the weights of all networks: through the engine, and in the straight loop."""
    ours, theirs = step.Ours(SMALL, mode, CPU, gan), loops.straight(SMALL, mode, CPU, gan)
    networks = built[: 1 + gan]
    before = torch.cat([p.detach().flatten() for network in networks for p in network.parameters()])
    for hr in batches():
        ours(hr)
        theirs(hr)
    state = ours.executor.state()
    trained = [state[name] for name in ("generator", "discriminator")[: 1 + gan]]
    first, second = (
        torch.cat([p.detach().flatten() for network in all_ for p in network.parameters()])
        for all_ in (trained, networks)
    )
    return first - before, second - before


@pytest.mark.parametrize(("mode", "gan"), [(Mode(), False), (CHANNELS_LAST, True), (BF16, True)], ids=str)
def test_the_straight_loop_gives_the_engines_weights(built: list[nn.Module], mode: Mode, gan: bool) -> None:
    ours, theirs = moved(mode, gan, built)
    assert theirs.abs().max() > 1e-5
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in levers.CHANGES if name != levers.BASE])
def test_a_lever_changes_the_time_and_not_the_training(name: str, built: list[nn.Module]) -> None:
    """But for rounding: a weight whose gradient is nothing else moves by it."""

    def weights() -> Tensor:
        return torch.cat([p.detach().flatten() for network in built for p in network.parameters()])

    moves = []
    for mode, habits in (levers.CHANGES[name], levers.CHANGES[levers.BASE]):
        built.clear()
        one_step = loops.straight(SMALL, mode, CPU, True, habits)
        before = weights()
        for hr in batches():
            one_step(hr)
        moves.append(weights() - before)
    assert (moves[0] - moves[1]).norm() < 0.01 * moves[1].norm()


def test_the_tutorials_loop_trains_both_networks(built: list[nn.Module]) -> None:
    one_step = loops.tutorial(SMALL, CPU, True)
    before = [{key: t.clone() for key, t in network.state_dict().items()} for network in built]
    losses = one_step(batches()[0])
    assert [type(loss) for loss in losses] == [float, float, float]
    for network, then in zip(built, before, strict=True):
        assert all(not torch.equal(p, then[name]) for name, p in network.named_parameters())


def clock_of(*, seconds: list[float]) -> Callable[[], float]:
    """A clock that stands, but for the calls that move it."""
    return lambda: sum(seconds)


def test_a_race_times_each_alone_and_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[float] = []
    order: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        def take() -> None:
            gone.append(seconds)
            order.append(name)

        return take

    monkeypatch.setattr(measure, "clock", clock_of(seconds=gone))
    seconds = measure.race({"slow": call("slow", 4.0), "fast": call("fast", 1.0)}, rounds=2)
    assert seconds == {"slow": [4.0, 4.0], "fast": [1.0, 1.0]}
    assert order[-4:] == ["slow", "fast", "fast", "slow"]
    assert measure.ratio(seconds, "fast", "slow") == {"median": 0.25, "min": 0.25, "max": 0.25}


def test_a_turn_lasts_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[float] = []
    monkeypatch.setattr(measure, "clock", clock_of(seconds=gone))
    seconds = measure.race({"short": lambda: gone.append(0.1)}, rounds=1, least=0.95)
    assert len(gone) == 1 + (1 + 2 + 4) + 10  # one not counted, rows until one lasts a quarter of that, and the turn
    assert seconds["short"] == pytest.approx([0.1])


def test_a_turn_is_as_long_where_the_first_call_is_slow() -> None:
    """As that of a step whose device was idle is: a turn is as many calls as a row of them says."""
    rows = list[int]()

    def take(calls: int) -> float:
        rows.append(calls)
        return 0.5 + 0.1 * calls

    seconds = measure.in_turn({"idle at first": take}, rounds=1, least=20.0)
    assert rows[-1] * seconds["idle at first"][0] > 0.9 * 20.0


def test_what_a_captured_step_waits_is_the_worse_networks() -> None:
    mode = Mode("bf16", "channels_last", "graph")
    ours = f"ours, {mode}"

    def measured(milliseconds: float, waiting: float) -> dict[str, Any]:
        race = {"ms": {ours: {"median": milliseconds}}}
        peaks = {ours: 1, "ours, fp32, contiguous": 30, "a, fp32, contiguous": 20}
        return {"synthetic": race, "real": race, "waiting": {"median": waiting}, "peak_mib": peaks}

    found = step.summary({"srgan": measured(4.0, 0.01), "srresnet": measured(1.5, 0.02)}, mode)
    assert found == {"srgan_ms": 4.0, "srresnet_ms": 1.5, "wait_share": 0.02, "memory_a": 1.5}


def test_a_machines_name_is_fit_for_a_file() -> None:
    assert measure.slug({"device": "NVIDIA H200 (SXM)"}) == "nvidia-h200-sxm"


# replay.py: what a GPU did

KERNELS = [
    replay.Kernel("void convolve<64>(int)", 7, 0.0, 10.0),
    replay.Kernel("void convolve<64>(int)", 7, 11.0, 10.0),
    replay.Kernel("normalise", 9, 5.0, 10.0),
    replay.Kernel("Memset", 7, 71.0, 10.0),
]


def test_a_replay_is_summed_up() -> None:
    """Two kernels side by side are one busy time; 50 of the 81 microseconds are idle."""
    found = replay.summary(KERNELS)
    assert (found["number"], found["us"], found["busy"]) == (4, 81.0, round(31 / 81, 3))
    assert next(iter(found["by_name"].items())) == ("convolve<64>(int)", {"times": 2, "us": 20.0})
    assert {kernel.kind for kernel in KERNELS} == {
        "convolutions and products", "BatchNorm and activations", "the rest"
    }  # fmt: skip


def test_rows_of_a_replays_picture_do_not_overlap() -> None:
    """A stream's run of kernels is one branch, and what comes much later goes where there is room."""
    assert replay.lanes(KERNELS) == [[KERNELS[0], KERNELS[1], KERNELS[3]], [KERNELS[2]]]


def test_a_replays_picture_has_a_bar_for_each_kernel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "replay.png"
    replay.picture(KERNELS, "a step", path)
    colours = {colour for _, colour in Image.open(path).convert("RGB").getcolors(1 << 24) or ()}
    assert {(0x2F, 0x6D, 0xB5), (0xE0, 0x8A, 0x2E), (0x9A, 0xA5, 0xB1)} <= colours
