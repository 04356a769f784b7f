"""Discriminators: the papers' sizes and layers, every size of image, the modes, and spectral norm's own state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.discriminators import (
    SRGANDiscriminator,
    UNetDiscriminator,
    discriminate,
    discriminator,
    patch_discriminator,
    unet_discriminator,
)
from sr_nodes.types import Discriminator


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


def small_unet(skip: bool = True) -> UNetDiscriminator:
    made = unet_discriminator(channels=4, skip=skip, rng=rng())
    assert isinstance(made, UNetDiscriminator)
    return made


def small_patch() -> Discriminator:
    return patch_discriminator(channels=4, rng=rng())


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


def test_number_of_parameters_of_the_unet_and_of_the_patch_discriminator() -> None:
    """Real-ESRGAN's code has 4,376,897; pix2pix's 70 x 70, which sees six channels, 3,072 more than ours."""
    assert sum(p.numel() for p in unet_discriminator().parameters()) == 4_376_897
    assert sum(p.numel() for p in patch_discriminator().parameters()) == 2_765_633 == 2_768_705 - 3 * 64 * 16


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (32, 32), (37, 50)])
def test_the_unet_judges_every_pixel_of_any_size(size: tuple[int, int]) -> None:
    for skip in (True, False):
        assert discriminate(small_unet(skip), noise(2, 3, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize("skip", [True, False])
def test_the_unet_is_its_definition(skip: bool) -> None:
    """Written out in float64, each weight divided by u W v of its own vectors."""
    model = small_unet(skip).double()
    state = model.state_dict()

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        matrix = state[f"{name}.parametrizations.weight.original"]
        u, v = (state[f"{name}.parametrizations.weight.0.{part}"] for part in ("_u", "_v"))
        return F.leaky_relu(F.conv2d(x, matrix / (u @ matrix.flatten(1) @ v), stride=stride, padding=1), 0.2)

    image = noise(2, 3, 24, 16).double()
    x0 = F.leaky_relu(F.conv2d(image, state["head.weight"], state["head.bias"], padding=1), 0.2)
    x1 = conv(x0, "down.0", 2)
    x2 = conv(x1, "down.1", 2)
    x = conv(x2, "down.2", 2)
    for name, before in (("up.0", x2), ("up.1", x1), ("up.2", x0)):
        x = conv(nn.Upsample(scale_factor=2, mode="bilinear")(x), name) + (before if skip else 0)
    x = conv(conv(x, "tail.0"), "tail.2")
    expected = F.conv2d(x, state["tail.4.weight"], state["tail.4.bias"], padding=1)
    assert torch.allclose(discriminate(model, image), expected, atol=1e-12)


def test_training_passes_bring_spectral_norms_to_one() -> None:
    model = small_unet()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and hasattr(m, "parametrizations")]
    assert len(layers) == 8
    for _ in range(300):
        discriminate(model, noise(1, 3, 8, 8), training=True)
    model.eval()
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_two_training_passes_before_one_backward_pass() -> None:
    """As D's step has it: the second pass moves the vectors, and the first one's gradient is as it was alone."""
    model = small_unet()
    hr, sr = noise(2, 3, 16, 16), 1 - noise(2, 3, 16, 16)
    alone = copy.deepcopy(model)
    expected = []
    for image in (hr, sr):
        expected.append(torch.autograd.grad(discriminate(alone, image, training=True).sum(), list(alone.parameters())))
    real, fake = discriminate(model, hr, training=True), discriminate(model, sr, training=True)
    found = torch.autograd.grad(real.sum() + fake.sum(), list(model.parameters()))
    for ours, first, second in zip(found, *expected, strict=True):
        assert torch.allclose(ours, first + second, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(*expected, strict=True))


def test_spectral_norm_moves_in_training_passes_alone() -> None:
    model = small_unet()
    before = buffers(model)
    assert len(before) == 16
    discriminate(model, noise(1, 3, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in buffers(model).items())
    discriminate(model, noise(1, 3, 8, 8), training=True)
    assert [name for name, tensor in buffers(model).items() if torch.equal(tensor, before[name])] == []
    assert all(m.training for m in model.modules())


def test_a_unets_state_is_restored_whole() -> None:
    """Into one of other weights: the same verdicts, and the same next training pass."""
    model, other = small_unet(), unet_discriminator(channels=4, rng=rng(9))
    discriminate(model, noise(1, 3, 8, 8), training=True)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for training in (False, True, False):
        image = noise(2, 3, 16, 16)
        assert torch.equal(discriminate(model, image, training), discriminate(other, image, training))


def test_a_unets_weights_depend_on_the_generator_of_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    first, second = small_unet().state_dict(), small_unet().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("size", [(24, 24), (31, 40), (96, 128)])
def test_the_patch_discriminators_map(size: tuple[int, int]) -> None:
    expected = (2, 1, size[0] // 8 - 2, size[1] // 8 - 2)
    assert discriminate(small_patch(), noise(2, 3, *size)).shape == expected


def test_a_patch_is_70_pixels_a_side() -> None:
    """One logit has a gradient in exactly 70 x 70 pixels, and its neighbour in those 8 further on."""
    model, image = small_patch(), noise(1, 3, 160, 160).requires_grad_()
    logits = discriminate(model, image)
    starts = []
    for column in (9, 10):
        (gradient,) = torch.autograd.grad(logits[0, 0, 9, column], image, retain_graph=True)
        rows, columns = gradient.abs().sum(dim=(0, 1)).nonzero().unbind(1)
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 69
        starts.append(int(columns.min()))
    assert starts[1] - starts[0] == 8


def test_the_patch_discriminator_is_its_definition() -> None:
    model = small_patch().double()
    image = noise(2, 3, 40, 32).double()
    discriminate(model, image, training=True)
    state = model.state_dict()
    x = F.leaky_relu(F.conv2d(2 * image - 1, state["layers.0.weight"], state["layers.0.bias"], 2, 1), 0.2)
    for i, stride in ((2, 2), (5, 2), (8, 1)):
        x = F.conv2d(x, state[f"layers.{i}.weight"], None, stride, 1)
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.leaky_relu(F.batch_norm(x, *(state[f"layers.{i + 1}.{name}"] for name in names)), 0.2)
    expected = F.conv2d(x, state["layers.11.weight"], state["layers.11.bias"], 1, 1)
    assert torch.allclose(discriminate(model, image), expected, atol=1e-12)


def test_images_too_small_are_refused() -> None:
    with pytest.raises(
        ValueError, match="the image is 8 x 7, and this discriminator needs 8 pixels a side; use larger"
    ):
        discriminate(small_unet(), noise(1, 3, 8, 7))
    with pytest.raises(ValueError, match="the image is 23 x 24, and this discriminator needs 24 pixels a side"):
        discriminate(small_patch(), noise(1, 3, 23, 24))


@pytest.mark.parametrize("make", [small_unet, small_patch])
def test_gradients_reach_image_and_weights_of_each(make: Callable[[], Discriminator]) -> None:
    model, image = make(), noise(2, 3, 32, 32).requires_grad_()
    torch.autograd.backward(discriminate(model, image, training=True).sum())
    assert image.grad is not None
    assert float(image.grad.abs().min()) > 0
    assert all(p.grad is not None for p in model.parameters())
