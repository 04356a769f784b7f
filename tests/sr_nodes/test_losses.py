"""Losses: numbers worked out by hand, the paper's scale, laws, and gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.losses import (
    Adversary,
    Reduction,
    adversarial_loss,
    charbonnier_loss,
    discriminator_loss,
    l1_loss,
    mse_loss,
    phase_loss,
    relativistic_discriminator_loss,
    relativistic_loss,
    total_variation_loss,
    weighted_sum,
)
from sr_pipeline.node import node_type

KINDS: list[Adversary] = ["vanilla", "least_squares", "hinge"]
Pixel = Callable[[Tensor, Tensor], Tensor]
Adversarial = Callable[..., Tensor]
RELATIVISTIC: list[Adversarial] = [relativistic_loss, relativistic_discriminator_loss]
PIXEL: list[Pixel] = [mse_loss, l1_loss, charbonnier_loss, lambda sr, hr: mse_loss(sr, hr, "sum")]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(seed: int, count: int = 5) -> Tensor:
    return 6 * noise(count, 1, seed=seed) - 3


def of_one_input(kind: Adversary, other: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """The adversarial losses, each as a function of one logits."""
    return [
        lambda x: adversarial_loss(x, kind),
        lambda x: discriminator_loss(x, other, kind),
        lambda x: discriminator_loss(other, x, kind),
    ]


def learned(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The gradient of a loss at a start."""
    x = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    return gradient


def test_pixel_losses_of_a_known_difference() -> None:
    hr = noise(2, 3, 4, 5)
    assert mse_loss(hr + 0.1, hr).item() == pytest.approx(0.01)
    assert mse_loss(hr + 0.1, hr, "sum").item() == pytest.approx(0.03 * 4 * 5)
    assert l1_loss(hr - 0.1, hr).item() == pytest.approx(0.1)
    assert charbonnier_loss(hr + 0.003, hr, eps=0.004).item() == pytest.approx(0.005)


def test_mse_is_numpys() -> None:
    sr, hr = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    assert mse_loss(sr, hr).item() == pytest.approx(np.mean((sr.numpy() - hr.numpy()) ** 2))
    assert mse_loss(sr, hr, "sum").item() == pytest.approx(np.sum((sr.numpy() - hr.numpy()) ** 2) / 2)
    assert l1_loss(sr, hr).item() == pytest.approx(np.mean(np.abs(sr.numpy() - hr.numpy())))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_papers_mse_is_four_times_ours(reduction: Reduction) -> None:
    sr, hr = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    paper = mse_loss(2 * sr - 1, 2 * hr - 1, reduction)
    assert mse_loss(sr, hr, reduction, weight=4.0).item() == pytest.approx(paper.item())


@pytest.mark.parametrize("loss", PIXEL)
def test_pixel_losses_are_least_and_flat_at_equal_images(loss: Pixel) -> None:
    hr = noise(2, 3, 4, 4)
    assert loss(hr, hr).item() == pytest.approx(1e-3 if loss is charbonnier_loss else 0, abs=1e-15)
    assert torch.equal(learned(lambda sr: loss(sr, hr), hr), torch.zeros_like(hr))


@pytest.mark.parametrize("loss", PIXEL)
def test_pixel_losses_are_symmetric_positive_and_a_mean_over_the_batch(loss: Pixel) -> None:
    sr, hr = noise(3, 3, 4, 4), noise(3, 3, 4, 4, seed=1)
    value = loss(sr, hr)
    assert value.shape == ()
    assert value.item() > loss(hr, hr).item()
    assert value.item() == pytest.approx(loss(hr, sr).item())
    assert value.item() == pytest.approx(loss(torch.cat([sr, sr]), torch.cat([hr, hr])).item())
    assert value.item() == pytest.approx(np.mean([loss(sr[i : i + 1], hr[i : i + 1]).item() for i in range(3)]))


@pytest.mark.parametrize("loss", PIXEL)
def test_pixel_losses_have_the_gradient_of_finite_differences(loss: Pixel) -> None:
    hr = noise(2, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda sr: loss(sr, hr), noise(2, 3, 2, 2).requires_grad_())


@pytest.mark.parametrize("loss", PIXEL)
def test_images_of_different_shapes_are_refused_though_torch_could_broadcast_them(loss: Pixel) -> None:
    with pytest.raises(ValueError, match=r"sr is \[1, 3, 4, 4\] and hr is \[2, 3, 4, 4\]; degradation and generator"):
        loss(noise(1, 3, 4, 4), noise(2, 3, 4, 4))


