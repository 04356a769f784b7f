"""LDL's artefact loss against its definition in numpy, and its laws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sr_nodes.ldl import ldl_loss

Array = npt.NDArray[np.float64]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(count: int = 2, height: int = 9, width: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """SR, HR and the average's SR."""
    sr, hr, ema = (noise(count, 3, height, width, seed=seed) for seed in (0, 1, 2))
    return sr, hr, ema


def weights(sr: Array, hr: Array, ema: Array) -> Array:
    """The map of one image [3, H, W], pixel by pixel."""
    error, ema_error = np.abs(hr - sr).sum(0), np.abs(hr - ema).sum(0)
    mirrored = np.pad(error, 3, mode="reflect")
    found: Array = np.zeros(error.shape)
    for y, x in np.ndindex(*error.shape):
        if error[y, x] >= ema_error[y, x]:
            found[y, x] = error.var(ddof=1) ** 0.2 * mirrored[y : y + 7, x : x + 7].var(ddof=1)
    return found


def reference(sr: Array, hr: Array, shares: list[Array]) -> float:
    """The loss of a batch with the maps given."""
    return float(np.mean([share * np.abs(a - b) for share, a, b in zip(shares, sr, hr, strict=True)]))


def test_the_loss_is_its_definition() -> None:
    sr, hr, ema = images()
    shares = [weights(*(image.numpy() for image in one)) for one in zip(sr, hr, ema, strict=True)]
    assert 0 < np.mean([share > 0 for share in shares]) < 1
    assert ldl_loss(sr, hr, ema).item() == pytest.approx(reference(sr.numpy(), hr.numpy(), shares))
    assert ldl_loss(sr, hr, ema, weight=3.0).item() == pytest.approx(3 * ldl_loss(sr, hr, ema).item())


def test_the_gradient_is_that_of_finite_differences_with_the_map_held() -> None:
    sr, hr, ema = images(1, 5, 6)
    shares = [weights(sr[0].numpy(), hr[0].numpy(), ema[0].numpy())]
    sr.requires_grad_()
    (found,) = torch.autograd.grad(ldl_loss(sr, hr, ema), sr)
    start, step = sr.detach().numpy(), 1e-5
    for index in np.ndindex(*start.shape):
        moved = np.zeros_like(start)
        moved[index] = step
        rise = reference(start + moved, hr.numpy(), shares) - reference(start - moved, hr.numpy(), shares)
        assert found[index].item() == pytest.approx(rise / (2 * step), abs=1e-9)
    assert int(found.count_nonzero()) > 0


def test_nothing_at_equality_and_a_finite_gradient() -> None:
    _, hr, ema = images()
    sr = hr.clone().requires_grad_()
    for average in (hr, ema):
        loss = ldl_loss(sr, hr, average)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, sr)
        assert torch.equal(gradient, torch.zeros_like(hr))


def test_where_the_average_is_worse_nothing_is_lost() -> None:
    sr, hr, _ = images()
    worse = hr + 1.01 * (sr - hr)
    assert ldl_loss(sr, hr, worse).item() == 0
    assert ldl_loss(worse, hr, sr).item() > 0


@given(st.floats(0.01, 1))
def test_an_even_error_costs_nothing(size: float) -> None:
    """It is a detail missed or a shift of brightness, no artefact."""
    hr = noise(1, 3, 8, 8)
    assert ldl_loss(hr + size, hr, hr).item() == pytest.approx(0, abs=1e-12)


@given(st.floats(0.05, 20))
def test_an_error_grows_with_the_power_of_its_definition(factor: float) -> None:
    """2 of the local variance, 2/5 of the whole one, 1 of the error."""
    sr, hr, ema = images(1)
    grown = ldl_loss(hr + factor * (sr - hr), hr, hr + factor * (ema - hr))
    assert grown.item() == pytest.approx(factor**3.4 * ldl_loss(sr, hr, ema).item(), rel=1e-6)


def test_it_does_not_depend_on_orientation_and_is_a_mean_over_the_batch() -> None:
    sr, hr, ema = images()
    value = ldl_loss(sr, hr, ema).item()
    assert ldl_loss(sr.mT, hr.mT, ema.mT).item() == pytest.approx(value)
    assert ldl_loss(sr.flip(-1), hr.flip(-1), ema.flip(-1)).item() == pytest.approx(value)
    each = [ldl_loss(sr[i : i + 1], hr[i : i + 1], ema[i : i + 1]).item() for i in range(2)]
    assert value == pytest.approx(np.mean(each))


def test_one_wrong_pixel() -> None:
    """The number of the docstring, by its formula too."""
    hr = noise(1, 3, 16, 16)
    sr = hr.clone()
    sr[..., 8, 8] += 0.1
    expected = (0.09 / 256) ** 0.2 * 0.009 / (49 * 256)
    assert ldl_loss(sr, hr, hr).item() == pytest.approx(expected)
    assert expected == pytest.approx(1.46e-7, abs=5e-10)


def test_no_gradient_to_the_others() -> None:
    sr, hr, ema = (image.requires_grad_() for image in images())
    torch.autograd.backward(ldl_loss(sr, hr, ema))
    assert sr.grad is not None
    assert hr.grad is None
    assert ema.grad is None


def test_what_does_not_fit_is_refused() -> None:
    sr, hr, ema = images()
    with pytest.raises(ValueError, match=r"sr is \[2, 3, 9, 11\] and hr is \[1, 3, 9, 11\]"):
        ldl_loss(sr, hr[:1], ema)
    with pytest.raises(
        ValueError, match=r"ema_sr is \[1, 3, 9, 11\] and sr is \[2, 3, 9, 11\]; generate both from one"
    ):
        ldl_loss(sr, hr, ema[:1])
    sr, hr, ema = images(1, 3, 8)
    with pytest.raises(ValueError, match="the image is 3 x 8, and LDL needs 4 pixels a side; use larger crops"):
        ldl_loss(sr, hr, ema)
