"""Random resizing against Pillow's filters and hand-made sums, and the laws of a resize."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL.Image import Resampling
from torch import Tensor

from sr_nodes.resize import random_resize, resize_to_scale


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=rng(seed))


def by_pillow(image: Tensor, height: int, width: int, filter_: Resampling) -> Tensor:
    """Pillow's resize of each plane, in floating point."""
    planes = [PIL.Image.fromarray(plane.numpy()).resize((width, height), filter_) for plane in image.flatten(0, 1)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in planes])).view(*image.shape[:2], height, width).clamp(0, 1)


def quarter_aliased(image: Tensor, weights: list[float]) -> Tensor:
    """Every fourth sample, at the middle of its block, by four taps a side."""
    taps = torch.tensor(weights)
    for dim in (-1, -2):
        image = (image.unfold(dim, 4, 4) * taps).sum(-1)
    return image.clamp(0, 1)


def nearest(made: Tensor, references: dict[str, Tensor]) -> str:
    [name] = [name for name, reference in references.items() if torch.allclose(made, reference, atol=2e-5)]
    return name


def widened(image: Tensor) -> dict[str, Tensor]:
    height, width = (side // 4 for side in image.shape[-2:])
    return {
        "area": image.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)),
        "bilinear": by_pillow(image, height, width, Resampling.BILINEAR),
        "bicubic": by_pillow(image, height, width, Resampling.BICUBIC),
    }


def aliased(image: Tensor) -> dict[str, Tensor]:
    return {
        "area": widened(image)["area"],
        "bilinear": quarter_aliased(image, [0, 0.5, 0.5, 0]),
        "bicubic": quarter_aliased(image, [-0.09375, 0.59375, 0.59375, -0.09375]),
    }


@pytest.mark.parametrize(("antialias", "references"), [(True, widened), (False, aliased)])
def test_a_quarter_is_by_one_of_three_filters_equally_often(
    antialias: bool, references: Callable[[Tensor], dict[str, Tensor]]
) -> None:
    image = noise(1, 3, 24, 20)
    expected = references(image)
    inner = {name: reference[..., 1:-1, 1:-1] for name, reference in expected.items()}
    seen = Counter(
        nearest(resize_to_scale(image, image, 4, antialias, rng(seed))[..., 1:-1, 1:-1], inner) for seed in range(90)
    )
    assert set(seen) == {"area", "bilinear", "bicubic"}
    assert min(seen.values()) > 30 - 4 * (90 * 2 / 9) ** 0.5


def test_an_enlargement_is_never_antialiased() -> None:
    """Where nothing shrinks, antialias would give bicubic another kernel."""
    image, hr = noise(1, 3, 8, 8), torch.zeros(1, 3, 32, 32)
    for seed in range(6):
        with_, without = (resize_to_scale(image, hr, 2, antialias, rng(seed)) for antialias in (True, False))
        assert torch.equal(with_, without)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.booleans(), st.integers(0, 999))
def test_a_constant_stays(height: int, width: int, level: float, antialias: bool, seed: int) -> None:
    image = torch.full((2, 3, height, width), level)
    made = random_resize(image, up=0.5, down=0.5, antialias=antialias, rng=rng(seed))
    assert torch.allclose(made, torch.full_like(made, level), atol=1e-5)
    fitted = resize_to_scale(image, torch.zeros(2, 3, 24, 36), antialias=antialias, rng=rng(seed))
    assert torch.allclose(fitted, torch.full((2, 3, 6, 9), level), atol=1e-5)


@given(st.booleans(), st.integers(0, 999))
def test_what_rings_stays_in_range(antialias: bool, seed: int) -> None:
    image = noise(1, 3, 19, 23, seed=seed).round()
    made = random_resize(image, 0.5, 0.5, antialias=antialias, rng=rng(seed))
    assert 0 <= made.min() <= made.max() <= 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 999))
def test_both_sides_have_one_factor_within_its_range(height: int, width: int, seed: int) -> None:
    image = torch.zeros(1, 3, height, width)
    for (up, down), least, greatest in (((1.0, 0.0), 1.0, 1.5), ((0.0, 1.0), 0.15, 1.0)):
        sides = random_resize(image, up, down, rng=rng(seed)).shape[-2:]
        # floor(f n) = m holds for the f of [m / n, (m + 1) / n); a side of 1 may have been less than a pixel.
        low = max(made / side if made > 1 else 0.0 for made, side in zip(sides, (height, width), strict=True))
        high = min((made + 1) / side for made, side in zip(sides, (height, width), strict=True))
        assert max(low, least) < min(high, greatest + 1e-9)


def test_up_and_down_and_keep_are_as_frequent_as_asked() -> None:
    image = torch.zeros(1, 3, 1000, 1)
    heights = [random_resize(image, rng=rng(seed)).shape[2] for seed in range(400)]
    shares = {"up": 0.2, "down": 0.7, "keep": 0.1}
    seen = Counter("keep" if h == 1000 else "up" if h > 1000 else "down" for h in heights)
    for way, share in shares.items():
        assert seen[way] / 400 == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)
    assert 150 <= min(heights) < 180
    assert 1480 < max(heights) <= 1500


def test_an_image_that_keeps_its_size_keeps_its_bits() -> None:
    image = noise(2, 3, 12, 12)
    for seed in range(5):
        assert torch.equal(random_resize(image, 0.0, 0.0, rng=rng(seed)), image)


def test_the_factor_is_of_the_size_of_like_over_the_divisor() -> None:
    image, hr = noise(1, 3, 10, 10), torch.zeros(1, 3, 96, 49)
    assert random_resize(image, 0.0, 0.0, like=hr, divisor=4, rng=rng()).shape == (1, 3, 24, 12)
    assert random_resize(image, 0.0, 0.0, like=hr, divisor=7, rng=rng()).shape == (1, 3, 13, 7)
    sizes = {random_resize(image, 0.3, 0.4, 0.5, 1.2, hr, 4, rng=rng(seed)).shape[2] for seed in range(60)}
    assert min(sizes) in (12, 13)
    assert max(sizes) in (27, 28)


def test_a_resize_depends_on_its_generator_alone() -> None:
    image = noise(2, 3, 30, 30)
    first = random_resize(image, rng=rng(1))
    torch.manual_seed(7)
    assert torch.equal(first, random_resize(image, rng=rng(1)))
    assert len({random_resize(image, rng=rng(seed)).shape for seed in range(10)}) > 3


def test_a_resize_has_the_gradient_of_a_linear_map() -> None:
    image = (noise(1, 3, 8, 8) * 0.5 + 0.25).double().requires_grad_()
    for seed in range(4):
        assert torch.autograd.gradcheck(lambda x, s=seed: resize_to_scale(x, x, rng=rng(s)), image)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"up is 0.6 and down 0.5, together more than 1"):
        random_resize(noise(1, 3, 8, 8), 0.6, 0.5)
    with pytest.raises(ValueError, match="hr is 10x8, no multiple of the scale 4"):
        resize_to_scale(noise(1, 3, 8, 8), noise(1, 3, 8, 10))