def test_total_variation_of_a_ramp_and_of_an_edge() -> None:
    ramp = 0.1 * torch.arange(8, dtype=torch.float64).expand(2, 3, 5, 8)
    assert total_variation_loss(ramp).item() == pytest.approx(0.1 * math.sqrt(3) * 7 / 8)
    assert total_variation_loss(ramp.mT).item() == pytest.approx(0.1 * math.sqrt(3) * 7 / 8)
    dot = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    dot[..., 1, 1] = 1  # itself (1, 1), from its left 1, from above 1
    assert total_variation_loss(dot).item() == pytest.approx((math.sqrt(2) + 2) / 16)


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1))
def test_total_variation_of_a_constant_is_nothing_and_teaches_nothing(level: float) -> None:
    flat = torch.full((1, 3, 4, 4), level)
    assert total_variation_loss(flat).item() == 0
    assert torch.equal(learned(total_variation_loss, flat), torch.zeros_like(flat))


def test_total_variation_is_blind_to_brightness_and_grows_with_contrast() -> None:
    image = noise(2, 3, 5, 6)
    value = total_variation_loss(image).item()
    assert total_variation_loss(image + 0.5).item() == pytest.approx(value)
    assert total_variation_loss(3 * image).item() == pytest.approx(3 * value)
    assert total_variation_loss(torch.cat([image, image])).item() == pytest.approx(value)
    assert torch.autograd.gradcheck(total_variation_loss, noise(1, 3, 3, 3).requires_grad_())


def test_total_variation_of_a_partly_flat_image_has_a_finite_gradient() -> None:
    image = noise(1, 3, 6, 6)
    image[..., :3] = 0.5
    gradient = learned(total_variation_loss, image)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [("vanilla", math.log(2), 2 * math.log(2)), ("least_squares", 1, 1), ("hinge", 0, 2)],
)
def test_adversarial_losses_of_an_undecided_discriminator(
    kind: Adversary, generator: float, discriminator: float
) -> None:
    undecided = torch.zeros(4, 1)
    assert adversarial_loss(undecided, kind).item() == pytest.approx(generator)
    assert discriminator_loss(undecided, undecided, kind).item() == pytest.approx(discriminator)


def test_vanilla_is_the_papers_formula_and_torchs_cross_entropy() -> None:
    real, fake = logits(0), logits(1, 7)
    d_real, d_fake = 1 / (1 + np.exp(-real.numpy())), 1 / (1 + np.exp(-fake.numpy()))
    assert adversarial_loss(fake).item() == pytest.approx(np.mean(-np.log(d_fake)))
    both = np.mean(-np.log(d_real)) + np.mean(-np.log(1 - d_fake))
    assert discriminator_loss(real, fake).item() == pytest.approx(both)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    assert discriminator_loss(real, fake).item() == pytest.approx(expected.item())


