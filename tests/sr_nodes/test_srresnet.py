"""SRResNet is the paper's size and numbers, MSRResNet BasicSR's; weights come from a generator of random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.generators import generate
from sr_nodes.srresnet import MSRResNet, SRResNet, msrresnet, srresnet
from sr_nodes.types import Generator

SMALL: dict[str, Any] = {"blocks": 2, "channels": 8}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=rng(seed))


def small(seed: int = 0, **options: Any) -> Generator:
    """A small generator whose running statistics are not those of a new one."""
    model = srresnet(**{**SMALL, **options}, rng=rng(seed))
    generate(model, noise(2, 3, 8, 8, seed=seed), training=True)
    return model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1_549_462),
        ({"bias_before_bn": False}, 1_547_350),
        ({"prelu": "channel"}, 1_549_462 + 1_197),
        ({"output": "tanh"}, 1_549_462),
        # Without BatchNorm its 33 scales and shifts of 64 go, and the biases stay whatever bias_before_bn says.
        ({"batch_norm": False}, 1_549_462 - 33 * 128),
        ({"batch_norm": False, "bias_before_bn": False}, 1_549_462 - 33 * 128),
    ],
)
def test_number_of_parameters(options: dict[str, Any], count: int) -> None:
    assert sum(p.numel() for p in srresnet(**options).parameters()) == count


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_the_sr_is_scale_times_as_large(scale: Any, size: tuple[int, int]) -> None:
    model = srresnet(scale, **SMALL)
    assert model.scale == scale
    assert generate(model, torch.rand(2, 3, *size)).shape == (2, 3, scale * size[0], scale * size[1])


def test_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale is 6; this network has 2, 3, 4 and 8"):
        SRResNet(scale=6)  # type: ignore[arg-type]


def paper_srresnet(weights: dict[str, Tensor], lr: Tensor, blocks: int) -> Tensor:
    """Figure 4 written as formulas, in eval mode, from the weights by name."""

    def conv(x: Tensor, name: str) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return nn.functional.conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, gain, shift = (
            weights[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gain + shift

    def prelu(x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * weights[f"{name}.weight"])

    x = first = prelu(conv(lr, "head.0"), "head.1")
    for i in range(blocks):
        body = f"blocks.{i}.body"
        inner = prelu(norm(conv(x, f"{body}.0"), f"{body}.1"), f"{body}.2")
        x = x + norm(conv(inner, f"{body}.3"), f"{body}.4")
    x = first + norm(conv(x, f"blocks.{blocks}"), f"blocks.{blocks + 1}")
    for i in (0, 3):
        x = prelu(nn.functional.pixel_shuffle(conv(x, f"upsample.{i}"), 2), f"upsample.{i + 2}")
    return conv(x, "tail")


def test_the_network_is_the_papers_on_its_own_range() -> None:
    model = small().double().eval()
    lr = noise(2, 3, 6, 7).double()
    with torch.no_grad():
        paper = paper_srresnet(model.state_dict(), lr, blocks=2)
        assert torch.allclose(model(lr) * 2 - 1, paper, atol=1e-12)
        assert torch.allclose(generate(model, lr), ((paper + 1) / 2).clamp(0, 1), atol=1e-12)


def test_tanh_keeps_the_image_in_range_by_itself() -> None:
    plain, tanh = small(output="none"), small(output="tanh")
    assert isinstance(plain, SRResNet)
    assert isinstance(tanh, SRResNet)
    plain.eval()
    tanh.eval()
    lr = 50 * noise(1, 3, 8, 8)
    with torch.no_grad():
        assert float((2 * plain(lr) - 1).abs().max()) > 1
        assert torch.equal(tanh.raw(lr), plain.raw(lr).tanh())


def test_weights_depend_on_the_generator_of_random_numbers_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = srresnet(**SMALL, rng=rng(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_weights(first, srresnet(**SMALL, rng=rng(7)))
    assert not same_weights(first, srresnet(**SMALL, rng=rng(8)))


def test_without_a_generator_torchs_own_is_used() -> None:
    torch.manual_seed(3)
    first = srresnet(**SMALL)
    torch.manual_seed(3)
    assert same_weights(first, srresnet(**SMALL))


def test_an_output_in_0_1_is_the_image_itself() -> None:
    signed, plain = small(), small(value_range="0..1")
    assert isinstance(signed, SRResNet)
    lr = noise(1, 3, 5, 7)
    with torch.no_grad():
        assert torch.equal(plain.eval()(lr), signed.eval().raw(lr))


def test_imagenets_norm_goes_before_the_first_layer_and_its_padding() -> None:
    plain, normed = small(), small(input_norm="imagenet")
    assert plain.state_dict().keys() == normed.state_dict().keys()
    normed.load_state_dict(plain.state_dict())
    lr = noise(2, 3, 5, 7)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(normed.eval()(lr), plain.eval()((lr - mean) / std), atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "count"), [(4, 1_517_571), (2, 1_517_571 - 147_712), (3, 1_517_571 - 2 * 147_712 + 332_352)]
)
def test_number_of_parameters_of_msrresnet(scale: Any, count: int) -> None:
    assert sum(p.numel() for p in msrresnet(scale).parameters()) == count


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_msrresnet_is_formulas_of_its_weights(scale: Any) -> None:
    model = msrresnet(scale, **SMALL, rng=rng()).double()
    weights, lr = model.state_dict(), noise(2, 3, 5, 7).double()

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def lrelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    x = lrelu(conv(lr, "conv_first"))
    for i in range(2):
        x = x + conv(conv(x, f"body.{i}.conv1").clamp(min=0), f"body.{i}.conv2")
    for i in (1, 2) if scale == 4 else (1,):
        x = lrelu(F.pixel_shuffle(conv(x, f"upconv{i}"), 2 if scale == 4 else scale))
    detail = conv(lrelu(conv(x, "conv_hr")), "conv_last")
    enlarged = F.interpolate(lr, size=(5 * scale, 7 * scale), mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.allclose(model(lr), detail + enlarged, atol=1e-12)


def test_msrresnet_refuses_another_scale() -> None:
    with pytest.raises(ValueError, match="scale is 8; this network has 2, 3 and 4"):
        MSRResNet(scale=8)  # type: ignore[arg-type]
    assert same_weights(msrresnet(**SMALL, rng=rng(7)), msrresnet(**SMALL, rng=rng(7)))
