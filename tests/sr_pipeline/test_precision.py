"""Precision and memory format: what is computed in which numbers, and that the globals are as before."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import toys
from sr_pipeline.errors import UsageError
from sr_pipeline.events import Warned
from sr_pipeline.node import node
from sr_pipeline.precision import Mode, as_float32, chosen_mode, is_fast_in_bf16
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sockets import SILENT, Report
from toys import Batch, Heard, graph

CPU = torch.device("cpu")


class Two(NamedTuple):
    first: Tensor
    second: int


@node
def seen(x: Batch, report: Report = SILENT) -> Batch:
    """Reports how it is computed: under autocast or not, and whether its input is float32."""
    report.scalar("autocast", torch.is_autocast_enabled("cpu"))
    report.scalar("float32", x.dtype == torch.float32)
    return x * 1


WATCHED = """
    net = network()
    opt = adam(net)
    x = batches(steps=3)
    y = forward(net, x)
    on_path = seen(y)
    loss = distance(on_path, x)
    step = optimizer_step(loss, net, opt)
    after = forward(step, x)
    beside = seen(after)
    size = size(beside)
    log = log(size)
    export = export(step)
"""


def watched(folder: Path, precision: str) -> tuple[Heard, dict[str, Tensor]]:
    heard = Heard()
    types = Registry([*toys.NODES, seen])
    run(graph(WATCHED, types), registry=types, device="cpu", run_dir=folder, precision=precision, sinks=[heard])
    return heard, torch.load(folder / "export.pt", weights_only=True)


def test_bf16_is_where_gradients_flow_and_nowhere_else(tmp_path: Path) -> None:
    full, weights = watched(tmp_path / "fp32", "fp32")
    low, rounded = watched(tmp_path / "bf16", "bf16")
    assert set(full.scalars("on_path/autocast").values()) == {0.0}
    assert set(low.scalars("on_path/autocast").values()) == {1.0}
    assert set(low.scalars("beside/autocast").values()) == {0.0}
    for name in ("on_path/float32", "beside/float32"):
        assert set(low.scalars(name).values()) == {1.0}
    for name, tensor in rounded.items():
        assert tensor.dtype == weights[name].dtype
        assert torch.allclose(tensor.float(), weights[name].float(), atol=0.5)
    assert any(not torch.equal(rounded[name], weights[name]) for name in weights)


TWICE = """
    net = network()
    opt = sgd(net, rate=0.5, momentum=0.0)
    x = batches(steps=1)
    first = distance(forward_1, x)
    forward_1 = forward(net, x)
    step = optimizer_step(first, net, opt)
    forward_2 = forward(step, x)
    second = distance(forward_2, x)
    again = optimizer_step(second, step, step.optimizer)
    log_1 = log(first)
    log_2 = log(second)
    export = export(again)
"""


def test_weights_that_a_step_changed_are_rounded_anew(tmp_path: Path) -> None:
    """What is kept of them in bfloat16 for the nodes of a step is dropped when they change."""
    losses = {}
    for precision in ("fp32", "bf16"):
        heard = Heard()
        toys.run_of(TWICE, tmp_path / precision, precision=precision, sinks=[heard])
        losses[precision] = [heard.scalars(name)[1] for name in ("log_1", "log_2")]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["fp32"][1] < 0.8 * losses["fp32"][0]


@pytest.mark.parametrize("options", [("half", "contiguous"), ("fp32", "nhwc")])
def test_an_unknown_name_is_refused(options: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"is unknown.*give one of .*, auto"):
        chosen_mode(*options, CPU)


@pytest.mark.parametrize("amx", [True, False])
def test_auto_is_what_the_device_has_units_for(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX512-BF16 alone is not enough: with it, convolutions are slower than in fp32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx, "avx512_bf16": True})
    assert not is_fast_in_bf16(CPU)  # conftest.py forbids AMX
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert is_fast_in_bf16(CPU) is amx
    assert chosen_mode("auto", "auto", CPU) == Mode("bf16" if amx else "fp32", "channels_last")


def test_the_layout_that_a_gpu_is_fast_in() -> None:
    """The device is only asked for its kind."""
    cuda = torch.device("cuda")
    assert chosen_mode("fp32", "auto", cuda) == Mode("fp32", "contiguous")
    assert chosen_mode("tf32", "auto", cuda) == Mode("tf32", "channels_last")


@pytest.mark.parametrize("amx", [True, False])
def test_numbers_that_the_device_is_slow_in_are_warned_of(
    amx: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    for precision, warned in (("auto", False), ("bf16", not amx)):
        heard = Heard()
        toys.run_of(TWICE, tmp_path / precision, precision=precision, sinks=[heard])
        assert ("no units for bf16" in str([event for event in heard if isinstance(event, Warned)])) is warned


def test_products_are_tf32_inside_on_a_gpu_alone_and_as_before_after() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with Mode("tf32").products(torch.device("cuda")):
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before
    with Mode("tf32").products(CPU):
        assert matmul.fp32_precision == before


def test_what_lies_on_a_wire_is_float32() -> None:
    low = torch.ones(2, dtype=torch.bfloat16)
    found = as_float32(Two(low, 3))
    assert isinstance(found, Two)
    assert (found.first.dtype, found.second) == (torch.float32, 3)
    assert as_float32([low])[0] is low
    kept = torch.ones(2, dtype=torch.float64)
    assert as_float32(kept) is kept


def test_models_are_laid_out_and_back() -> None:
    conv = nn.Conv2d(4, 4, 3)
    Mode(memory_format="channels_last").lay_out([conv, 3])
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    Mode().lay_out([conv])
    assert conv.weight.is_contiguous()


def test_a_model_of_volumes_stays_as_it_is() -> None:
    both = nn.ModuleList([nn.Conv3d(2, 2, 3), nn.Conv2d(4, 4, 3), nn.Linear(2, 2)])
    before = [p.detach().clone() for p in both.parameters()]
    Mode(memory_format="channels_last").lay_out([both])
    assert all(torch.equal(p, old) for p, old in zip(both.parameters(), before, strict=True))
    assert next(both[0].parameters()).is_contiguous()
    assert not next(both[1].parameters()).is_contiguous()
