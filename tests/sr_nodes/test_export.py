"""Files for other programs give the generator's SR at every size, and are there whole or not at all."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_nodes.export import export_model, export_onnx, export_torchscript
from sr_nodes.generators import generate, load_generator
from sr_nodes.inference import prepared
from sr_nodes.rrdbnet import rrdbnet
from sr_nodes.spandrel_nets import SpandrelNet
from sr_nodes.srresnet import msrresnet, srresnet
from sr_nodes.types import Generator
from sr_nodes.upscalers import Interpolation

SIZES = [(16, 16), (7, 13), (24, 8)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained() -> Generator:
    generator = srresnet(blocks=1, channels=8, rng=rng())
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=rng(1))
            module.running_var = torch.rand(module.num_features, generator=rng(2)) + 0.5
    return generator


GENERATORS: dict[str, Any] = {
    "srresnet": (trained, 1),
    "msrresnet x3": (lambda: msrresnet(3, blocks=1, channels=8, rng=rng()), 1),
    "rrdbnet": (lambda: rrdbnet(blocks=1, channels=8, growth=4, rng=rng()), 1),
    "rrdbnet x2": (lambda: rrdbnet(2, blocks=1, channels=8, growth=4, rng=rng()), 2),
}


def onnx_sr(path: Path, lr: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["sr"], {"lr": lr.numpy()})[0])


def torchscript_sr(path: Path, lr: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module: Any = torch.jit.load(path)  # type: ignore[no-untyped-call]
    sr: Tensor = module(lr)
    return sr


def check(read: Any, path: Path, generator: Generator, grid: int) -> None:
    for batch, (height, width) in enumerate(SIZES, start=1):
        lr = torch.rand(batch, 3, grid * height, grid * width, generator=rng(batch))
        found, wanted = read(path, lr), generate(generator, lr)
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_onnx_of_any_size(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    build, grid = GENERATORS[name]
    generator = build()
    export_onnx(generator, run_dir=tmp_path)
    check(onnx_sr, tmp_path / "generator.onnx", generator, grid)
    assert [p.name for p in tmp_path.iterdir()] == ["generator.onnx"]


@pytest.mark.parametrize("name", GENERATORS)
def test_torchscript_of_any_size(tmp_path: Path, name: str) -> None:
    build, grid = GENERATORS[name]
    generator = build()
    export_torchscript(generator, run_dir=tmp_path)
    check(torchscript_sr, tmp_path / "generator.pt", generator, grid)
    assert [p.name for p in tmp_path.iterdir()] == ["generator.pt"]


def test_onnx_of_a_network_that_torchs_newer_exporter_crashes_on(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    spandrel = pytest.importorskip("spandrel", reason="the extra 'spandrel' is not installed")
    torch.manual_seed(0)
    build = importlib.import_module("spandrel.architectures.SPAN").SPAN
    weights = build(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).state_dict()
    generator = SpandrelNet(spandrel.ModelLoader().load_from_state_dict(weights)).float()
    export_onnx(generator, run_dir=tmp_path)
    check(onnx_sr, tmp_path / "generator.onnx", generator, 1)


def test_the_generator_is_left_as_it_was_and_the_sr_is_clamped(tmp_path: Path) -> None:
    generator = trained().train()
    nn.init.constant_(generator.get_parameter("tail.bias"), 5)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    export_torchscript(generator, "deep/er.pt", run_dir=tmp_path)
    assert generator.training
    assert all(p.requires_grad for p in generator.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
    assert float(torchscript_sr(tmp_path / "deep" / "er.pt", torch.rand(1, 3, 4, 4)).max()) == 1


def test_a_prepared_generator_is_exported_as_its_original(tmp_path: Path) -> None:
    generator = trained()
    export_torchscript(prepared(generator, "bf16"), run_dir=tmp_path)
    check(torchscript_sr, tmp_path / "generator.pt", generator, 1)


@pytest.mark.parametrize(
    ("to", "name"), [("onnx", "a.onnx"), ("torchscript", "b.pt"), ("safetensors", "c.safetensors")]
)
def test_a_model_is_written_where_it_is_told(tmp_path: Path, to: Any, name: str) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    generator, out = trained(), tmp_path / "anywhere" / name
    text = export_model(generator, to, str(out))
    assert export_model(prepared(generator), to, str(out)) == text
    assert text == f"{out}: {to}, srresnet x4, {out.stat().st_size / 2**20:.1f} MiB"
    lr = torch.rand(1, 3, 9, 8)
    readers: dict[str, Any] = {
        "onnx": onnx_sr,
        "torchscript": torchscript_sr,
        "safetensors": lambda path, lr: generate(load_generator(str(path)), lr),
    }
    assert torch.allclose(readers[to](out, lr), generate(generator, lr), rtol=0, atol=1e-4)


def test_without_a_place_a_model_is_in_the_runs_folder(tmp_path: Path) -> None:
    export_model(trained(), "safetensors", run_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["generator.safetensors"]


class Low(Generator):
    """Does for low pictures what a trace of a higher one does not know."""

    architecture, scale = "low", 1

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, lr: Tensor) -> Tensor:
        return lr / 4 if lr.shape[2] < 12 else lr


class Fixed(Low):
    """Knows its size when it is built."""

    def forward(self, lr: Tensor) -> Tensor:
        return lr + torch.zeros(1, 1, 12, 15) if lr.shape[-1] == 15 else lr


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    wanted = (
        "the TorchScript file's SR of a picture of 13 x 9 differs from the generator's by 0.7[0-9]*, more than 0.0001"
    )
    with pytest.raises(ValueError, match=wanted):
        export_torchscript(Low(), run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_that_onnx_cannot_hold_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    with pytest.raises(ValueError, match="this interpolation cannot be written as ONNX: Error when translating"):
        export_onnx(Interpolation("bicubic", 4), run_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"this low can be written as ONNX for pictures of \['batch', 3, 12, 15\] alone"
    ):
        export_onnx(Fixed(), run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"needs {missing} .*; pip install 'sr-pipeline\[onnx\]'"):
        export_onnx(trained(), run_dir=tmp_path)


@pytest.mark.parametrize("export", [export_onnx, export_torchscript])
@pytest.mark.parametrize("filename", ["../a", "", "/a/b.onnx"])
def test_a_name_outside_the_runs_folder(tmp_path: Path, export: Any, filename: str) -> None:
    with pytest.raises(ValueError, match=r"is (outside of the run's folder|no name); give a path in it"):
        export(trained(), filename, run_dir=tmp_path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; give a file's name in it"):
        export_model(trained(), "safetensors", str(tmp_path))


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    out = tmp_path / "file" / "generator.onnx"
    with pytest.raises(ValueError, match=r"generator\.onnx cannot be written: .+; give another path"):
        export_model(trained(), "onnx", str(out))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that even root cannot write to")
@pytest.mark.parametrize("to", ["torchscript", "safetensors"])
@pytest.mark.parametrize("out", ["/proc/self/generator", "/proc/self/new/generator"])
def test_a_folder_that_cannot_be_written_to(to: Any, out: str) -> None:
    with pytest.raises(ValueError, match=f"{out} cannot be written: .+; give another path"):
        export_model(trained(), to, out)


@pytest.mark.parametrize(
    ("to", "name"),
    [("onnx", "a.pt"), ("torchscript", "a.ONNX"), ("safetensors", "a.pth"), ("torchscript", "a.safetensors")],
)
def test_a_name_of_another_kind(tmp_path: Path, to: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}' and the kind {to} contradict each other; name it "):
        export_model(trained(), to, str(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_an_interpolation_has_no_weights(tmp_path: Path) -> None:
    bicubic = Interpolation("bicubic", 4)
    for generator in (bicubic, prepared(bicubic)):
        with pytest.raises(ValueError, match="this interpolation has no weights for safetensors; export it as torch"):
            export_model(generator, "safetensors", str(tmp_path / "a.safetensors"))
    export_model(bicubic, "torchscript", str(tmp_path / "a.pt"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
