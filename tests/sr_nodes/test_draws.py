"""The draws of the degradations: their range, their frequency, and that they are the generator's alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_nodes.draws import chance, check_range, choice, generator_on, per_image, uniform

COUNT = 20_000


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.floats(-100, 100), st.floats(0, 100), st.integers(0, 9))
def test_uniform_is_in_its_range(least: float, width: float, seed: int) -> None:
    drawn = uniform(50, least, least + width, rng(seed))
    assert drawn.dtype == torch.float64
    assert ((drawn >= least) & (drawn <= least + width)).all()


def test_uniform_has_the_moments_of_a_uniform_number() -> None:
    drawn = uniform(COUNT, 2.0, 8.0, rng())
    assert drawn.mean().item() == pytest.approx(5, abs=4 * (3 / COUNT) ** 0.5)
    assert drawn.var().item() == pytest.approx(3, rel=0.04)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_chance_is_as_frequent_as_it_says(probability: float) -> None:
    share = chance(COUNT, probability, rng()).double().mean().item()
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / COUNT) ** 0.5)


def test_choice_is_as_frequent_as_its_shares() -> None:
    counted = torch.bincount(choice(COUNT, [3.0, 0.0, 1.0], rng()), minlength=3).double() / COUNT
    assert counted[1] == 0
    assert counted[0].item() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / COUNT) ** 0.5)


def test_draws_move_no_generator_but_their_own() -> None:
    before = torch.get_rng_state()
    first, second, again = (uniform(3, 0, 1, rng(seed)) for seed in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_per_image_takes_the_images_dtype_but_for_booleans() -> None:
    image = torch.zeros(2, 3, 4, 4)
    assert per_image(torch.tensor([1.0, 2.0], dtype=torch.float64), image).dtype == torch.float32
    assert per_image(torch.tensor([True, False]), image).dtype == torch.bool
    assert per_image(torch.tensor([1, 2]), image).shape == (2, 1, 1, 1)


def test_a_range_that_is_turned_round_is_refused() -> None:
    check_range("sigma", 2.0, 2.0)
    with pytest.raises(ValueError, match=r"sigma_min is 3.0 and sigma_max 2.0; give sigma_min the smaller number"):
        check_range("sigma", 3.0, 2.0)


def test_a_generator_of_a_device_is_seeded_by_the_nodes_own() -> None:
    def numbers(seed: int) -> torch.Tensor:
        own = rng(seed)
        made = [generator_on(torch.device("cpu"), own) for _ in range(2)]
        return torch.stack([torch.rand(5, generator=generator) for generator in made])

    before = torch.get_rng_state()
    first = numbers(1)
    assert torch.equal(first, numbers(1))
    assert not torch.equal(first, numbers(2))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert generator_on(torch.device("cpu"), None) is None


def test_a_draw_by_the_image_does_not_depend_on_those_by_the_pixel() -> None:
    """So that a device whose noise differs has the same recipe: one number is taken, however many it gives."""
    after = []
    for count in (1, 1000):
        own = rng()
        torch.rand(count, generator=generator_on(torch.device("cpu"), own))
        after.append(uniform(4, 0, 1, own))
    assert torch.equal(*after)
