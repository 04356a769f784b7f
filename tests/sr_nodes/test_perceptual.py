"""The perceptual loss against torchvision's own network and the papers' formula, and its laws on small maps."""

from __future__ import annotations

import functools
from typing import get_args

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from sr_nodes.features import Layer, VGG19Features, vgg19, vgg_loss
from sr_nodes.perceptual import FeaturePyramid, VGG19Layers, perceptual_loss, vgg19_layers
from sr_pipeline.node import node_type
from sr_pipeline.paths import resolve

BUNDLED = "sr_nodes:weights/vgg19_features_8bit.safetensors"
REAL_ESRGAN: tuple[Layer, ...] = ("12", "22", "34", "44", "54")
NAMES = {0: "11", 2: "12", 5: "21", 7: "22", 10: "31", 12: "32", 14: "33", 16: "34", 19: "41", 21: "42", 23: "43"}
NAMES |= {25: "44", 28: "51", 30: "52", 32: "53", 34: "54"}
"""torchvision's convolutions by their index, as public codes number them."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def torchvisions() -> nn.Sequential:
    """torchvision's VGG-19 with the bundled weights, decoded here a second time."""
    stored = load_file(resolve(BUNDLED))
    weights = {name: tensor for name, tensor in stored.items() if name.endswith(("bias", "weight"))}
    for name in (name for name in stored if name.endswith("codes")):
        codes, table = stored[name], stored[name.replace("codes", "table")]
        weights[name.replace("codes", "weight")] = table.gather(0, codes.flatten().long()).view(codes.shape)
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None, init_weights=False).features
    made: nn.Sequential = features.to_empty(device="cpu").eval().requires_grad_(False)
    made.load_state_dict({name.removeprefix("features."): tensor for name, tensor in weights.items()})
    return made


def torchvisions_maps(image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Each convolution's output by its name, before and after its ReLU."""
    x = torchvision.transforms.functional.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    found = {}
    for index, module in enumerate(torchvisions()):
        if index in NAMES:
            x = module(x)
            found[NAMES[index]] = (x, x.clamp_min(0))
        elif isinstance(module, nn.MaxPool2d):
            x = module(x)
        else:
            x = x.clamp_min(0)
    return found


@functools.cache
def bundled(layers: tuple[Layer, ...] = REAL_ESRGAN, before_relu: bool = True) -> FeaturePyramid:
    return vgg19_layers(layers, before_relu)


@pytest.mark.parametrize("before_relu", [True, False])
def test_every_map_is_torchvisions(before_relu: bool) -> None:
    layers: tuple[Layer, ...] = get_args(Layer)
    image = noise(1, 3, 35, 48)
    maps, expected = vgg19_layers(layers, before_relu)(image), torchvisions_maps(image)
    assert len(maps) == 16
    for layer, found in zip(layers, maps, strict=True):
        before, after = expected[layer]
        assert torch.allclose(found, before if before_relu else after, atol=2e-5), layer
        assert (float(found.min()) < 0) == before_relu


def test_maps_come_in_the_order_asked_for() -> None:
    image = noise(1, 3, 16, 16)
    first, second = vgg19_layers(("22", "11"))(image)
    assert (first.shape, second.shape) == ((1, 128, 8, 8), (1, 64, 16, 16))
    (alone,) = vgg19_layers(("22",), before_relu=False)(image)
    assert torch.equal(alone, vgg19("22")(image))


def test_nothing_trains_it() -> None:
    net = vgg19_layers(("22", "11")).train()
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.modules() if isinstance(m, (nn.Conv2d, VGG19Features)))


@pytest.mark.parametrize(
    ("layers", "layer_weights"), [(("54",), (1.0,)), (REAL_ESRGAN, (0.1, 0.1, 1.0, 1.0, 1.0))], ids=["esrgan", "real"]
)
@pytest.mark.parametrize("criterion", ["l1", "mse"])
def test_the_loss_and_its_gradient_are_the_papers(
    layers: tuple[Layer, ...], layer_weights: tuple[float, ...], criterion: str
) -> None:
    sr, hr = noise(2, 3, 32, 48).requires_grad_(), noise(2, 3, 32, 48, seed=1)
    ours, theirs = torchvisions_maps(sr), torchvisions_maps(hr)
    power = 1 if criterion == "l1" else 2
    distances = [(ours[layer][0] - theirs[layer][0]).abs().pow(power).mean() for layer in layers]
    expected = sum((w * d for w, d in zip(layer_weights, distances, strict=True)), torch.zeros(()))
    loss = perceptual_loss(bundled(layers), sr, hr, layer_weights, criterion)  # type: ignore[arg-type]
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found, wanted = (torch.autograd.grad(value, sr)[0] for value in (loss, expected))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_srgans_loss_is_a_case_of_it() -> None:
    """VGG54 after its ReLU, squared, a sum over channels, and features divided by 12.75."""
    sr, hr = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    ours = perceptual_loss(bundled(("54",), False), sr, hr, (1.0,), "mse", "sum", weight=12.75**-2)
    assert ours.item() == pytest.approx(vgg_loss(vgg19("54"), sr, hr).item(), rel=1e-5)


