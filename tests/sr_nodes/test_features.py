"""VGG-19's features against torchvision's own network, and the content loss against the paper's formula."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, get_args
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr_nodes.features import Layer, VGG19Features, vgg19, vgg_loss
from sr_nodes.types import FeatureNet
from sr_pipeline.paths import resolve

BUNDLED = "sr_nodes:weights/vgg19_features_8bit.safetensors"
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def dequantised() -> dict[str, Tensor]:
    """The bundled weights by torchvision's names, decoded here a second time."""
    stored = load_file(resolve(BUNDLED))
    weights = {name: tensor for name, tensor in stored.items() if name.endswith(("bias", "weight"))}
    for name in (name for name in stored if name.endswith("codes")):
        codes = stored[name]
        table = stored[name.replace("codes", "table")]
        weights[name.replace("codes", "weight")] = table.gather(0, codes.flatten().long()).view(codes.shape)
    return weights


@functools.cache
def torchvisions() -> nn.Sequential:
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None, init_weights=False).features
    made: nn.Sequential = features.to_empty(device="cpu").eval().requires_grad_(False)
    made.load_state_dict({name.removeprefix("features."): tensor for name, tensor in dequantised().items()})
    return made


@functools.cache
def bundled(layer: Layer = "54") -> FeatureNet:
    return vgg19(layer)


def pools_and_convolutions(layer: str) -> int:
    """How many of torchvision's layers end with the ReLU of the j-th convolution before the i-th max-pool."""
    pools, convolutions = 1, 0
    for index, module in enumerate(torchvisions()):
        if isinstance(module, nn.MaxPool2d):
            pools, convolutions = pools + 1, 0
        convolutions += isinstance(module, nn.Conv2d)
        if isinstance(module, nn.ReLU) and f"{pools}{convolutions}" == layer:
            return index + 1
    raise AssertionError(layer)


@pytest.mark.parametrize("layer", get_args(Layer))
def test_every_feature_map_is_torchvisions(layer: Layer) -> None:
    image = noise(1, 3, 35, 48)
    net = vgg19(layer)
    until = pools_and_convolutions(layer)
    normalised = (image - MEAN) / STD
    assert [type(m) for m in net.features] == [type(m) for m in torchvisions()[:until]]  # type: ignore[union-attr]
    assert torch.allclose(net(image), torchvisions()[:until](normalised), atol=1e-5)


def test_the_papers_two_maps() -> None:
    assert pools_and_convolutions("54") == 36
    assert pools_and_convolutions("22") == 9
    image = noise(1, 3, 96, 96)
    assert bundled("54")(image).shape == (1, 512, 6, 6)
    assert bundled("22")(image).shape == (1, 128, 48, 48)
    assert float(bundled("54")(image).min()) == 0


def test_nothing_trains_it() -> None:
    net = vgg19("22").train()
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(name in net.state_dict() for name in ("mean", "std"))


def test_the_image_is_not_changed_and_no_feature_is_overwritten() -> None:
    net, image = vgg19("22"), noise(1, 3, 16, 16)
    before = image.clone()
    kept: list[tuple[Tensor, Tensor]] = []
    for module in net.features:  # type: ignore[union-attr]
        module.register_forward_hook(lambda _m, _i, out: kept.append((out, out.clone())))
    net(image)
    assert torch.equal(image, before)
    assert len(kept) == 9
    assert all(torch.equal(out, copy) for out, copy in kept)


def test_an_image_too_small_for_the_pools_is_refused() -> None:
    assert bundled("54")(noise(1, 3, 16, 16)).shape == (1, 512, 1, 1)
    with pytest.raises(ValueError, match="the image is 16 x 15, and this layer needs 16 pixels a side; use larger"):
        bundled("54")(noise(1, 3, 16, 15))


def paper(layer: Layer, sr: Tensor, hr: Tensor) -> Tensor:
    """Equation 5 with the features divided by 12.75, as a sum over everything and a division by W H, and by B."""
    total, net = torch.zeros(()), torchvisions()[: pools_and_convolutions(layer)]
    for one, other in zip(sr, hr, strict=True):
        phi_sr, phi_hr = (net((image[None] - MEAN) / STD) / 12.75 for image in (one, other))
        total = total + ((phi_sr - phi_hr) ** 2).sum() / (phi_sr.shape[-1] * phi_sr.shape[-2])
    return total / len(sr)