def test_least_squares_and_hinge_of_known_logits() -> None:
    real, fake = torch.tensor([[3.0], [0.5]]), torch.tensor([[-2.0], [1.0]])
    assert adversarial_loss(fake, "least_squares").item() == pytest.approx((9 + 0) / 2)
    assert discriminator_loss(real, fake, "least_squares").item() == pytest.approx((4 + 0.25) / 2 + (4 + 1) / 2)
    assert adversarial_loss(fake, "hinge").item() == pytest.approx(0.5)
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx((0 + 0.5) / 2 + (0 + 2) / 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_great_logits_give_finite_losses_and_gradients(kind: Adversary, size: float) -> None:
    great = torch.full((2, 1), size)
    for loss in of_one_input(kind, great):
        assert math.isfinite(loss(great).item())
        assert bool(learned(loss, great).isfinite().all())


def test_a_sure_discriminator_still_teaches_the_generator() -> None:
    assert learned(adversarial_loss, torch.full((1, 1), -1e4)).item() == -1


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_sides_pull_the_generators_logits_apart(kind: Adversary) -> None:
    fake = 0.5 * logits(0) / 3
    assert bool((learned(lambda x: adversarial_loss(x, kind), fake) < 0).all())
    falling = learned(lambda x: discriminator_loss(x, x.detach(), kind), fake)
    assert bool((falling < 0).all())
    rising = learned(lambda x: discriminator_loss(logits(1), x, kind), fake + 0.6)
    assert bool((rising > 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_gradients_are_those_of_finite_differences(kind: Adversary) -> None:
    real, fake = logits(0).requires_grad_(), logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: adversarial_loss(x, kind), fake)
    assert torch.autograd.gradcheck(lambda x, y: discriminator_loss(x, y, kind), (real, fake))


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_losses_are_means_over_the_batch_and_over_a_map(kind: Adversary) -> None:
    real, fake = logits(0, 8), logits(1, 8)
    for loss in of_one_input(kind, real):
        assert loss(fake).item() == pytest.approx(loss(torch.cat([fake, fake])).item())
        assert loss(fake).item() == pytest.approx(loss(fake.view(2, 1, 2, 2)).item())


@pytest.mark.parametrize(("kind", "value"), [("vanilla", 2 * math.log(2)), ("least_squares", 2), ("hinge", 2)])
def test_relativistic_losses_of_an_undecided_discriminator(kind: Adversary, value: float) -> None:
    """Equal logits, whatever they are."""
    for loss in RELATIVISTIC:
        assert loss(torch.full((4, 1), 7.0), torch.full((2, 1), 7.0), kind).item() == pytest.approx(value)


def test_relativistic_losses_are_esrgans_formulas() -> None:
    """D_Ra(a, b) = sigmoid(C(a) - E[C(b)]), and the equations of L_D^Ra and L_G^Ra, in numpy; and the public code's."""
    real, fake = logits(0), logits(1, 7)

    def d_ra(a: Tensor, b: Tensor) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(-(a.numpy() - b.numpy().mean()))))

    l_d = -np.mean(np.log(d_ra(real, fake))) - np.mean(np.log(1 - d_ra(fake, real)))
    l_g = -np.mean(np.log(1 - d_ra(real, fake))) - np.mean(np.log(d_ra(fake, real)))
    assert relativistic_discriminator_loss(real, fake).item() == pytest.approx(l_d)
    assert relativistic_loss(real, fake).item() == pytest.approx(l_g)
    bce, ones, zeros = F.binary_cross_entropy_with_logits, torch.ones_like, torch.zeros_like
    halved = (bce(real - fake.mean(), zeros(real)) + bce(fake - real.mean(), ones(fake))) / 2
    assert relativistic_loss(real, fake, weight=0.5).item() == pytest.approx(halved.item())


def test_relativistic_least_squares_and_hinge_of_known_logits() -> None:
    real, fake = torch.tensor([[3.0], [0.0]]), torch.tensor([[-2.0], [1.0]])  # means 1.5 and -0.5
    squares = ((3.5 - 1) ** 2 + (0.5 - 1) ** 2) / 2 + ((-3.5 + 1) ** 2 + (-0.5 + 1) ** 2) / 2
    assert relativistic_discriminator_loss(real, fake, "least_squares").item() == pytest.approx(squares)
    assert relativistic_discriminator_loss(real, fake, "hinge").item() == pytest.approx((0 + 0.5) / 2 + (0 + 0.5) / 2)
    assert relativistic_loss(real, fake, "hinge").item() == pytest.approx((4.5 + 1.5) / 2 + (4.5 + 1.5) / 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", RELATIVISTIC)
def test_relativistic_losses_see_differences_alone(loss: Adversarial, kind: Adversary) -> None:
    real, fake = logits(0), logits(1, 7)
    value = loss(real, fake, kind).item()
    assert loss(real + 5, fake + 5, kind).item() == pytest.approx(value)
    assert loss(torch.cat([real, real]), fake, kind).item() == pytest.approx(value)
    assert loss(real.view(1, 1, 5, 1), fake.view(7, 1, 1, 1), kind).item() == pytest.approx(value)
    teacher = real.clone().requires_grad_(), fake.clone().requires_grad_()
    pull = torch.autograd.grad(loss(*teacher, kind), teacher)
    assert sum(float(g.sum()) for g in pull) == pytest.approx(0)


@pytest.mark.parametrize("kind", KINDS)
def test_relativistic_losses_pull_the_two_sides_apart_and_mirror_each_other(kind: Adversary) -> None:
    real, fake = logits(0), logits(1, 5)
    assert relativistic_loss(real, fake, kind) == relativistic_discriminator_loss(fake, real, kind)
    near = 0.1 * real, 0.1 * fake  # where no hinge is flat
    assert bool((learned(lambda x: relativistic_loss(near[0], x, kind), near[1]) < 0).all())
    assert bool((learned(lambda x: relativistic_discriminator_loss(near[0], x, kind), near[1]) > 0).all())
    assert bool((learned(lambda x: relativistic_discriminator_loss(x, near[1], kind), near[0]) < 0).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", RELATIVISTIC)
def test_relativistic_gradients_are_those_of_finite_differences(loss: Adversarial, kind: Adversary) -> None:
    real, fake = logits(0).requires_grad_(), logits(1, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, kind), (real, fake))
    great = torch.tensor([[1e4], [-1e4]])
    assert math.isfinite(loss(great, -great, kind).item())
    assert bool(learned(lambda x: loss(great, x, kind), great).isfinite().all())


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-6, 1e6))
def test_a_weight_multiplies(weight: float) -> None:
    sr, hr, real, fake = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1), logits(0), logits(1)
    pairs = [
        *((loss(sr, hr, weight=weight), loss(sr, hr)) for loss in (mse_loss, l1_loss, charbonnier_loss)),
        (total_variation_loss(sr, weight), total_variation_loss(sr)),
        *((adversarial_loss(fake, kind, weight), adversarial_loss(fake, kind)) for kind in KINDS),
        *((discriminator_loss(real, fake, kind, weight), discriminator_loss(real, fake, kind)) for kind in KINDS),
        *((loss(real, fake, kind, weight), loss(real, fake, kind)) for loss in RELATIVISTIC for kind in KINDS),
    ]
    for weighted, plain in pairs:
        assert weighted.item() == pytest.approx(weight * plain.item())


