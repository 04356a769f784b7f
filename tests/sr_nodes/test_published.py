"""State dicts of public codes: each layout, a module of public_codes.py with that code's names, gives its own SR."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from public_codes import (
    CASES,
    BasicMSRResNet,
    C,
    Esrgan2018,
    Leftthomas,
    Lornatang,
    Rrdbs,
    Sgrvinod,
    Twtygqyy,
    shaken,
)  # fmt: skip
from sr_nodes.generators import export_generator, generate, load_generator, load_weights
from sr_nodes.layouts import LAYOUTS
from sr_nodes.published import recognise
from sr_nodes.srresnet import srresnet
from sr_nodes.weight_files import read_tensors


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_gives_its_own_codes_image(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    network = shaken(CASES[name].make())
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    loaded, same = (load_generator(str(tmp_path / f"weights{suffix}")) for suffix in (".pth", ".safetensors"))
    assert loaded.config == same.config
    assert all(torch.equal(tensor, same.state_dict()[n]) for n, tensor in loaded.state_dict().items())
    assert loaded.architecture == CASES[name].architecture
    assert {key: loaded.config[key] for key in CASES[name].config} == CASES[name].config
    lr = torch.rand(2, 3, 8, 12)
    with torch.no_grad():
        wanted = network(lr)
        assert float(wanted.std()) > 0.01  # an image that a wrong network would not give
        assert torch.allclose(loaded.eval()(lr), wanted, rtol=0, atol=1e-5)
        assert torch.allclose(generate(loaded, lr), wanted.clamp(0, 1), rtol=0, atol=1e-5)


def test_every_layout_is_tested() -> None:
    best = set()
    for case in CASES.values():
        names = list(case.make().state_dict())
        best.add(max(LAYOUTS, key=lambda layout: len(layout.renamed(names))).name)
    assert best == {layout.name for layout in LAYOUTS}


def test_what_was_loaded_can_be_trained_exported_and_loaded_again(tmp_path: Path) -> None:
    torch.save(shaken(Sgrvinod()).state_dict(), tmp_path / "a.pth")
    loaded = load_generator(str(tmp_path / "a.pth"))
    lr = torch.rand(1, 3, 6, 6)
    torch.autograd.backward(generate(loaded, lr, training=True).mean())
    assert all(p.grad is not None for p in loaded.parameters())
    export_generator(loaded, "b.safetensors", run_dir=tmp_path)
    assert torch.equal(generate(load_generator(str(tmp_path / "b.safetensors")), lr), generate(loaded, lr))


def test_load_weights_takes_them_into_a_network_that_is_the_same(tmp_path: Path) -> None:
    torch.save(shaken(Lornatang()).state_dict(), tmp_path / "a.pth")
    model = srresnet(blocks=2, channels=C, bias_before_bn=False, value_range="0..1")
    load_weights(model, str(tmp_path / "a.pth"))
    lr = torch.rand(1, 3, 6, 6)
    assert torch.equal(generate(model, lr), generate(load_generator(str(tmp_path / "a.pth")), lr))
    with pytest.raises(
        ValueError, match=r"value_range is '0\.\.1' instead of '-1\.\.1'; set these inputs as in the file"
    ):
        load_weights(srresnet(blocks=2, channels=C, bias_before_bn=False), str(tmp_path / "a.pth"))


def test_the_output_that_no_shape_tells_can_be_overruled(tmp_path: Path) -> None:
    network = shaken(Lornatang())
    torch.save(network.state_dict(), tmp_path / "a.pth")
    lr = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        raw = network(lr)
        for output, value_range, wanted in (
            ("none", "auto", raw),
            ("tanh", "auto", raw.tanh()),
            ("auto", "-1..1", (raw + 1) / 2),
            ("tanh", "-1..1", (raw.tanh() + 1) / 2),
        ):
            changed: Any = load_generator(str(tmp_path / "a.pth"), output, value_range)  # type: ignore[arg-type]
            assert torch.allclose(changed.eval()(lr), wanted, atol=1e-6)


def load(path: Path, content: Any) -> Any:
    torch.save(content, path)
    return load_generator(str(path))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "net_g.", "generator.", "_orig_mod.", "netG.", "net.", "module.net_g.", "model.", "model.net."],
)
@pytest.mark.parametrize("make", [Sgrvinod, Esrgan2018])
def test_prefixes_of_wrappers_are_dropped(tmp_path: Path, prefix: str, make: Callable[[], nn.Module]) -> None:
    tensors = shaken(make()).state_dict()
    plain = load(tmp_path / "a.pth", tensors).state_dict()
    # A discriminator beside it, as in a state dict of a whole training program, is no part of the generator.
    beside = {"net_d.conv.weight": torch.ones(1), "n_averaged": torch.tensor(1)}
    prefixed = load(tmp_path / "b.pth", {**beside, **{prefix + n: t for n, t in tensors.items()}}).state_dict()
    assert plain.keys() == prefixed.keys()
    assert all(torch.equal(plain[n], prefixed[n]) for n in plain)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda new, old: {"params": new},
        lambda new, old: {"params_ema": new, "params": old},
        lambda new, old: {"epoch": 3, "state_dict": new, "optimizer": {"state": {}, "lr": 0.1}},
        lambda new, old: {"epoch": 3, "ema_state_dict": new, "state_dict": old},
        lambda new, old: {"model": {"state_dict": new}},
        lambda new, old: {"generator": new, "discriminator": old},
        lambda new, old: {**new, "epoch": 3},
    ],
)
def test_the_weights_are_found_in_a_training_programs_file(tmp_path: Path, wrap: Any) -> None:
    new, old = (shaken(BasicMSRResNet(2), seed).state_dict() for seed in (0, 1))
    new["conv_first.bias"] += 1
    loaded = load(tmp_path / "a.pt", wrap(new, old))
    assert torch.equal(loaded.state_dict()["conv_first.bias"], new["conv_first.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {n: t.to(dtype) for n, t in shaken(BasicMSRResNet(2)).state_dict().items()}
    loaded = load(tmp_path / "a.pth", tensors).state_dict()
    assert all(t.dtype == torch.float32 and torch.equal(t, tensors[n].float()) for n, t in loaded.items())


def test_files_older_than_the_count_of_batches_are_read(tmp_path: Path) -> None:
    network = shaken(Leftthomas())
    old = {n: t for n, t in network.state_dict().items() if "num_batches_tracked" not in n}
    lr = torch.rand(1, 3, 5, 5)
    with torch.no_grad():
        assert torch.allclose(load(tmp_path / "a.pth", old).eval()(lr), network(lr), atol=1e-5)


class Evil:
    """Its pickle runs a command when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("key", ["state_dict", "extra"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, key: str) -> None:
    torch.save({"params": shaken(BasicMSRResNet()).state_dict(), key: Evil(tmp_path / "ran")}, tmp_path / "a.pth")
    words = r"a\.pth is refused: .*pickles more than tensors, which could run any program .*torch\.save\(model\.state"
    with pytest.raises(ValueError, match=words) as caught:
        load_generator(str(tmp_path / "a.pth"))
    assert "weights_only" not in str(caught.value)
    assert "safe_globals" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_a_pickled_module_is_refused_with_the_mend(tmp_path: Path) -> None:
    torch.save({"model": nn.Conv2d(3, 3, 3)}, tmp_path / "a.pth.tar")
    with pytest.raises(ValueError, match="with the code that made it, save the tensors alone"):
        load_generator(str(tmp_path / "a.pth.tar"))


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_torch_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth is damaged, or no file of torch's; copy or fetch it again$"):
        load_generator(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_half_a_file_is_damaged_and_no_refused_pickle(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.pth"
    torch.save(shaken(BasicMSRResNet()).state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"a\.pth is damaged, or no file of torch's"):
        load_generator(str(path))


def test_a_torchscript_program_is_called_one(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, that it is old
        torch.jit.save(torch.jit.trace(nn.Conv2d(3, 3, 1), torch.ones(1, 3, 2, 2)), tmp_path / "a.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"a\.pt is a TorchScript program, not weights; give the weights"):
        load_generator(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("suffix", ["", ".onnx", ".npz"])
def test_another_suffix_is_told_with_those_that_are_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    words = rf"has the suffix '{suffix}'; give a weights file: \.safetensors, \.pth, \.pt, \.ckpt, \.tar, \.bin"
    with pytest.raises(ValueError, match=words):
        load_generator(str(tmp_path / f"a{suffix}"))


def test_a_suffix_in_capitals_is_read(tmp_path: Path) -> None:
    assert load(tmp_path / "a.PTH", shaken(BasicMSRResNet()).state_dict()).scale == 4


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    torch.save(shaken(BasicMSRResNet()).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r" is a folder; give a weights file, in its folder: known: a\.pth"):
        load_generator(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds no tensors but a list"),
        ({"epoch": 3, "args": {}}, "holds no tensors but a dict with the keys 'epoch', 'args'; give a dictionary"),
        ({"params": {}}, "holds no tensors but a dict with the keys 'params'"),
    ],
)
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "a.pth", content)


def test_a_missing_file_is_told_with_its_neighbour(tmp_path: Path) -> None:
    load(tmp_path / "weights.pth", shaken(BasicMSRResNet()).state_dict())
    with pytest.raises(ValueError, match=r"there is no file .*did you mean 'weights.pth'\?"):
        load_generator(str(tmp_path / "wieghts.pth"))


def test_an_unknown_layout_is_told_with_what_was_found_and_what_is_known(tmp_path: Path) -> None:
    swin = {f"layers.{i}.attn.qkv.weight": torch.ones(12, 4) for i in range(9)}
    words = (
        r"holds 9 tensors \(layers\.0\.attn\.qkv\.weight \[12, 4\], layers\.1.*\), in no layout .*"
        r"twtygqyy.*leftthomas.*sgrvinod.*Lornatang.*MSRResNet.*RRDBNet.*; load_upscaler knows what spandrel does"
    )
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "a.pth", swin)


def test_a_layout_that_is_nearly_known_is_told_by_its_strange_name(tmp_path: Path) -> None:
    tensors = {**shaken(Leftthomas()).state_dict(), "block3.attention.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"most like leftthomas/SRGAN, which has no block3\.attention\.weight; "):
        load(tmp_path / "a.pth", tensors)


def without(network: nn.Module, *parts: str) -> dict[str, Tensor]:
    return {n: t for n, t in shaken(network).state_dict().items() if not any(part in n for part in parts)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without(Leftthomas(), "block1.0"), r"leftthomas/SRGAN, is not whole: our head\.0\.weight is missing"),
        (without(Leftthomas(), "block4.conv2.bias"), r"do not fit the network: missing: blocks\.2\.body\.3\.bias"),
        (without(Twtygqyy("in"), "running"), r"norms without a running_mean \(InstanceNorm\?\); BatchNorm is supp"),
        (without(Rrdbs(Rrdbs.NEW, "rdb"), "conv_first"), r"our conv_first\.weight is missing; give a whole"),
        (without(Rrdbs(Rrdbs.NEW, "rdb"), "body.1.rdb3"), r"missing: body\.1\.rdb3\.conv1\.weight"),
        (without(BasicMSRResNet(), "upconv"), r"BasicSR's MSRResNet, is not whole: our upconv1\.weight is missing"),
        ({"conv_first.weight": torch.ones(4), **without(BasicMSRResNet(), "conv_first.w")}, r"is \[4\], no kernel"),
        (without(Leftthomas(), "block8.0", "block8.1"), r"options that srresnet cannot: scale \(.*give another file"),
        (without(BasicMSRResNet(), "body"), r"options that msrresnet cannot: blocks \(.*\); export it again, or give"),
        (
            {**without(Rrdbs(Rrdbs.NEW, "rdb"), "conv_first.w"), "conv_first.weight": torch.ones(C, 4, 3, 3)},
            r"takes 4 channels; supported are RGB's 3 \(x4\), and 12 \(x2\) and 48 \(x1\) of it",
        ),
        (
            {**without(Lornatang(), "conv1.0.w"), "conv1.0.weight": torch.ones(C, 1, 9, 9)},
            r"of another shape: head\.0\.weight \[6, 1, 9, 9\] instead of \[6, 3, 9, 9\]",
        ),
        (
            {**without(Twtygqyy()), "residual.0.in1.weight": torch.ones(C)},
            "in the layout of twtygqyy/pytorch-SRResNet, has two tensors for one place; give a state dict of one",
        ),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_does_not_fit_is_told(tmp_path: Path, tensors: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "a.pth", tensors)


def test_no_tensors_are_no_network() -> None:
    with pytest.raises(ValueError, match=r"x holds 0 tensors \(none\), in no layout"):
        recognise({}, "x")


def test_reading_changes_no_state_of_torchs(tmp_path: Path) -> None:
    torch.save(shaken(BasicMSRResNet()).state_dict(), tmp_path / "a.pth")
    before = torch.get_rng_state()
    load_generator(str(tmp_path / "a.pth"))
    assert torch.equal(torch.get_rng_state(), before)
    assert read_tensors(tmp_path / "a.pth")[1] == {}
