"""Pictures that a run writes, read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from sr_nodes.degradation import bicubic, bicubic_upscale
from sr_nodes.images import Window, busiest_window, comparison, preview, save_image
from sr_nodes.metrics import psnr
from sr_nodes.pictures import load_image, read_picture, to_image, to_uint8
from sr_pipeline.graph import Entry, Graph
from sr_pipeline.sockets import Reporter


class Album(Reporter):
    def __init__(self) -> None:
        self.paths: list[Path] = []

    def image(self, path: Path) -> None:
        self.paths.append(path)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# preview


def test_preview_is_lr_sr_hr_in_rows(tmp_path: Path) -> None:
    lr, sr, hr = images(3, 3, 4, 5), images(3, 3, 8, 10, seed=1), images(3, 3, 8, 10, seed=2)
    album = Album()
    preview(lr, sr, hr, max_images=2, run_dir=tmp_path, step=499, report=album)
    assert album.paths == [tmp_path / "previews/00000500.png"]
    assert files(tmp_path) == ["previews/00000500.png"]
    sheet = read_picture(album.paths[0])
    assert sheet.shape == (3, 8 + 4 + 8, 10 + 4 + 10 + 4 + 10)
    for row, top in enumerate((0, 12)):
        cells = [sheet[:, top : top + 8, left : left + 10] for left in (0, 14, 28)]
        enlarged = to_uint8(lr[row]).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        assert torch.equal(cells[0], enlarged)
        assert torch.equal(cells[1], to_uint8(sr[row]))
        assert torch.equal(cells[2], to_uint8(hr[row]))
    gaps = torch.ones(20, 38, dtype=torch.bool)
    for top in (0, 12):
        for left in (0, 14, 28):
            gaps[top : top + 8, left : left + 10] = False
    assert (sheet[:, gaps] == 255).all()


def test_preview_of_a_training_sr(tmp_path: Path) -> None:
    lr, hr = images(1, 3, 4, 4), images(1, 3, 8, 8)
    sr = (4 * images(1, 3, 8, 8) - 2).requires_grad_()  # not clamped, and with a graph
    preview(lr, sr * 1, hr, name="late", run_dir=tmp_path)
    sheet = read_picture(tmp_path / "late/00000001.png")
    assert torch.equal(sheet[:, :, 12:20], to_uint8(sr.clamp(0, 1))[0])


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "/tmp/x", "checkpoints"])
def test_preview_stays_in_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is (outside of the run's folder|no name|the run's own); give a path in it"):
        preview(images(1, 3, 2, 2), images(1, 3, 4, 4), images(1, 3, 4, 4), name=name, run_dir=tmp_path)
    assert files(tmp_path) == []


def test_preview_refuses_batches_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lr is \[1, 3, 2, 2\], sr \[1, 3, 4, 4\] and hr \[1, 3, 4, 5\]; sr and"):
        preview(images(1, 3, 2, 2), images(1, 3, 4, 4), images(1, 3, 4, 5), run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"lr is \[2, 3, 2, 2\], .* all three the same number of images"):
        preview(images(2, 3, 2, 2), images(1, 3, 4, 4), images(1, 3, 4, 4), run_dir=tmp_path)


# save_image


@pytest.mark.parametrize("filename", ["image.png", "sub/é.webp"])
def test_save_image_of_one_is_lossless(tmp_path: Path, filename: str) -> None:
    image, album = images(1, 3, 6, 9), Album()
    save_image(image, filename, run_dir=tmp_path, report=album)
    assert album.paths == [tmp_path / filename]
    assert torch.equal(to_image(read_picture(tmp_path / filename)), to_uint8(image) / 255)


def test_each_png_carries_the_graph_of_its_run(tmp_path: Path) -> None:
    graph = Graph({"a": Entry("load_image", {"path": "naïve.png"})})
    graph.save(tmp_path / "graph.json")
    for filename in ("a.png", "a.webp"):
        save_image(images(2, 3, 4, 4), filename, run_dir=tmp_path)
    assert [Graph.load(tmp_path / f"a-000{n}.png") for n in (1, 2)] == [graph] * 2


def test_save_image_of_a_batch_is_numbered(tmp_path: Path) -> None:
    image, album = images(3, 3, 6, 9), Album()
    save_image(image, "out/x.png", run_dir=tmp_path, report=album)
    assert files(tmp_path) == ["out/x-0001.png", "out/x-0002.png", "out/x-0003.png"]
    assert [torch.equal(read_picture(p), to_uint8(i)) for p, i in zip(album.paths, image, strict=True)] == [True] * 3


def test_save_image_as_jpeg_keeps_colour_at_full_size(tmp_path: Path) -> None:
    image = load_image("sr_nodes:samples/test/picture-1a.jpg")[:, :, :128, :128]
    save_image(image, "a.JPG", run_dir=tmp_path)
    with PIL.Image.open(tmp_path / "a.JPG") as picture:
        assert picture.format == "JPEG"
        assert [component[1:3] for component in picture.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    assert psnr(to_image(read_picture(tmp_path / "a.JPG")), image, "rgb") > 36


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("../a.png", r"'\.\./a\.png' is outside of the run's folder; give a path in it"),
        ("/tmp/outside.png", "'/tmp/outside.png' is outside of the run's folder"),
        ("sub/../../a.png", "is outside of the run's folder"),
        ("a.gif", r"'a\.gif' has the suffix '\.gif'; write one of \.png \.jpg \.jpeg \.webp"),
        ("a", "has the suffix ''; write one of"),
    ],
)
def test_save_image_refuses_other_places_and_kinds(tmp_path: Path, filename: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_image(images(1, 3, 4, 4), filename, run_dir=tmp_path / "run")
    assert files(tmp_path) == []


# comparison


def test_the_busiest_window_is_where_sr_and_baseline_differ_most() -> None:
    baseline = images(1, 3, 480, 600)
    sr = baseline.clone()
    sr[:, :, 200:260, 400:470] += 0.5
    sr[:, 0, 10, 10] += 2  # a single wild pixel is less
    window = busiest_window(sr, baseline, 4)
    assert window.side == 80
    assert window.top % 4 == window.left % 4 == 0
    assert 180 <= window.top <= 200
    assert 388 <= window.left <= 400


@pytest.mark.parametrize(("height", "width", "scale", "side"), [(40, 60, 4, 40), (100, 90, 4, 48), (600, 900, 3, 102)])
def test_the_window_fits_the_picture_and_the_scale(height: int, width: int, scale: int, side: int) -> None:
    window = busiest_window(images(1, 3, height, width), images(1, 3, height, width, seed=1), scale)
    assert window.side == side
    assert window.side % scale == 0
    assert window.top + side <= height
    assert window.left + side <= width
    assert window.divided(scale) == Window(window.top // scale, window.left // scale, side // scale)


def test_comparison_shows_the_window_of_all_four(tmp_path: Path) -> None:
    hr = load_image("sr_nodes:samples/test/picosdeeuropa.jpg")[:, :, 200:440, 300:620]
    lr = bicubic(hr)
    baseline = bicubic_upscale(lr)
    sr = (hr + baseline) / 2
    album = Album()
    comparison(lr, baseline, sr, hr, run_dir=tmp_path, report=album)
    assert album.paths == [tmp_path / "comparison.png"]
    sheet = read_picture(album.paths[0])
    window = busiest_window(sr, baseline, 4)
    assert window.side == 48
    side = 7 * 48  # 320 / 48 is nearest to 7
    left = [sheet.shape[2] - 2 * (side + 16), sheet.shape[2] - (side + 16)]
    top = [16, 16 + side + 34 + 16]
    views = [window.divided(4).cut(lr), window.cut(baseline), window.cut(sr), window.cut(hr)]
    for index, view in enumerate(views):
        row, column = divmod(index, 2)
        found = sheet[:, top[row] : top[row] + side, left[column] : left[column] + side]
        factor = side // view.shape[2]
        assert torch.equal(found, to_uint8(view)[0].repeat_interleave(factor, 1).repeat_interleave(factor, 2))
    labels = sheet[:, top[0] + side : top[0] + side + 34, left[0] :]
    assert (labels < 100).any()
    assert sheet[:, :16].min() == 255


def test_comparison_marks_the_window_on_the_whole_picture(tmp_path: Path) -> None:
    hr = torch.zeros(1, 3, 240, 320)
    sr = hr.clone()
    sr[:, :, 100:130, 200:230] = 0.5
    comparison(bicubic(hr), hr, sr, hr, "a.png", run_dir=tmp_path)
    sheet = read_picture(tmp_path / "a.png").permute(1, 2, 0).numpy()
    rows, columns = np.where((sheet == np.array([230, 57, 70])).all(axis=2))
    window = busiest_window(sr, hr, 4)
    ratio = (2 * (7 * 48 + 34) + 16 - 34) / 240
    found = np.array([rows.min() - 16, columns.min() - 16, rows.max() - rows.min() + 1])
    assert found == pytest.approx(np.array(window) * ratio, abs=1)


def test_comparison_of_the_baseline_with_itself_shows_where_it_is_worst(tmp_path: Path) -> None:
    hr = torch.zeros(1, 3, 240, 320)
    hr[:, :, 100:130, 200:230] = 0.5
    same = torch.zeros_like(hr)
    comparison(bicubic(hr), same, same, hr, "equal.png", run_dir=tmp_path)
    comparison(bicubic(hr), same, hr, hr, "other.png", run_dir=tmp_path)
    mark = np.array([230, 57, 70])
    places = [
        np.where((read_picture(tmp_path / name).permute(1, 2, 0).numpy() == mark).all(axis=2))
        for name in ("equal.png", "other.png")
    ]
    assert np.array_equal(places[0], places[1])


def test_comparison_of_what_cannot_be_compared(tmp_path: Path) -> None:
    lr, hr = images(1, 3, 12, 12), images(1, 3, 48, 48)
    with pytest.raises(ValueError, match=r"sr \[1, 3, 44, 48\] and hr \[1, 3, 48, 48\]; sr and hr need one shape"):
        comparison(lr, hr, hr[:, :, :44], hr, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"baseline \[1, 3, 48, 44\] and hr \[1, 3, 48, 48\]; baseline and hr"):
        comparison(lr, hr[:, :, :, :44], hr, hr, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"lr is \[1, 3, 12, 11\] and hr \[1, 3, 48, 48\]; give one image and its LR"):
        comparison(lr[:, :, :, :11], hr, hr, hr, run_dir=tmp_path)
    lrs, hrs = lr.repeat(2, 1, 1, 1), hr.repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"lr is \[2, 3, 12, 12\] and hr \[2, 3, 48, 48\]; give one image"):
        comparison(lrs, hrs, hrs, hrs, run_dir=tmp_path)
    with pytest.raises(ValueError, match="is outside of the run's folder"):
        comparison(lr, hr, hr, hr, "../a.png", run_dir=tmp_path)
    assert files(tmp_path) == []
