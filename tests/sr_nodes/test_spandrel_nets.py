"""Networks of spandrel's: as generators they give what spandrel itself gives, at any size."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from public_codes import BasicMSRResNet, Esrgan2018, Rrdbs, shaken
from sr_nodes.generators import export_generator, generate, load_generator
from sr_nodes.spandrel_nets import load_upscaler

spandrel: Any = pytest.importorskip("spandrel", reason="the extra 'spandrel' is not installed")


def architecture(name: str, **options: Any) -> nn.Module:
    """A small network of spandrel's with weights that torch drew."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
        made: nn.Module = getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)(**options)
    return made.eval()


SWIN = {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [2, 2, 2, 2], "window_size": 8, "img_size": 16}
# Spandrel knows RRDBNets of growth 32 alone.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ESRGAN": lambda: Rrdbs(Rrdbs.NEW, "rdb", growth=32),
    "ESRGAN of 2018": lambda: Esrgan2018(growth=32),
    "Real-ESRGAN x2": lambda: Rrdbs(Rrdbs.NEW, "rdb", fold=2, growth=32),
    "Compact": lambda: architecture("Compact", num_feat=8, num_conv=3, upscale=4),
    "SwinIR": lambda: architecture("SwinIR", upscale=2, upsampler="pixelshuffledirect", **SWIN),
    "SPAN": lambda: architecture("SPAN", num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
}


def stored(path: Path, network: nn.Module) -> dict[str, Tensor]:
    tensors = dict(network.state_dict())
    torch.save(tensors, path)
    return tensors


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
def test_the_sr_is_spandrels_own(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    tensors = stored(tmp_path / "a.pth", NETWORKS[name]())
    loaded = load_upscaler(str(tmp_path / "a.pth"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
        descriptor = spandrel.ModelLoader().load_from_state_dict(tensors)
    assert loaded.architecture == f"spandrel/{descriptor.architecture.id}"
    assert loaded.scale == descriptor.scale
    lr = torch.rand(1, 3, *size)
    sr = generate(loaded, lr)
    assert sr.shape == (1, 3, loaded.scale * size[0], loaded.scale * size[1])
    assert torch.equal(sr, descriptor(lr))


@pytest.mark.parametrize("name", ["ESRGAN", "ESRGAN of 2018", "Real-ESRGAN x2"])
def test_our_rrdbnet_is_spandrels(tmp_path: Path, name: str) -> None:
    stored(tmp_path / "a.pth", NETWORKS[name]())
    lr = torch.rand(2, 3, 8, 12)
    ours, theirs = load_generator(str(tmp_path / "a.pth")), load_upscaler(str(tmp_path / "a.pth"))
    assert torch.allclose(generate(ours, lr), generate(theirs, lr), rtol=0, atol=1e-6)


def test_it_is_trained_without_a_clamp_and_its_export_is_read_again(tmp_path: Path) -> None:
    stored(tmp_path / "a.pth", NETWORKS["Compact"]())
    loaded = load_upscaler(str(tmp_path / "a.pth"))
    lr = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        next(p for p in loaded.parameters()).mul_(50)
    trained = generate(loaded, lr, training=True)
    assert trained.max().item() > 1
    torch.autograd.backward(trained.sum())
    assert all(p.grad is not None for p in loaded.parameters())
    export_generator(loaded, "b.safetensors", run_dir=tmp_path)
    again = load_upscaler(str(tmp_path / "b.safetensors"))
    assert torch.equal(generate(again, lr), generate(loaded, lr))
    with pytest.raises(ValueError, match="holds spandrel/Compact, a network of spandrel's; load_upscaler reads it"):
        load_generator(str(tmp_path / "b.safetensors"))


def test_our_own_export_of_an_rrdbnet_is_read_too(tmp_path: Path) -> None:
    stored(tmp_path / "a.pth", NETWORKS["ESRGAN"]())
    ours = load_generator(str(tmp_path / "a.pth"))
    export_generator(ours, "b.safetensors", run_dir=tmp_path)
    lr = torch.rand(1, 3, 6, 5)
    assert torch.allclose(generate(load_upscaler(str(tmp_path / "b.safetensors")), lr), generate(ours, lr), atol=1e-6)


def test_weights_of_half_precision_become_float32_and_torchs_state_stays(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "a.pth", NETWORKS["Compact"]().half())
    before = torch.get_rng_state()
    loaded = load_upscaler(str(tmp_path / "a.pth"))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, tensors[n.removeprefix("model.")].float()) for n, t in loaded.state_dict().items())


def refused(path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_upscaler(str(path))


def test_networks_for_something_else_are_refused(tmp_path: Path) -> None:
    stored(tmp_path / "a.pth", architecture("Compact", num_feat=8, num_conv=3, upscale=1))
    refused(tmp_path / "a.pth", r"a\.pth holds a Compact for Restoration; supported are networks for super-resolution")
    gray = architecture("Compact", num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=3, upscale=4)
    stored(tmp_path / "b.pth", gray)
    refused(tmp_path / "b.pth", r"b\.pth holds a Compact of 1 channels to 1; supported is RGB, 3 to 3")


def test_what_spandrel_does_not_know_is_told_with_what_was_found(tmp_path: Path) -> None:
    stored(tmp_path / "a.pth", shaken(BasicMSRResNet()))
    words = (
        r"holds 22 tensors \(conv_first.weight \[6, 3, 3, 3\].*, of no architecture that spandrel 0\.4.* knows; load_g"
    )
    refused(tmp_path / "a.pth", words)


def test_half_a_network_is_refused(tmp_path: Path) -> None:
    tensors = dict(NETWORKS["ESRGAN"]().state_dict())
    del tensors["body.1.rdb3.conv1.weight"]
    torch.save(tensors, tmp_path / "a.pth")
    refused(
        tmp_path / "a.pth",
        r"a\.pth \(conv_first\.weight .*\) misleads spandrel: .*Missing key.*; give a whole state dict",
    )


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(NETWORKS["Compact"](), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"a\.pth is refused: .*pickles more than tensors")


def test_without_spandrel_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored(tmp_path / "any.pth", Rrdbs(Rrdbs.NEW, "rdb"))
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match=r"needs spandrel .*; pip install 'sr-pipeline\[spandrel\]', or pip install"):
        load_upscaler(str(tmp_path / "any.pth"))
