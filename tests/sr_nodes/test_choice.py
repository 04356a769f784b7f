"""The choice between two images: whole, as frequent as it says, and by its own generator."""

from __future__ import annotations

import pytest
import torch

from sr_nodes.choice import random_choice


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_one_of_both_is_given_as_often_as_it_says(probability: float) -> None:
    first, second = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 5, 6)
    drawn, count = rng(), 2000
    given = [random_choice(first, second, probability, drawn) for _ in range(count)]
    assert all(one is first or one is second for one in given)
    share = sum(one is first for one in given) / count
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / count) ** 0.5)


def test_a_choice_depends_on_its_generator_alone() -> None:
    first, second = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    given = [random_choice(first, second, rng=rng(seed)) for seed in range(20)]
    torch.manual_seed(7)
    assert all(random_choice(first, second, rng=rng(seed)) is one for seed, one in enumerate(given))
    assert len({id(one) for one in given}) == 2


def test_the_gradient_goes_to_the_one_that_is_given() -> None:
    first, second = (torch.rand(1, 3, 2, 2).requires_grad_() for _ in range(2))
    given = random_choice(first, second, 0.0)
    assert given is second
    (gradient,) = torch.autograd.grad(given.sum(), second)
    assert torch.equal(gradient, torch.ones_like(second))
