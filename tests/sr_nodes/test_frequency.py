"""Losses on spectra: a DFT written out, Parseval, circular shifts, and gradients."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sr_nodes.frequency import frequency_loss
from sr_nodes.losses import mse_loss

Kind = Literal["l1", "focal"]
KINDS: list[Kind] = ["l1", "focal"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def modulus(difference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """|DFT| of [..., H, W], orthonormal, as two products with the matrix of its definition."""

    def dft(n: int) -> npt.NDArray[np.complex128]:
        return np.asarray(np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n))

    height, width = difference.shape[-2:]
    return np.asarray(np.abs(dft(height) @ difference @ dft(width).T))


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 4)])
def test_the_losses_are_their_definitions(size: tuple[int, int]) -> None:
    sr, hr = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    d = modulus((sr - hr).numpy())
    assert frequency_loss(sr, hr).item() == pytest.approx(np.mean(d))
    share = d / d.max(axis=(-2, -1), keepdims=True)
    assert frequency_loss(sr, hr, "focal").item() == pytest.approx(np.mean(share * d**2))
    assert frequency_loss(sr, hr, "focal", 3.0).item() == pytest.approx(3 * np.mean(share * d**2))


@pytest.mark.parametrize("kind", KINDS)
def test_laws(kind: Kind) -> None:
    """Nothing at equality, symmetric, a mean over the batch and over channels."""
    sr, hr = noise(2, 3, 6, 5), noise(2, 3, 6, 5, seed=1)
    value = frequency_loss(sr, hr, kind).item()
    assert value > 0
    assert value == pytest.approx(frequency_loss(hr, sr, kind).item())
    each = [
        frequency_loss(sr[b : b + 1, c : c + 1], hr[b : b + 1, c : c + 1], kind).item() for b, c in np.ndindex(2, 3)
    ]
    assert value == pytest.approx(np.mean(each))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_images_lose_nothing_and_teach_nothing(kind: Kind) -> None:
    hr = noise(2, 3, 6, 5)
    sr = hr.clone().requires_grad_()
    loss = frequency_loss(sr, hr, kind)
    (gradient,) = torch.autograd.grad(loss, sr)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(hr))


@given(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from(KINDS))
def test_a_circular_shift_of_both_changes_nothing(down: int, right: int, kind: Kind) -> None:
    sr, hr = noise(1, 3, 6, 7), noise(1, 3, 6, 7, seed=1)
    ours, theirs = (image.roll((down, right), (-2, -1)) for image in (sr, hr))
    assert frequency_loss(ours, theirs, kind).item() == pytest.approx(frequency_loss(sr, hr, kind).item())
    if (down % 6, right % 7) != (0, 0):  # of one alone it does
        assert frequency_loss(ours, sr, kind).item() > 1e-3


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_parseval_bounds_both(seed: int, height: int, width: int) -> None:
    sr, hr = noise(1, 3, height, width, seed=seed), noise(1, 3, height, width, seed=seed + 1)
    mse = mse_loss(sr, hr).item()
    assert np.mean(modulus((sr - hr).numpy()) ** 2) == pytest.approx(mse)
    assert frequency_loss(sr, hr, "focal").item() <= mse * (1 + 1e-9)
    assert frequency_loss(sr, hr).item() <= math.sqrt(mse) * (1 + 1e-9)


def test_one_frequency_and_one_pixel() -> None:
    """All in one frequency, or the same in all: focal is then Parseval's mean squared error."""
    hr = noise(2, 3, 8, 4)
    pixel = hr.clone()
    pixel[..., 3, 2] += 0.1
    assert frequency_loss(hr + 0.1, hr).item() == pytest.approx(0.1 / math.sqrt(32))
    assert frequency_loss(hr + 0.1, hr, "focal").item() == pytest.approx(0.01)
    assert frequency_loss(pixel, hr).item() == pytest.approx(0.1 / math.sqrt(32))
    assert frequency_loss(pixel, hr, "focal").item() == pytest.approx(0.01 / 32)


def test_the_gradient_of_l1_is_that_of_finite_differences() -> None:
    hr = noise(1, 3, 4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda sr: frequency_loss(sr, hr), noise(1, 3, 4, 5).requires_grad_())


def test_the_gradient_of_focal_is_that_of_finite_differences_with_its_weights_held() -> None:
    sr, hr = noise(1, 2, 3, 4).requires_grad_(), noise(1, 2, 3, 4, seed=1)
    (found,) = torch.autograd.grad(frequency_loss(sr, hr, "focal"), sr)
    start, step = sr.detach().numpy(), 1e-5
    d = modulus(start - hr.numpy())
    share = d / d.max(axis=(-2, -1), keepdims=True)

    def held(image: npt.NDArray[np.float64]) -> float:
        return float(np.mean(share * modulus(image - hr.numpy()) ** 2))

    for index in np.ndindex(*start.shape):
        moved = np.zeros_like(start)
        moved[index] = step
        assert found[index].item() == pytest.approx((held(start + moved) - held(start - moved)) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_different_shapes_are_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"sr is \[1, 3, 4, 4\] and hr is \[2, 3, 4, 4\]"):
        frequency_loss(noise(1, 3, 4, 4), noise(2, 3, 4, 4), kind)