def test_weighted_sum_is_the_sum_and_passes_each_gradient_on() -> None:
    losses = a, b, c, d = [torch.tensor(float(i), requires_grad=True) for i in (2, 3, 5, 7)]
    total = weighted_sum(a, b, c, d, weight_1=1, weight_2=0.1, weight_3=0, weight_4=0.01)
    assert total.item() == pytest.approx(2 + 0.3 + 0 + 0.07)
    gradients = torch.autograd.grad(total, losses)
    assert [g.item() for g in gradients] == pytest.approx([1, 0.1, 0, 0.01])


def test_weighted_sum_skips_what_is_not_wired() -> None:
    assert weighted_sum(torch.tensor(2.0), weight_1=0.5).item() == 1
    assert weighted_sum(torch.tensor(2.0), loss_4=torch.tensor(3.0), weight_3=9).item() == 5


def test_weights_of_a_graph_must_be_positive() -> None:
    with pytest.raises(ValueError, match="it should be greater than 0"):
        node_type(mse_loss).inputs["weight"].type.read("0")
    with pytest.raises(ValueError, match="it should be greater than or equal to 0"):
        node_type(weighted_sum).inputs["weight_2"].type.read("-1")
    assert node_type(weighted_sum).inputs["weight_2"].type.read("0") == 0


@pytest.mark.parametrize("period", [1, 2, 4])
def test_phases_see_a_shift_of_colours_as_it_is(period: int) -> None:
    hr = noise(2, 3, 8, 12)
    assert phase_loss(hr + 0.1, hr, period).item() == pytest.approx(0.1)
    assert phase_loss(hr - 0.1, hr, period, weight=3.0).item() == pytest.approx(0.3)


def test_phases_see_a_checkerboard_and_no_detail() -> None:
    hr = noise(1, 3, 16, 16)
    pattern = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(8, 8)
    assert phase_loss(hr + 0.1 * pattern, hr, 4).item() == pytest.approx(0.1)
    assert phase_loss(hr + 0.1 * pattern, hr, 2).item() == pytest.approx(0.1)
    assert phase_loss(hr + 0.1 * pattern, hr, 1).item() == pytest.approx(0, abs=1e-12)
    assert phase_loss(hr.roll((4, 8), (-2, -1)), hr, 4).item() == pytest.approx(0, abs=1e-12)
    one = torch.zeros_like(hr)
    one[..., 2::4, 3::4] = 0.16  # one place of sixteen
    assert phase_loss(hr + one, hr, 4).item() == pytest.approx(0.01)


def test_phases_of_each_image_and_channel_count_alone() -> None:
    """What one image has too much is not made up for by another."""
    hr, shift = noise(2, 3, 4, 4), torch.zeros(2, 3, 1, 1, dtype=torch.float64)
    shift[0, 0], shift[1, 2] = 0.3, -0.3
    assert phase_loss(hr + shift, hr).item() == pytest.approx(0.1)
    sr = (hr + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: phase_loss(image, hr), (sr,))


def test_phases_need_whole_blocks() -> None:
    with pytest.raises(ValueError, match=r"the images are 8 x 6; give sides that are multiples of the period 4"):
        phase_loss(noise(1, 3, 8, 6), noise(1, 3, 8, 6))
    with pytest.raises(ValueError, match="must have one scale"):
        phase_loss(noise(1, 3, 8, 8), noise(1, 3, 4, 4))