class Toy(FeaturePyramid):
    """The image itself, and a smooth mixture of its channels at half the size."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        mixed = torch.einsum("bchw,cd->bdhw", image, torch.linspace(-1, 1, 6, dtype=image.dtype).view(3, 2))
        return image, nn.functional.avg_pool2d(mixed, 2).sin()


def test_features_that_differ_by_a_tenth() -> None:
    class Twice(FeaturePyramid):
        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return image, image

    hr = noise(2, 3, 4, 4)
    assert perceptual_loss(Twice(), hr + 0.1, hr, (1.0, 0.5)).item() == pytest.approx(0.15)
    assert perceptual_loss(Twice(), hr + 0.1, hr, (1.0, 0.5), "mse").item() == pytest.approx(0.015)
    assert perceptual_loss(Twice(), hr + 0.1, hr, (1.0, 0.5), "l1", "sum").item() == pytest.approx(0.45)
    assert perceptual_loss(Twice(), hr + 0.1, hr, (1.0, 0.5), weight=2.0).item() == pytest.approx(0.3)


@pytest.mark.parametrize("criterion", ["l1", "mse"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_laws(criterion: str, reduction: str) -> None:
    """Nothing at equality, symmetric, a mean over the batch, linear in its weights, the right gradient."""

    def loss(sr: Tensor, hr: Tensor, first: float = 1.0, second: float = 1.0) -> Tensor:
        return perceptual_loss(Toy(), sr, hr, (first, second), criterion, reduction)  # type: ignore[arg-type]

    sr, hr = noise(3, 3, 4, 6).double(), noise(3, 3, 4, 6, seed=1).double()
    value = loss(sr, hr).item()
    assert loss(hr, hr).item() == 0
    assert value > 0
    assert value == pytest.approx(loss(hr, sr).item())
    assert value == pytest.approx(sum(loss(sr[i : i + 1], hr[i : i + 1]).item() for i in range(3)) / 3)
    assert loss(sr, hr, 2, 1).item() + loss(sr, hr, 1, 2).item() == pytest.approx(3 * value)
    assert torch.autograd.gradcheck(lambda x: loss(x, hr[:1]), sr[:1].requires_grad_())


def test_the_gradient_reaches_sr_and_nothing_else() -> None:
    sr, hr = noise(1, 3, 16, 16).requires_grad_(), noise(1, 3, 16, 16, seed=1).requires_grad_()
    torch.autograd.backward(perceptual_loss(bundled(), sr, hr))
    assert sr.grad is not None
    assert float(sr.grad.abs().max()) > 0
    assert hr.grad is None
    assert all(p.grad is None for p in bundled().parameters())


def test_what_does_not_fit_is_refused() -> None:
    image = noise(1, 3, 16, 16)
    with pytest.raises(ValueError, match="there are 2 feature maps and 5 layer_weights; give one for each map"):
        perceptual_loss(Toy(), image, image)
    with pytest.raises(ValueError, match=r"sr is \[1, 3, 16, 16\] and hr is \[2, 3, 16, 16\]"):
        perceptual_loss(Toy(), image, noise(2, 3, 16, 16), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"layers is \['54', '54'\]; name at least one, and each once"):
        VGG19Layers(("54", "54"), True, {})
    with pytest.raises(ValueError, match=r"layers is \[\]; name at least one"):
        VGG19Layers((), True, {})
    with pytest.raises(ValueError, match="the image is 16 x 15, and this layer needs 16 pixels a side"):
        bundled()(noise(1, 3, 16, 15))


def test_literals_of_a_graph() -> None:
    layers, weights = node_type(vgg19_layers).inputs["layers"].type, node_type(perceptual_loss).inputs["layer_weights"]
    assert layers.read('["12", "54"]') == ("12", "54")
    with pytest.raises(ValueError, match="item 0: it should be '11', '12'"):
        layers.read('["55"]')
    with pytest.raises(ValueError, match="at least 1 item"):
        layers.read("[]")
    with pytest.raises(ValueError, match="item 1: it should be greater than 0"):
        weights.type.read("[1, 0]")
