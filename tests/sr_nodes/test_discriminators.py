"""The discriminator: the paper's size and layers, every crop, and the modes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.discriminators import SRGANDiscriminator, discriminate, discriminator


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=rng(1))


def small(crop: int = 32) -> SRGANDiscriminator:
    made = discriminator(crop, channels=4, dense=8, rng=rng())
    assert isinstance(made, SRGANDiscriminator)
    return made


def test_number_of_parameters_is_the_papers() -> None:
    count = sum(p.numel() for p in discriminator().parameters())
    assert count == 23_563_649
    assert round(count / 1e6, 2) == 23.56


def test_channels_and_strides_are_figure_4s() -> None:
    convolutions = [m for m in SRGANDiscriminator(16).features if isinstance(m, nn.Conv2d)]
    layers = [(m.out_channels, m.stride[0], m.kernel_size[0]) for m in convolutions]
    assert layers == [(c, s, 3) for c in (64, 128, 256, 512) for s in (1, 2)]
    assert [m.bias is not None for m in convolutions] == [True] + [False] * 7


@pytest.mark.parametrize("crop", [16, 17, 31, 32, 33, 48, 49, 64, 65, 95, 96, 97, 100])
def test_every_crop_gives_one_logit_an_image(crop: int) -> None:
    model = small(crop)
    sides = []
    x = noise(2, 3, crop, crop)
    for layer in model.features:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides[-1] == math.ceil(crop / 16)
    assert discriminate(model, noise(2, 3, crop, crop)).shape == (2, 1)


def test_the_image_is_mapped_to_the_papers_range_and_no_sigmoid_follows() -> None:
    model = small().double()
    image = noise(3, 3, 32, 32).double()
    discriminate(model, image, training=True)
    weights = model.state_dict()
    x = F.leaky_relu(F.conv2d(2 * image - 1, weights["features.0.weight"], weights["features.0.bias"], padding=1), 0.2)
    for i in range(2, 23, 3):
        x = F.conv2d(x, weights[f"features.{i}.weight"], stride=2 if i % 2 == 0 else 1, padding=1)
        mean, var, gain, shift = (
            weights[f"features.{i + 1}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.leaky_relu((x - mean) / (var + 1e-5).sqrt() * gain + shift, 0.2)
    x = F.leaky_relu(x.flatten(1) @ weights["classifier.1.weight"].T + weights["classifier.1.bias"], 0.2)
    logits = x @ weights["classifier.3.weight"].T + weights["classifier.3.bias"]
    assert torch.allclose(discriminate(model, image), logits, atol=1e-12)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(
        ValueError, match="the image is 32 x 48, and this discriminator takes 32 x 32; give the discrim"
    ):
        discriminate(small(), noise(1, 3, 32, 48))
    with pytest.raises(ValueError, match="crop is 15; four halvings need at least 16"):
        discriminator(15)


def test_weights_depend_on_the_generator_of_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    first, second = small().state_dict(), small().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_for_the_call(training: bool) -> None:
    model = small().train(not training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    discriminate(model, noise(2, 3, 32, 32), training=training)
    assert all(m.training is not training for m in model.modules())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved == ({name for name in before if "running" in name or "num_batches" in name} if training else set())


def test_evaluation_judges_each_image_by_itself() -> None:
    model, images = small(), noise(3, 3, 32, 32)
    discriminate(model, images, training=True)
    alone = torch.cat([discriminate(model, image[None]) for image in images])
    assert torch.allclose(discriminate(model, images), alone, atol=1e-5)


def test_gradients_reach_image_and_weights() -> None:
    model, image = small(), noise(2, 3, 32, 32).requires_grad_()
    torch.autograd.backward(discriminate(model, image, training=True).sum())
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in model.parameters())