@pytest.mark.parametrize("layer", ["22", "54"])
def test_the_loss_and_its_gradient_are_equation_5s(layer: Layer) -> None:
    sr, hr = noise(2, 3, 32, 48).requires_grad_(), noise(2, 3, 32, 48, seed=1)
    loss, expected = vgg_loss(bundled(layer), sr, hr), paper(layer, sr, hr)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found, wanted = (torch.autograd.grad(value, sr)[0] for value in (loss, expected))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_the_mean_is_smaller_by_the_number_of_channels() -> None:
    sr, hr = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    for layer, channels in (("54", 512), ("22", 128)):
        net = bundled(layer)
        mean = vgg_loss(net, sr, hr, "mean").item()
        assert vgg_loss(net, sr, hr).item() == pytest.approx(channels * mean)
        assert vgg_loss(net, sr, hr, weight=3).item() == pytest.approx(3 * channels * mean)


class Identity(FeatureNet):
    def forward(self, image: Tensor) -> Tensor:
        return image


def test_features_that_differ_by_one_give_the_papers_factor() -> None:
    hr = noise(2, 3, 5, 4)
    assert vgg_loss(Identity(), hr + 1, hr, "mean").item() == pytest.approx(1 / 12.75**2)
    assert vgg_loss(Identity(), hr + 1, hr, "mean").item() == pytest.approx(0.00615, abs=5e-6)
    assert vgg_loss(Identity(), hr + 1, hr).item() == pytest.approx(3 / 12.75**2)


def test_equal_images_lose_nothing_and_a_batch_is_a_mean() -> None:
    sr, hr = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    assert vgg_loss(bundled(), hr, hr).item() == 0
    value = vgg_loss(bundled(), sr, hr).item()
    assert value == pytest.approx(vgg_loss(bundled(), hr, sr).item())
    assert value == pytest.approx(vgg_loss(bundled(), torch.cat([sr, sr]), torch.cat([hr, hr])).item())


def test_the_gradient_reaches_sr_and_nothing_else() -> None:
    sr, hr = noise(1, 3, 16, 16).requires_grad_(), noise(1, 3, 16, 16, seed=1).requires_grad_()
    torch.autograd.backward(vgg_loss(bundled(), sr, hr))
    assert sr.grad is not None
    assert float(sr.grad.abs().max()) > 0
    assert hr.grad is None
    assert all(p.grad is None for p in bundled().parameters())


def test_images_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sr is \[1, 3, 16, 16\] and hr is \[2, 3, 16, 16\]"):
        vgg_loss(bundled(), noise(1, 3, 16, 16), noise(2, 3, 16, 16))


def first_layer() -> dict[str, Tensor]:
    return {"features.0.weight": noise(64, 3, 3, 3), "features.0.bias": noise(64)}


def assert_is(net: FeatureNet, weights: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


def test_weights_from_a_file_in_torchvisions_layout(tmp_path: Path) -> None:
    weights = {**first_layer(), "classifier.0.weight": torch.zeros(2)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pth")
    assert_is(vgg19("11", str(tmp_path / "a.safetensors")), weights)
    assert_is(vgg19("11", str(tmp_path / "a.pth")), weights)
    assert_is(VGG19Features("11", first_layer()), weights)


def test_weights_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(first_layer(), tmp_path / "hub/checkpoints/vgg19-dcbb9e9d.pth")
    assert_is(vgg19("11", "torchvision"), first_layer())


def test_torchvision_out_of_reach_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(ValueError, match=r"https://.*vgg19.* cannot be fetched .*no network.*use the bundled weights"):
        vgg19("54", "torchvision")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", b"\x80\x02garbage", b"12\n", b"]a."])
def test_a_pth_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth is damaged, or no file of torch's"):
        vgg19("11", str(tmp_path / "a.pth"))


def test_a_pickled_program_is_refused(tmp_path: Path) -> None:
    torch.save(nn.ReLU(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is refused: it pickles more than tensors"):
        vgg19("11", str(tmp_path / "a.pth"))


def test_other_contents_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no tensors but a list; give a dictionary of tensors"):
        vgg19("11", str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=r"there is no file .*b\.pth"):
        vgg19("11", str(tmp_path / "b.pth"))
    (tmp_path / "c.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        vgg19("11", str(tmp_path / "c.safetensors"))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(first_layer(), path)
    with pytest.raises(ValueError, match=r"do not fit the network: missing: features\.2\.weight, features\.2\.bias$"):
        vgg19("12", str(path))
    save_file({**first_layer(), "features.0.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"of another shape: features\.0\.bias \[3\] instead of \[64\]"):
        vgg19("11", str(path))
    codes = {"features.0.table": torch.zeros(7), "features.0.codes": torch.zeros(64, 3, 3, 3, dtype=torch.uint8)}
    save_file({"features.0.bias": torch.zeros(64), **codes}, path)
    with pytest.raises(ValueError, match=r"features\.0 in .* is no table of 256 with uint8 codes; use the bundled"):
        vgg19("11", str(path))
