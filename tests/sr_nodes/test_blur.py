"""Blur kernels against scipy and their own formulas in float64, and the laws of filters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, special, stats
from torch import Tensor

from sr_nodes.blur import (
    filter_each,
    gaussian_kernel,
    generalised_gaussian_kernel,
    plateau_kernel,
    random_blur,
    sinc_filter,
    sinc_kernel,
)
from sr_pipeline.node import node_type

Array = NDArray[np.float64]
KINDS = [
    "isotropic",
    "anisotropic",
    "generalised_isotropic",
    "generalised_anisotropic",
    "plateau_isotropic",
    "plateau_anisotropic",
]

odd = st.integers(1, 25).map(lambda n: 2 * n + 1)
sigmas = st.floats(0.2, 10)
angles = st.floats(-4, 4)
betas = st.floats(0.5, 4)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=rng(seed))


def only(kind: str) -> dict[str, Any]:
    return {name: float(name == kind) for name in KINDS}


def impulse(blur: Callable[[Tensor], Tensor], count: int, size: int = 41) -> Tensor:
    """The kernel that each of ``count`` images was filtered by, [count, size, size]: its answer to one bright pixel."""
    image = torch.full((count, 3, size, size), 0.5, dtype=torch.float64)
    image[..., size // 2, size // 2] += 0.25
    return (blur(image)[:, 0] - 0.5) / 0.25


def places(size: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:size, :size].astype(np.float64) - size // 2
    return x, y


def q(size: int, sigma_x: float, sigma_y: float, theta: float) -> Array:
    """x^T S^-1 x by way of the matrix S itself."""
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    points = np.stack(places(size), axis=-1)
    result: Array = np.einsum("hwi,ij,hwj->hw", points, inverse, points)
    return result


def assert_is(kernel: Tensor, reference: Array, atol: float = 1e-10) -> None:
    assert kernel.dtype == torch.float64
    assert np.allclose(kernel.numpy(), reference / reference.sum(), rtol=0, atol=atol)


@given(odd, sigmas, sigmas, angles)
def test_the_gaussian_is_the_normal_density(size: int, sigma_x: float, sigma_y: float, theta: float) -> None:
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    normal = stats.multivariate_normal(cov=turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    assert_is(gaussian_kernel(size, sigma_x, sigma_y, theta), normal.pdf(np.stack(places(size), axis=-1)))


@given(odd, sigmas)
def test_the_round_gaussian_is_scipys_filter(size: int, sigma: float) -> None:
    point = np.zeros((size, size))
    point[size // 2, size // 2] = 1
    assert_is(
        gaussian_kernel(size, sigma, sigma), ndimage.gaussian_filter(point, sigma, radius=size // 2, mode="constant")
    )


@given(odd, sigmas, sigmas, angles, betas)
def test_generalised_and_plateau_are_their_formulas(
    size: int, sigma_x: float, sigma_y: float, theta: float, beta: float
) -> None:
    power = np.maximum(q(size, sigma_x, sigma_y, theta), 0) ** beta
    assert_is(generalised_gaussian_kernel(size, sigma_x, sigma_y, theta, beta), np.exp(-power / 2))
    assert_is(plateau_kernel(size, sigma_x, sigma_y, theta, beta), 1 / (1 + power))


@given(odd, sigmas, sigmas, angles, betas)
def test_a_kernel_is_the_same_after_half_a_turn(
    size: int, sigma_x: float, sigma_y: float, theta: float, beta: float
) -> None:
    for make in (generalised_gaussian_kernel, plateau_kernel):
        kernel = make(size, sigma_x, sigma_y, theta, beta)
        assert kernel.sum().item() == pytest.approx(1)
        assert (kernel >= 0).all()
        assert torch.allclose(kernel, make(size, sigma_x, sigma_y, theta + math.pi, beta), atol=1e-10)
        assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-12)
        across = make(size, sigma_y, sigma_x, theta + math.pi / 2, beta)
        assert torch.allclose(kernel, across, atol=1e-10)


def test_the_first_deviation_lies_along_theta() -> None:
    x, y = places(31)
    kernel = gaussian_kernel(31, 3.0, 1.0, math.pi / 6).numpy()
    along = x * math.cos(math.pi / 6) + y * math.sin(math.pi / 6)
    assert (kernel * along**2).sum() == pytest.approx(9, rel=1e-3)
    assert (kernel * (x**2 + y**2 - along**2)).sum() == pytest.approx(1, rel=1e-3)


@given(odd, st.floats(0.2, math.pi))
def test_the_sinc_is_scipys_bessel_function(size: int, cutoff: float) -> None:
    x, y = places(size)
    r = np.hypot(x, y)
    r[size // 2, size // 2] = 1e-6  # J1(z) / z to within z^2 / 8 of its limit
    kernel = sinc_kernel(size, cutoff)
    # torch's J1 is off by up to 3e-7, in float64 too: just above 5, where its two series meet.
    assert_is(kernel, cutoff * special.j1(cutoff * r) / (2 * math.pi * r), atol=1e-6)
    assert kernel.sum().item() == pytest.approx(1)


def test_the_sinc_passes_what_is_below_its_cutoff_and_stops_what_is_above() -> None:
    kernel = sinc_kernel(51, math.pi / 2).numpy()
    x, _ = places(51)

    def gain(frequency: float) -> float:
        return float((kernel * np.cos(frequency * x)).sum())

    assert gain(0.6 * math.pi / 2) == pytest.approx(1, abs=0.05)
    assert gain(1.4 * math.pi / 2) == pytest.approx(0, abs=0.05)


def test_kernels_of_a_batch_are_those_of_its_members() -> None:
    numbers = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    for make in (gaussian_kernel, generalised_gaussian_kernel, plateau_kernel):
        batch = make(9, numbers, 2 * numbers, numbers)
        assert batch.shape == (3, 9, 9)
        for kernel, number in zip(batch, numbers.tolist(), strict=True):
            assert torch.allclose(kernel, make(9, number, 2 * number, number), atol=1e-15)
    assert torch.allclose(sinc_kernel(9, numbers)[1], sinc_kernel(9, 1.5), atol=1e-15)


@pytest.mark.parametrize(("height", "width"), [(20, 31), (4, 30), (2, 3), (1, 1)])
def test_each_image_is_filtered_by_its_own_kernel_as_scipy_does(height: int, width: int) -> None:
    image = noise(2, 3, height, width)
    kernels = torch.stack([gaussian_kernel(15, 2.0, 0.7, 0.4), plateau_kernel(15, 1.0, 4.0, -1.0, 1.5)])
    filtered = filter_each(image, kernels)
    assert filtered.dtype == torch.float32
    for one, kernel, result in zip(image.double(), kernels, filtered, strict=True):
        expected: Any = ndimage.correlate(one.numpy(), kernel.numpy()[None], mode="mirror")
        assert np.allclose(result.numpy(), expected, atol=1e-6)


def test_a_filter_has_the_gradient_of_a_linear_map() -> None:
    image = (noise(1, 3, 5, 6) * 0.5 + 0.25).double().requires_grad_()
    kernels = gaussian_kernel(5, 1.0, 2.0, 0.3)[None]
    assert torch.autograd.gradcheck(lambda x: filter_each(x, kernels), image)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 999))
def test_a_constant_stays(height: int, width: int, level: float, seed: int) -> None:
    image = torch.full((3, 3, height, width), level)
    for made in (random_blur(image, sinc_probability=0.5, rng=rng(seed)), sinc_filter(image, rng=rng(seed))):
        assert torch.allclose(made, image, atol=3e-6)


@given(st.integers(0, 999))
def test_what_rings_stays_in_range(seed: int) -> None:
    image = noise(2, 3, 24, 24, seed=seed).round()
    for made in (random_blur(image, sinc_probability=1.0, rng=rng(seed)), sinc_filter(image, rng=rng(seed))):
        assert made.shape == image.shape
        assert 0 <= made.min() <= made.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_kernel_is_what_its_name_says(kind: str) -> None:
    kernels = impulse(
        lambda x: random_blur(x, sigma_min=1.0, sigma_max=3.0, sinc_probability=0.0, rng=rng(), **only(kind)), 12
    )
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(12).double(), atol=1e-6)
    assert torch.allclose(kernels, kernels.flip(1, 2), atol=1e-9)
    turned = (kernels - kernels.rot90(1, (1, 2))).abs().amax((1, 2)) / kernels.amax((1, 2))
    assert (turned > 0.01).sum() > 9 if "anisotropic" in kind else (turned < 1e-7).all()
    assert len({round(kernel.max().item(), 5) for kernel in kernels}) > 9


def test_a_blur_of_one_width_is_that_gaussian() -> None:
    def blur(image: Tensor) -> Tensor:
        return random_blur(image, 5, 1.5, 1.5, sinc_probability=0.0, rng=rng(), **only("isotropic"))

    for kernel in impulse(blur, 4, size=11):
        assert torch.allclose(kernel[3:-3, 3:-3], gaussian_kernel(5, 1.5, 1.5), atol=1e-12)


@pytest.mark.parametrize(("kind", "least", "greatest"), [("generalised", 0.5, 4), ("plateau", 1, 2)])
def test_half_of_the_exponents_are_below_one(kind: str, least: float, greatest: float) -> None:
    """The exponent is told from the value beside the middle, where q is 1 / 4."""

    def blur(image: Tensor) -> Tensor:
        return random_blur(image, 5, 2.0, 2.0, sinc_probability=0.0, rng=rng(), **only(f"{kind}_isotropic"))

    kernels = impulse(blur, 200, size=9)
    near = kernels[:, 4, 5] / kernels[:, 4, 4]
    power = -2 * near.log() if kind == "generalised" else 1 / near - 1
    beta = power.log() / math.log(0.25)
    assert least - 1e-6 < beta.min() < least + 0.1
    assert greatest - 0.1 < beta.max() < greatest + 1e-6
    assert (beta < 1 + 1e-6).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 200**0.5)


def test_the_sides_of_kernels_are_odd_and_from_seven_to_the_largest() -> None:
    kernels = impulse(
        lambda x: random_blur(
            x, 13, sigma_min=9.0, sigma_max=9.0, sinc_probability=0.0, rng=rng(), **only("plateau_isotropic")
        ),
        40,
        size=21,
    )
    sides = [int((kernel.abs().amax(0) > 1e-5).sum()) for kernel in kernels]
    assert set(sides) == {7, 9, 11, 13}


def test_sinc_filters_are_as_frequent_as_asked() -> None:
    kernels = impulse(lambda x: random_blur(x, 9, 1.0, 3.0, sinc_probability=0.25, rng=rng()), 300, size=13)
    share = (kernels.amin((1, 2)) < -1e-4).double().mean().item()
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 300) ** 0.5)


@pytest.mark.parametrize("blur", [random_blur, sinc_filter])
def test_as_many_images_as_asked_are_blurred_and_the_others_keep_their_bits(blur: Callable[..., Tensor]) -> None:
    image = noise(200, 3, 6, 6)
    assert torch.equal(blur(image, probability=0.0, rng=rng()), image)
    changed = (blur(image, probability=0.3, rng=rng()) != image).flatten(1).any(1)
    assert changed.double().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 200) ** 0.5)


@pytest.mark.parametrize("blur", [random_blur, sinc_filter])
def test_a_blur_depends_on_its_generator_alone(blur: Callable[..., Tensor]) -> None:
    image = noise(1, 3, 16, 16).expand(4, 3, 16, 16)
    torch.manual_seed(0)
    first = blur(image, probability=1.0, rng=rng(1))
    torch.manual_seed(1)
    assert torch.equal(first, blur(image, probability=1.0, rng=rng(1)))
    assert not torch.equal(first, blur(image, probability=1.0, rng=rng(2)))
    assert not torch.equal(first[0], first[1])


def test_what_cannot_be_drawn_is_refused() -> None:
    image = noise(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"sigma_min is 2.0 and sigma_max 1.0"):
        random_blur(image, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="six shares of kinds of kernel are all 0"):
        random_blur(image, **only("none of them"))


@pytest.mark.parametrize("blur", [random_blur, sinc_filter])
def test_an_even_kernel_is_refused_when_the_graph_is_read(blur: Callable[..., Tensor]) -> None:
    size = node_type(blur).inputs["kernel_size"].type
    assert size.read("5") == 5
    with pytest.raises(ValueError, match="write an odd number: a kernel has a middle"):
        size.read("6")
