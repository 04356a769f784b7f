"""A prepared generator gives the original's SR, and leaves the original alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.generators import generate
from sr_nodes.inference import Prepared, _is_narrow, _Widened, folded, prepared
from sr_nodes.pictures import read_picture, to_uint8
from sr_nodes.rrdbnet import rrdbnet
from sr_nodes.srresnet import msrresnet, srresnet
from sr_nodes.types import Generator
from sr_nodes.upscalers import BEST, Interpolation, find
from sr_pipeline.paths import resolve

CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(generator: Generator) -> Generator:
    """Statistics, scales and slopes that are not those of a new network: what folds wrongly shows."""
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean = torch.randn(module.num_features, generator=rng(1)) / 4
                module.running_var = torch.rand(module.num_features, generator=rng(2)) + 0.5
                module.weight.uniform_(0.5, 1.5, generator=rng(3))
                module.bias.uniform_(-0.2, 0.2, generator=rng(4))
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(-0.5, 0.5, generator=rng(5))
    return generator


GENERATORS: dict[str, Any] = {
    "srresnet": lambda: srresnet(blocks=2, channels=16, rng=rng()),
    "srresnet x3, a slope a channel, no bias": lambda: srresnet(
        3, blocks=1, channels=16, prelu="channel", bias_before_bn=False, output="tanh", rng=rng()
    ),
    "srresnet without BatchNorm": lambda: srresnet(2, blocks=1, channels=8, batch_norm=False, rng=rng()),
    "msrresnet": lambda: msrresnet(blocks=1, channels=16, rng=rng()),
    "rrdbnet": lambda: rrdbnet(blocks=1, channels=16, growth=8, rng=rng()),
    "rrdbnet x1": lambda: rrdbnet(1, blocks=1, channels=16, growth=8, rng=rng()),
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("size", [(16, 24), (13, 9), (1, 1)])
def test_the_sr_is_the_originals(name: str, size: tuple[int, int]) -> None:
    generator = trained(GENERATORS[name]())
    lr = torch.rand(2, 3, *size, generator=rng())
    found = prepared(generator)(lr)
    assert found.dtype == torch.float32
    assert torch.allclose(found, generate(generator, lr), rtol=0, atol=2e-6)


def test_batch_norm_is_gone_and_the_original_is_not_touched() -> None:
    generator = trained(srresnet(blocks=2, channels=16, rng=rng())).train()
    before = copy.deepcopy(generator.state_dict())
    ready = prepared(generator)
    ready(torch.rand(1, 3, 8, 8))
    assert generator.training
    assert not any(m.training for m in ready.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
    assert all(p.requires_grad for p in generator.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
    assert any(isinstance(m, _Widened) for m in ready.modules())


def test_training_the_original_leaves_the_copy_as_it_was() -> None:
    generator = srresnet(blocks=1, channels=8, rng=rng())
    ready, lr = prepared(generator), torch.rand(1, 3, 8, 8)
    before = ready(lr)
    nn.init.zeros_(generator.get_parameter("tail.weight"))
    assert torch.equal(ready(lr), before)


def test_folding_is_exact_in_float64() -> None:
    generator = trained(srresnet(blocks=2, channels=4, rng=rng())).double().eval()
    lr = torch.rand(1, 3, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(folded(generator)(lr), generator(lr), rtol=0, atol=1e-13)


@settings(max_examples=20)
@given(
    outputs=st.integers(1, 4),
    kernel=st.sampled_from([3, 5, 9]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    bias=st.booleans(),
)
def test_a_widened_convolution_is_the_convolution(
    outputs: int, kernel: int, height: int, width: int, bias: bool
) -> None:
    conv = nn.Conv2d(16, outputs, kernel, padding=kernel // 2, bias=bias).double()
    assert _is_narrow(conv)
    x = torch.rand(2, 16, height, width, generator=rng(), dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(_Widened(conv)(x), conv(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"out_channels": 5},
        {"in_channels": 8},
        {"kernel_size": 4},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2},
        {"groups": 2, "out_channels": 4},
        {"padding_mode": "reflect"},
    ],
)
def test_other_convolutions_are_not_widened(options: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"in_channels": 16, "out_channels": 3, "kernel_size": 3, "padding": 1}
    assert _is_narrow(nn.Conv2d(**plain))
    assert not _is_narrow(nn.Conv2d(**(plain | options)))


class Twice(Generator):
    """Reads the convolution's output again after the activation: overwriting it would be wrong."""

    architecture, scale = "twice", 1

    def __init__(self) -> None:
        super().__init__()
        self.config = {}
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())

    def forward(self, lr: Tensor) -> Tensor:
        kept: Tensor = self.layers[0](lr)
        activated: Tensor = self.layers[1](kept)
        return F.relu(-kept) + activated + kept


def test_a_fold_that_changes_the_sr_is_left_out() -> None:
    generator, lr = Twice(), torch.rand(1, 3, 8, 8)
    assert torch.allclose(prepared(generator)(lr), generate(generator, lr), rtol=0, atol=1e-6)


def test_bf16_is_close_and_comes_as_float32() -> None:
    generator = trained(srresnet(blocks=2, channels=16, rng=rng()))
    lr = torch.rand(1, 3, 16, 16, generator=rng())
    found, wanted = prepared(generator, "bf16")(lr), prepared(generator)(lr)
    assert found.dtype == torch.float32
    assert 1e-5 < float((found - wanted).abs().max()) < 1e-2


def test_what_is_ready_is_not_made_again() -> None:
    ready = prepared(srresnet(blocks=1, channels=4))
    assert prepared(ready) is ready
    assert prepared(ready, "fp32", CPU) is ready
    numbered = prepared(ready, device=torch.device("cpu:0"))  # whose tensors say cpu, as those on cuda say cuda:0
    assert prepared(numbered) is numbered
    other = prepared(ready, "bf16")
    assert other is not ready
    assert other.precision == "bf16"
    assert other.original == ready.original


@pytest.mark.parametrize("amx", [True, False])
def test_auto_is_what_the_device_has_units_for(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX512-BF16 alone is not enough: with it, convolutions are slower than in fp32."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx, "avx512_bf16": True})
    assert prepared(srresnet(blocks=1, channels=4), "auto").precision == ("bf16" if amx else "fp32")


def test_bf16_of_the_shipped_weights_is_within_two_levels_and_over_54_db() -> None:
    """The figures that ``prepared`` states: 55 to 57 dB."""
    pixels = read_picture(resolve("sr_nodes:samples/test/picosdeeuropa.jpg"))[None, :, :64, :64] / 255
    found, wanted = (prepared(find(BEST), precision)(pixels) for precision in ("bf16", "fp32"))
    assert 54 < float(-10 * (found - wanted).square().mean().log10()) < 60
    assert int((to_uint8(found).int() - to_uint8(wanted).int()).abs().max()) <= 2


def test_results_are_clamped_and_carry_no_gradient() -> None:
    generator = msrresnet(blocks=1, channels=4, rng=rng())
    nn.init.constant_(generator.get_parameter("conv_last.bias"), 2.0)
    sr = prepared(generator)(torch.rand(1, 3, 4, 4))
    assert float(sr.min()) == float(sr.max()) == 1
    assert not sr.requires_grad


def test_a_network_without_weights_is_prepared_too() -> None:
    lr = torch.rand(1, 3, 5, 7)
    ready = prepared(Interpolation("bicubic", 2))
    assert isinstance(ready, Prepared)
    assert torch.allclose(ready(lr), generate(Interpolation("bicubic", 2), lr), rtol=0, atol=1e-6)
