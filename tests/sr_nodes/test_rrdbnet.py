"""RRDBNet is the paper's: its number of parameters, its formulas, and what scales 1 and 2 mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.generators import generate
from sr_nodes.rrdbnet import RRDBNet, pad_end, rrdbnet

SMALL: dict[str, Any] = {"blocks": 2, "channels": 8, "growth": 4}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=rng(seed))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 16_697_987),
        ({"scale": 2}, 16_697_987 + 9 * 9 * 64),  # the first convolution takes 12 channels instead of 3
        ({"scale": 1}, 16_697_987 + 45 * 9 * 64),
        ({"blocks": 6}, 4_467_779),  # Real-ESRGAN's anime model
    ],
)
def test_number_of_parameters(options: dict[str, Any], count: int) -> None:
    assert sum(p.numel() for p in rrdbnet(**options).parameters()) == count


def paper_rrdbnet(weights: dict[str, Tensor], features: Tensor, blocks: int) -> Tensor:
    """Figure 4 as formulas, from the weights by name; what is fed is what the first convolution sees."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def lrelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    def dense(x: Tensor, name: str) -> Tensor:
        made = [x]
        for i in range(1, 5):
            made.append(lrelu(conv(torch.cat(made, 1), f"{name}.conv{i}")))
        return x + 0.2 * conv(torch.cat(made, 1), f"{name}.conv5")

    x = first = conv(features, "conv_first")
    for i in range(blocks):
        inner = x
        for j in (1, 2, 3):
            inner = dense(inner, f"body.{i}.rdb{j}")
        x = x + 0.2 * inner
    x = first + conv(x, "conv_body")
    for i in (1, 2):
        x = lrelu(conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2), f"conv_up{i}"))
    return conv(lrelu(conv(x, "conv_hr")), "conv_last")


def test_overwritten_activations_change_nothing_and_leave_the_input() -> None:
    """Without gradients, activations are written over their inputs; with them, what the backward pass needs stays."""
    model, lr = rrdbnet(**SMALL, rng=rng()), noise(1, 3, 8, 8)
    before = lr.clone()
    with torch.no_grad():
        found = model(lr)
    assert torch.equal(found, model(lr))
    assert torch.equal(lr, before)
    model(lr).sum().backward()


@pytest.mark.parametrize(("scale", "fold"), [(4, 1), (2, 2), (1, 4)])
def test_the_network_is_the_papers_with_pixels_folded(scale: Any, fold: int) -> None:
    model = rrdbnet(scale, **SMALL, rng=rng()).double()
    lr = noise(2, 3, 8, 12).double()
    # Each channel's fold x fold pixels become channels, row by row: BasicSR's order.
    folded = torch.stack([lr[:, c, i::fold, j::fold] for c in range(3) for i in range(fold) for j in range(fold)], 1)
    with torch.no_grad():
        assert torch.allclose(model(lr), paper_rrdbnet(model.state_dict(), folded, blocks=2), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(scale=st.sampled_from([1, 2, 4]), height=st.integers(1, 9), width=st.integers(1, 9))
def test_the_sr_of_any_size_is_the_crop_of_that_of_a_mirrored_lr(scale: Any, height: int, width: int) -> None:
    model = rrdbnet(scale, blocks=1, channels=4, growth=2, rng=rng())
    lr = noise(1, 3, height, width)
    whole = pad_end(lr, -height % (4 // scale), -width % (4 // scale))
    sr = generate(model, lr)
    assert sr.shape == (1, 3, scale * height, scale * width)
    assert torch.equal(sr, generate(model, whole)[..., : scale * height, : scale * width])


@settings(deadline=None, max_examples=50)
@given(size=st.tuples(st.integers(1, 5), st.integers(1, 5)), more=st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_padding_mirrors_then_repeats(size: tuple[int, int], more: tuple[int, int]) -> None:
    image = noise(1, 2, *size)
    padded = pad_end(image, *more)

    def source(i: int, length: int) -> int:
        mirrored = 2 * (length - 1) - i
        return i if i < length else max(mirrored, 0)

    rows = [source(i, size[0]) for i in range(size[0] + more[0])]
    columns = [source(i, size[1]) for i in range(size[1] + more[1])]
    assert torch.equal(padded, image[:, :, rows][:, :, :, columns])


def test_dense_blocks_start_small() -> None:
    weights = rrdbnet(blocks=1, channels=64, growth=32, rng=rng()).state_dict()
    for name, tensor in weights.items():
        if ".rdb" in name and name.endswith("weight"):
            wanted = 0.1 * (2 / tensor[0].numel()) ** 0.5
            assert float(tensor.std()) == pytest.approx(wanted, rel=0.05), name
        elif ".rdb" in name:
            assert not tensor.any(), name
        else:
            assert tensor.any(), name


def test_every_weight_learns() -> None:
    model = rrdbnet(**SMALL, rng=rng())
    torch.autograd.backward(generate(model, noise(1, 3, 6, 6), training=True).square().mean())
    assert all(p.grad is not None and bool(p.grad.any()) and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_weights_depend_on_the_generator_of_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (rrdbnet(**SMALL, rng=rng(seed)).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_first.weight"], other["conv_first.weight"])


def test_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale is 3; this network has 1, 2 and 4"):
        RRDBNet(scale=3)  # type: ignore[arg-type]
