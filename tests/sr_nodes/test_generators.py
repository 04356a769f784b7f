"""The generator: the paper's size and numbers, weights from a generator of random numbers, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr_nodes.generators import BUILDERS, export_generator, generate, load_generator, load_weights
from sr_nodes.modules import check_fits, mode, seeded
from sr_nodes.srresnet import srresnet
from sr_nodes.types import Generator
from sr_pipeline.node import node_type

SMALL: dict[str, Any] = {"blocks": 2, "channels": 8}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=rng(seed))


def small(seed: int = 0, **options: Any) -> Generator:
    """A small generator whose running statistics are not those of a new one."""
    model = srresnet(**{**SMALL, **options}, rng=rng(seed))
    generate(model, noise(2, 3, 8, 8, seed=seed), training=True)
    return model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_seeded_restores_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative dimension"), seeded(rng()):
        torch.rand(5, -1)
    assert torch.equal(torch.get_rng_state(), before)


def test_generate_clamps_only_where_nothing_learns() -> None:
    model = small()
    with torch.no_grad():
        model.tail.bias += 1.0  # type: ignore[operator,union-attr]
    lr = noise(2, 3, 8, 8)
    evaluated, trained = generate(model, lr), generate(model, lr, training=True)
    assert evaluated.max().item() == 1
    assert trained.max().item() > 1
    torch.autograd.backward(trained.sum())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_generate_gives_every_submodule_its_mode_back(training: bool) -> None:
    model = small().train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = [m.training for m in model.modules()]
    generate(model, noise(1, 3, 4, 4), training=training)
    assert [m.training for m in model.modules()] == modes


def test_mode_is_restored_after_an_error() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU().eval())
    with mode(model, False):
        assert not any(m.training for m in model.modules())
    with pytest.raises(TypeError, match="must be Tensor"), mode(model, False):
        model("no tensor")
    assert [m.training for m in model.modules()] == [True, True, False]


def test_only_training_moves_the_running_statistics() -> None:
    model = small()
    before = clone(model)
    generate(model, noise(2, 3, 8, 8, seed=5))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    generate(model, noise(2, 3, 8, 8, seed=5), training=True)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert moved == {k for k in before if "running" in k or "num_batches" in k}


@settings(deadline=None, max_examples=8)
@given(
    scale=st.sampled_from([2, 3, 4, 8]),
    batch_norm=st.booleans(),
    bias=st.booleans(),
    prelu=st.sampled_from(["layer", "channel"]),
    output=st.sampled_from(["none", "tanh"]),
    ranges=st.sampled_from([("-1..1", "none"), ("0..1", "none"), ("0..1", "imagenet")]),
    seed=st.integers(0, 99),
)
def test_an_export_is_read_back_whole(
    tmp_path_factory: pytest.TempPathFactory,
    scale: int, batch_norm: bool, bias: bool, prelu: str, output: str, ranges: tuple[str, str], seed: int,
) -> None:  # fmt: skip
    options = {"scale": scale, "batch_norm": batch_norm, "bias_before_bn": bias, "prelu": prelu, "output": output}
    options |= {"value_range": ranges[0], "input_norm": ranges[1]}
    model, folder = small(seed, **options), tmp_path_factory.mktemp("run")
    export_generator(model, run_dir=folder)
    before = torch.get_rng_state()
    loaded = load_generator(str(folder / "generator.safetensors"))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(loaded, model)
    assert loaded.config == model.config
    other = srresnet(**{**SMALL, **options})
    assert load_weights(other, str(folder / "generator.safetensors")) is other
    assert same_weights(other, model)
    assert [p.name for p in folder.iterdir()] == ["generator.safetensors"]


@pytest.mark.parametrize("name", ["g.pt", "g.pth", "g"])
def test_an_export_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    made = srresnet(blocks=1, channels=8)
    export_generator(made, name, run_dir=tmp_path)
    read = load_generator(str(tmp_path / name))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), read.parameters(), strict=True))


def test_a_half_export_is_half_the_size_and_float32_again(tmp_path: Path) -> None:
    model = small()
    for name, half in (("whole", False), ("half", True)):
        export_generator(model, name, half=half, run_dir=tmp_path)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    loaded = load_generator(str(tmp_path / "half")).state_dict()
    for name, tensor in model.state_dict().items():
        wanted = tensor.half().float() if tensor.is_floating_point() else tensor
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], wanted)


def test_a_half_export_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        model.tail.bias += 1e6  # type: ignore[operator,union-attr]
    with pytest.raises(ValueError, match=r"tail\.bias has values beyond float16's 65504; export with half off"):
        export_generator(model, half=True, run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_metadata_is_what_other_programs_read(tmp_path: Path) -> None:
    export_generator(small(), "deep/er/a.safetensors", run_dir=tmp_path)
    with safe_open(tmp_path / "deep/er/a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata.pop("config"))
    assert metadata == {"format": "sr_pipeline.generator", "version": "1", "architecture": "srresnet"}
    assert config == small().config == {
        "scale": 4, "blocks": 2, "channels": 8, "batch_norm": True, "bias_before_bn": True, "prelu": "layer",
        "output": "none", "value_range": "-1..1", "input_norm": "none",
    }  # fmt: skip


def test_an_export_of_channels_last_weights_is_the_same(tmp_path: Path) -> None:
    model = small()
    export_generator(model, "a", run_dir=tmp_path)
    export_generator(model.to(memory_format=torch.channels_last), "b", run_dir=tmp_path)
    assert same_weights(load_generator(str(tmp_path / "a")), load_generator(str(tmp_path / "b")))


@pytest.mark.parametrize("filename", ["", ".", "..", "../a", "/tmp/a", "a/../../b", "folder"])
def test_an_export_stays_inside_the_runs_folder(tmp_path: Path, filename: str) -> None:
    (tmp_path / "run/folder").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is (outside of the run's folder|no name|a folder); give a"):
        export_generator(small(), filename, run_dir=tmp_path / "run")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "run"]


@pytest.mark.parametrize("weights", [None, ""])
def test_no_file_is_training_from_scratch(weights: str | None) -> None:
    model = small()
    before = clone(model)
    assert load_weights(model, weights) is model
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def exported(folder: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> str:
    """A file as of a small generator, changed."""
    path = folder / "generator.safetensors"
    export_generator(small(), run_dir=folder)
    with safe_open(path, framework="pt") as file:
        written = file.metadata()
    save_file(load_file(path) if tensors is None else tensors, path, {**written, **metadata})
    return str(path)


def refused(path: str, match: str) -> None:
    """Both nodes that read a file refuse this one, and the model is as before."""
    model = small(seed=1)
    before = clone(model)
    with pytest.raises(ValueError, match=match):
        load_weights(model, path)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=match):
        load_generator(path)


def test_a_missing_file_is_told_with_its_neighbour(tmp_path: Path) -> None:
    exported(tmp_path)
    refused(str(tmp_path / "generater.safetensors"), r"there is no file .*did you mean 'generator.safetensors'\?")
    refused(str(tmp_path / "no/a"), r"there is no file .*nor is there a folder")


@pytest.mark.parametrize("content", [b"", b"not a picture of weights", bytes(8), b"\xff" * 64])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(str(tmp_path / "a.safetensors"), "cannot be read as safetensors .*give a whole .safetensors file")


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = Path(exported(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    refused(str(path), "cannot be read as safetensors")


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(
        str(tmp_path / "a.safetensors"),
        r"holds 1 tensors \(a \[1\]\), in no layout that load_generator knows; its layouts are sr_pipeline's",
    )
    refused(exported(tmp_path, version="2"), "is of version '2' and this program reads version '1'")


@pytest.mark.parametrize("config", ["", "{", "[1]", '"a"'])
def test_options_that_are_no_json_object_are_refused(tmp_path: Path, config: str) -> None:
    refused(exported(tmp_path, config=config), "the options in .* are no JSON.*export it again")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, architecture="srresnit")
    with pytest.raises(ValueError, match=r"an unknown architecture 'srresnit'; did you mean 'srresnet'\?"):
        load_generator(path)
    with pytest.raises(ValueError, match="holds a 'srresnit', and this generator is a 'srresnet'"):
        load_weights(small(), path)


@pytest.mark.parametrize("name", ["srresnet", "msrresnet", "rrdbnet"])
def test_every_network_of_ours_is_read_back(tmp_path: Path, name: str) -> None:
    more = {"growth": 4} if name == "rrdbnet" else {}
    model = BUILDERS[name](scale=2, **SMALL, **more, rng=rng())
    assert model.architecture == name
    export_generator(model, "a", run_dir=tmp_path)
    loaded = load_generator(str(tmp_path / "a"))
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert same_weights(loaded, model)


def test_an_export_that_lacks_later_options_has_their_defaults(tmp_path: Path) -> None:
    config = {k: v for k, v in small().config.items() if k not in ("value_range", "input_norm")}
    path = exported(tmp_path, config=json.dumps(config))
    assert load_generator(path).config == small().config
    assert same_weights(load_weights(small(seed=1), path), small())


def test_the_ranges_of_a_file_can_be_overruled(tmp_path: Path) -> None:
    path = exported(tmp_path)
    changed = load_generator(path, output="tanh", value_range="0..1")
    assert changed.config == {**small().config, "output": "tanh", "value_range": "0..1"}
    lr = noise(1, 3, 5, 6)
    with torch.no_grad():
        assert torch.allclose(changed.eval()(lr), (2 * small().eval()(lr) - 1).tanh(), atol=1e-6)


def test_a_network_without_such_options_refuses_them(tmp_path: Path) -> None:
    export_generator(BUILDERS["rrdbnet"](blocks=1, channels=4, growth=4), "a", run_dir=tmp_path)
    with pytest.raises(ValueError, match="a holds a rrdbnet, which has no choice of value_range; leave it at 'auto'"):
        load_generator(str(tmp_path / "a"), value_range="0..1")


def test_an_export_of_spandrels_is_sent_to_its_node(tmp_path: Path) -> None:
    path = exported(tmp_path, architecture="spandrel/SwinIR")
    with pytest.raises(ValueError, match="holds spandrel/SwinIR, a network of spandrel's; load_upscaler reads it"):
        load_generator(path)


@pytest.mark.parametrize(
    "change",
    [{"scale": 6}, {"scale": "4"}, {"blocks": 0}, {"blocks": 10**9}, {"colour": 1}, {"rng": 1}, {"device": "x"}],
)
def test_options_that_the_network_cannot_have_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (name,) = change
    path = exported(tmp_path, config=json.dumps({**small().config, **change}))
    with pytest.raises(ValueError, match=rf"has options that srresnet cannot: {name} \(.*\); export it again"):
        load_generator(path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tensors = small().state_dict()
    kernel = tensors.pop("tail.weight")
    refused(exported(tmp_path, tensors), r"do not fit the network: missing: tail\.weight$")
    refused(exported(tmp_path, {**tensors, "tail.weight": kernel, "b": torch.ones(1)}), "do not fit.*: unexpected: b$")
    misshapen = {**tensors, "tail.weight": kernel[:, :4].contiguous()}
    refused(exported(tmp_path, misshapen), r"another shape: tail\.weight \[3, 4, 9, 9\] instead of \[3, 8, 9, 9\]")
    refused(exported(tmp_path, {**tensors, "tail.weight": kernel.int()}), r"not numbers of the same kind: tail\.weight")


def test_many_faults_are_cut_short() -> None:
    with pytest.raises(ValueError, match=r"missing: a, b, c and 2 more$"):
        check_fits({name: torch.zeros(1) for name in "abcde"}, {}, "x")


def test_another_configuration_is_told_option_by_option(tmp_path: Path) -> None:
    export_generator(small(scale=2, prelu="channel"), run_dir=tmp_path)
    model = small(seed=1)
    before = clone(model)
    with pytest.raises(ValueError, match="prelu is 'channel' instead of 'layer', scale is 2 instead of 4; set these"):
        load_weights(model, str(tmp_path / "generator.safetensors"))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_engine_reads_the_nodes() -> None:
    assert node_type(load_weights).mutations == {"generator": 0}
    assert node_type(export_generator).is_output
    assert node_type(generate).injected == {"training": "training"}


def test_weights_that_ship_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name, by_path = (
        load_generator(text) for text in ("srresnet_small_x4", "sr_nodes:weights/srresnet_small_x4.safetensors")
    )
    assert same_weights(by_name, by_path)
    started = load_weights(srresnet(**{str(k): v for k, v in by_name.config.items()}), "srresnet_small_x4")
    assert same_weights(started, by_name)
    above = tmp_path / "a" / "b"
    above.mkdir(parents=True)
    export_generator(small(3), "own.safetensors", run_dir=tmp_path)
    monkeypatch.chdir(above)
    assert same_weights(load_generator("../../own.safetensors"), small(3))
    with pytest.raises(ValueError, match=r"vgg19_features_8bit"):
        load_generator("vgg19_features_8bit")
