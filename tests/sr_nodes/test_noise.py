"""Noise by its moments, with bounds of four deviations of the estimate, and by what it may not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sr_nodes.noise import gaussian_noise, poisson_noise, random_noise

NODES: list[Callable[..., Tensor]] = [gaussian_noise, poisson_noise, random_noise]
SIDE = 64
PIXELS = SIDE * SIDE


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gray(level: float, count: int = 1) -> Tensor:
    return torch.full((count, 3, SIDE, SIDE), level)


def levels(count: int) -> Tensor:
    """[1, 3, SIDE, SIDE] of ``count`` different 8-bit levels about the middle, equally often."""
    ladder = torch.linspace(64, 192, count).round() if count > 1 else torch.tensor([128.0])
    return (ladder[torch.arange(PIXELS) % count] / 255).view(1, 1, SIDE, SIDE).expand(1, 3, SIDE, SIDE)


def assert_moments(noise: Tensor, variance: float) -> None:
    """Mean 0 and this variance, whatever the kurtosis, which is taken from the sample."""
    noise = noise.double().flatten()
    spread = noise.square().std().item() / len(noise) ** 0.5
    assert noise.mean().item() == pytest.approx(0, abs=4 * (variance / len(noise)) ** 0.5)
    assert noise.square().mean().item() == pytest.approx(variance, abs=4 * spread)


@pytest.mark.parametrize("gray_probability", [0.0, 1.0])
@pytest.mark.parametrize("sigma", [2.0, 12.5])
def test_gaussian_noise_is_normal_with_its_deviation_in_levels(sigma: float, gray_probability: float) -> None:
    image = gray(0.5, 4)
    noise = gaussian_noise(image, sigma, sigma, gray_probability, rng=rng()) - image
    assert_moments(noise[:, 0], (sigma / 255) ** 2)
    assert stats.kstest(noise[:, 0].flatten().numpy() / (sigma / 255), "norm").pvalue > 1e-3


def test_the_deviation_is_drawn_for_each_image() -> None:
    image = gray(0.5, 60)
    deviations = 255 * (gaussian_noise(image, 2.0, 20.0, rng=rng()) - image).std((1, 2, 3))
    assert 1.9 < deviations.min() < 4
    assert 18 < deviations.max() < 20.6
    assert deviations.mean().item() == pytest.approx(11, abs=4 * (18**2 / 12 / 60) ** 0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 33, 129])
def test_poisson_noise_is_that_of_as_many_photons_as_levels(count: int) -> None:
    """The counts are whole, and the variance is scale^2 x / v with v the next power of two of the levels."""
    photons, scale = 2 ** (count - 1).bit_length(), 0.03
    image = levels(count)
    noise = (poisson_noise(image, scale, scale, 0.0, rng=rng()) - image) / scale
    counted = (noise + image) * photons
    assert torch.allclose(counted, counted.round(), atol=2e-3)
    assert_moments(noise, image.mean().item() / photons)


def test_poisson_variance_is_proportional_to_the_image() -> None:
    """Fit over the levels of one image: variance = slope x with no constant, and 1 / slope the 256 photons."""
    image = levels(129)
    flat = image.flatten()
    squares = ((poisson_noise(image, 0.5, 0.5, 0.0, rng=rng()) - image) / 0.5).square().flatten()
    dark, bright = flat < 0.4, flat > 0.6
    slopes = [(squares[part].sum() / flat[part].sum()).item() for part in (dark, bright)]
    for slope, part in zip(slopes, (dark, bright), strict=True):
        assert slope * 256 == pytest.approx(1, abs=4 * (2 / int(part.sum())) ** 0.5)


def test_photons_are_counted_for_each_image() -> None:
    image = torch.cat([levels(2), levels(64)])
    noise = poisson_noise(image, 0.1, 0.1, 0.0, rng=rng()) - image
    ratio = noise[0].var() / noise[1].var()
    assert ratio.item() == pytest.approx(32, rel=0.06)


def test_black_has_no_poisson_noise() -> None:
    assert poisson_noise(gray(0.0), rng=rng()).abs().max() == 0


def test_poisson_noise_is_of_the_rounded_image_but_added_to_the_image() -> None:
    image = gray(100.3 / 255)
    assert torch.equal(poisson_noise(image, 0.0, 0.0, rng=rng()), image)
    noise = (poisson_noise(image, 0.1, 0.1, rng=rng()) - image) / 0.1
    assert torch.allclose((noise + 100 / 255), (noise + 100 / 255).round(), atol=1e-5)  # one level, one photon


@pytest.mark.parametrize("add", NODES)
def test_gray_noise_is_equal_in_the_channels_and_coloured_is_independent(add: Callable[..., Tensor]) -> None:
    image = torch.stack([torch.full((SIDE, SIDE), level) for level in (0.4, 0.5, 0.6)])[None].expand(4, 3, SIDE, SIDE)
    faint = {"sigma": 5.0, "scale": 0.03}  # far from black and white
    kinds = {gaussian_noise: ["sigma"], poisson_noise: ["scale"], random_noise: ["sigma", "scale"]}[add]
    options = {f"{kind}_{end}": faint[kind] for kind in kinds for end in ("min", "max")}
    same = add(image, gray_probability=1.0, rng=rng(), **options) - image
    other = add(image, gray_probability=0.0, rng=rng(), **options) - image
    for channel in (1, 2):
        assert torch.allclose(same[:, channel], same[:, 0], atol=1e-6)
        correlation = torch.corrcoef(torch.stack([other[:, 0].flatten(), other[:, channel].flatten()]))[0, 1]
        assert correlation.abs() < 4 / (4 * PIXELS) ** 0.5
    assert same.std() > 1e-3


def test_gray_poisson_noise_is_that_of_the_luma() -> None:
    """Of a pure green image: luma 0.587, one level and so one photon; in colour two levels and two photons."""
    image = gray(0.0)
    image[:, 1] = 1.0
    noise = poisson_noise(image, 0.1, 0.1, 1.0, rng=rng())[:, 0] / 0.1  # red: only what is above 0 is left
    luma = round(0.587 * 255) / 255
    assert torch.allclose(noise[noise > 0] + luma, (noise[noise > 0] + luma).round(), atol=1e-4)
    assert (noise > 0).double().mean().item() == pytest.approx(1 - stats.poisson(luma).pmf(0), abs=4 * 0.5 / SIDE)
    coloured = poisson_noise(image, 0.1, 0.1, 0.0, rng=rng())
    assert coloured[:, [0, 2]].abs().max() == 0


@pytest.mark.parametrize("add", [gaussian_noise, poisson_noise])
def test_shares_of_gray_noise_and_of_noise_are_as_asked(add: Callable[..., Tensor]) -> None:
    image = torch.full((400, 3, 8, 8), 0.5)
    noise = add(image, 0.5, 0.5, 0.4, 0.7, rng=rng()) - image
    noisy = noise.flatten(1).ne(0).any(1)
    assert torch.equal((noise + image)[~noisy], image[~noisy])
    assert noisy.double().mean().item() == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / 400) ** 0.5)
    without_colour = (noise[noisy, 0] == noise[noisy, 1]).flatten(1).all(1).double().mean().item()
    assert without_colour == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / int(noisy.sum())) ** 0.5)


def test_gaussian_or_poisson_is_chosen_for_each_image() -> None:
    """Gaussian noise of no strength changes nothing, so what changes has Poisson noise; and the other way round."""
    image = torch.full((400, 3, 8, 8), 0.5)
    poisson = (random_noise(image, 0.3, 0.0, 0.0, 1.0, 1.0, rng=rng()) != image).flatten(1).any(1)
    gaussian = (random_noise(image, 0.3, 9.0, 9.0, 0.0, 0.0, rng=rng()) != image).flatten(1).any(1)
    assert torch.equal(gaussian, ~poisson)
    assert gaussian.double().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 400) ** 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_may_have_one_kind_of_noise(share: float) -> None:
    image = gray(0.5, 2)
    noisy = random_noise(image, share, 5.0, 5.0, 0.0, 0.0, rng=rng())
    assert (noisy - image).std().item() == pytest.approx(share * 5 / 255, rel=0.02)


@pytest.mark.parametrize("add", NODES)
@given(st.integers(0, 999))
def test_noise_stays_in_range(add: Callable[..., Tensor], seed: int) -> None:
    image = torch.rand(2, 3, 7, 9, generator=rng(seed)).round()
    noisy = add(image, rng=rng(seed))
    assert noisy.dtype == image.dtype
    assert noisy.shape == image.shape
    assert 0 <= noisy.min() <= noisy.max() <= 1


@pytest.mark.parametrize("add", NODES)
def test_noise_depends_on_its_generator_alone(add: Callable[..., Tensor]) -> None:
    image = gray(0.5, 2)
    before = image.clone()
    first = add(image, rng=rng(1))
    torch.manual_seed(7)
    assert torch.equal(first, add(image, rng=rng(1)))
    assert not torch.equal(first, add(image, rng=rng(2)))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(image, before)


def test_gaussian_noise_passes_the_gradient() -> None:
    image = gray(0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian_noise(image, 1.0, 2.0, rng=rng()).sum(), image)
    assert torch.equal(gradient, torch.ones_like(image))


def test_a_range_that_is_turned_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma_min is 3.0 and sigma_max 2.0"):
        gaussian_noise(gray(0.5), 3.0, 2.0)
    with pytest.raises(ValueError, match=r"scale_min is 3.0 and scale_max 2.0"):
        poisson_noise(gray(0.5), 3.0, 2.0)
