"""One picture: what is enlarged, what stays, what a mistake is told, and the graph in the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sr_nodes.generators import export_generator
from sr_nodes.inference import Prepared, prepared
from sr_nodes.picture_files import Picture, read_whole
from sr_nodes.srresnet import srresnet
from sr_nodes.types import Generator
from sr_nodes.upscale import find_upscaler, load_picture, save_picture, upscale_picture
from sr_nodes.upscalers import BEST
from sr_pipeline.errors import GraphError
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sockets import Reporter

NEAREST = find_upscaler("nearest")


class Warnings(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


class Tinted(Generator):
    """Twice as large; red one level more, blue two levels less."""

    architecture, scale = "tinted", 2

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, lr: Tensor) -> Tensor:
        tint = torch.tensor([1.0, 0.0, -2.0]).view(3, 1, 1) / 255
        return lr.repeat_interleave(2, 2).repeat_interleave(2, 3) + tint


def drawn(channels: int, dtype: torch.dtype = torch.uint8, height: int = 5, width: int = 6) -> Tensor:
    top = 256 if dtype == torch.uint8 else 65536
    return torch.randint(0, top, (channels, height, width), generator=torch.Generator().manual_seed(1)).to(dtype)


def larger(pixels: Tensor) -> Tensor:
    return torch.from_numpy(np.kron(pixels.numpy(), np.ones((1, 4, 4), pixels.numpy().dtype)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_picture_by_nearest(dtype: torch.dtype, channels: int) -> None:
    """Gray, alpha and depth stay, and all else that a picture holds."""
    alpha = drawn(1, dtype).int().clamp(min=1).to(dtype)
    picture = Picture(drawn(channels, dtype), alpha, b"profile", b"exif", b"xmp", (300.0, 300.0), "TIFF", ("a note",))
    large = upscale_picture(NEAREST, picture)
    assert torch.equal(large.pixels, larger(picture.pixels))
    assert large.alpha is not None
    assert torch.equal(large.alpha, larger(alpha))
    assert replace(large, pixels=picture.pixels, alpha=alpha).__dict__ == picture.__dict__


def test_gray_is_the_mean_of_what_the_generator_makes_of_it() -> None:
    gray = torch.tensor([[[10, 20]]], dtype=torch.uint8)
    large = upscale_picture(Tinted(), Picture(gray))
    assert large.pixels.tolist() == [[[10, 10, 20, 20]] * 2][0:1]  # the mean of v + 1, v and v - 2, rounded


def test_one_value_of_alpha_is_not_computed() -> None:
    alpha = torch.full((1, 5, 6), 7, dtype=torch.uint8)
    large = upscale_picture(Tinted(), Picture(drawn(3), alpha))
    assert large.alpha is not None
    assert large.alpha.shape == (1, 10, 12)
    assert set(large.alpha.flatten().tolist()) == {7}


def test_colours_nobody_sees_leave_no_fringe() -> None:
    """Black below full transparency beside white: by bicubic, what shows stays white."""
    pixels, alpha = torch.zeros(3, 9, 13, dtype=torch.uint8), torch.zeros(1, 9, 13, dtype=torch.uint8)
    pixels[:, :, 7:], alpha[:, :, 7:] = 255, 255
    large = upscale_picture(find_upscaler("bicubic"), Picture(pixels, alpha))
    assert int(large.pixels.min()) == 255
    clear = Picture(pixels, torch.zeros_like(alpha))
    assert torch.equal(upscale_picture(NEAREST, clear).pixels, larger(pixels))


def test_tiles_are_those_of_the_whole() -> None:
    generator = srresnet(blocks=1, channels=4, rng=torch.Generator().manual_seed(0))
    picture = Picture(drawn(3, torch.uint16, 40, 50))
    whole, tiled = (upscale_picture(generator, picture, tile=tile).pixels.int() for tile in (None, 16))
    assert int((whole - tiled).abs().max()) <= 1


def test_find_upscaler(tmp_path: Path) -> None:
    assert isinstance(NEAREST, Prepared)
    assert (NEAREST.scale, NEAREST.precision) == (4, "fp32")
    assert find_upscaler(BEST).architecture == "srresnet"
    assert find_upscaler("bicubic", precision="bf16").precision == "bf16"
    mine = srresnet(scale=2, blocks=1, channels=4)
    export_generator(mine, run_dir=tmp_path)
    found = find_upscaler(str(tmp_path / "generator.safetensors"))
    lr = torch.rand(1, 3, 8, 8)
    assert found.scale == 2
    assert torch.equal(found(lr), prepared(mine)(lr))


@pytest.mark.parametrize("amx", [True, False])
def test_bf16_that_is_slower_is_warned_of(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    report = Warnings()
    find_upscaler("bicubic", precision="auto", report=report)
    assert report.texts == []
    find_upscaler("bicubic", precision="bf16", report=report)
    assert report.texts == ([] if amx else ["this cpu has no units for bf16, and is slower in it than in fp32"])


def test_a_model_that_cannot_be_found_names_the_ways_to_get_one(tmp_path: Path) -> None:
    words = (
        rf"no model 'nix': give the name of one that ships \(.*{BEST}.*\), bicubic or nearest, or a file: "
        r".*sr-pipeline run train_srgan.*load_upscaler"
    )
    with pytest.raises(ValueError, match=words):
        find_upscaler("nix")
    with pytest.raises(ValueError, match=rf"no model '{BEST[:-1]}'; did you mean '{BEST}'\? Or give the name"):
        find_upscaler(BEST[:-1])
    mine = srresnet(blocks=1, channels=4)
    export_generator(mine, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"in its folder: did you mean 'generator\.safetensors'\? Or give the name"):
        find_upscaler(str(tmp_path / "genrator.safetensors"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_of_a_diverged_training_are_refused(tmp_path: Path, value: float) -> None:
    mine = srresnet(blocks=1, channels=4)
    torch.nn.init.constant_(mine.get_parameter("tail.bias"), value)
    export_generator(mine, run_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"has values in tail\.bias that are not finite .*: its training diverged; give"
    ):
        find_upscaler(str(tmp_path / "generator.safetensors"))


def test_a_reason_that_both_loaders_have_is_told_once(tmp_path: Path) -> None:
    contents = {"bad.safetensors": b"no weights", "bad.pth": b"PK", "bad.onnx": b"", "bad": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"/{name} ") as caught:
            find_upscaler(str(tmp_path / name))
        assert str(caught.value).count(name) == 1
    with pytest.raises(
        ValueError, match=r" is a folder; give a weights file, in its folder: did you mean 'bad\.safetensors'"
    ):
        find_upscaler(str(tmp_path))
    save_file({"strange": torch.ones(1)}, tmp_path / "strange.safetensors")
    with pytest.raises(ValueError, match=r"in no layout that load_generator knows.*; and by load_upscaler: "):
        find_upscaler(str(tmp_path / "strange.safetensors"))


def test_load_picture_warns_once(tmp_path: Path) -> None:
    first, second = PIL.Image.new("RGB", (8, 8), "red"), PIL.Image.new("RGB", (4, 4))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    report = Warnings()
    assert load_picture(str(tmp_path / "a.jpg"), report=report).notes == ()
    assert report.texts == [f"{tmp_path / 'a.jpg'}: the first picture of several is taken"]


def test_save_picture(tmp_path: Path) -> None:
    picture, report = Picture(drawn(3), torch.zeros(1, 5, 6, dtype=torch.uint8)), Warnings()
    save_picture(picture, "sub/a.png", run_dir=tmp_path, report=report)
    read = read_whole(tmp_path / "sub" / "a.png")
    assert torch.equal(read.pixels, picture.pixels)
    assert report.texts == []
    save_picture(picture, "a.jpg", quality=10, run_dir=tmp_path, report=report)
    assert report.texts == ["a.jpg: transparency was put on white, because JPEG has none"]
    with pytest.raises(ValueError, match=r"'a\.gif' has the suffix '\.gif'; write one of \.png"):
        save_picture(picture, "a.gif", run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'\.\./a\.png' is outside of the run's folder"):
        save_picture(picture, "../a.png", run_dir=tmp_path)


def test_a_png_repeats_itself(registry: Registry, tmp_path: Path) -> None:
    """The graph that ran is in its picture; run again from there, it gives the same bytes."""
    PIL.Image.fromarray(drawn(3).permute(1, 2, 0).numpy()).save(tmp_path / "caf\u00e9.png")
    graph = Graph()
    photo = graph.add("load_picture", id="photo", path=str(tmp_path / "caf\u00e9.png"))
    generator = graph.add("find_upscaler", id="generator", path="bicubic")
    sr = graph.add("upscale_picture", id="sr", generator=generator, picture=photo, tile=None)
    graph.add("save_picture", id="save", picture=sr)
    run(graph, registry=registry, run_dir=tmp_path / "first")
    made = tmp_path / "first" / "upscaled.png"
    with PIL.Image.open(made) as picture:
        picture.load()
        assert picture.info["prompt"].isascii()
        assert json.loads(picture.info["prompt"]) == json.loads(graph.to_json())
    again = Graph.load(made)
    assert again == graph
    with pytest.raises(GraphError, match=r"photo\.path: .* is outside of the folders that this graph may read"):
        run(again, registry=registry, run_dir=tmp_path / "second")  # the current folder is another one
    run(again.limited_to(tmp_path), registry=registry, run_dir=tmp_path / "second")
    assert (tmp_path / "second" / "upscaled.png").read_bytes() == made.read_bytes()
