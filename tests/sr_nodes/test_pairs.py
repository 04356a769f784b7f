"""Test sets: pairs at once, and as a stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sr_nodes.degradation import bicubic
from sr_nodes.pairs import Label, image_pairs, pair_stream
from sr_nodes.pictures import UnreadablePicture, load_image, read_picture, write_png
from sr_pipeline.sockets import Reporter

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_testsets = pytest.mark.skipif(not (SHARED / "testsets").is_dir(), reason=f"no test sets in {SHARED}")


class Notes(Reporter):
    """Keeps how far a node was."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.warnings: list[str] = []

    def progress(self, done: int, total: int) -> None:
        self.done.append((done, total))

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def coordinates(number: int, height: int, width: int) -> Tensor:
    """A picture that tells of each pixel where it is: red a number, green the row, blue the column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.full_like(rows, number), rows, columns]).to(torch.uint8)


def written(folder: Path, *sizes: tuple[int, int]) -> Path:
    for number, size in enumerate(sizes):
        write_png(folder / f"{number:02d}.png", coordinates(number, *size))
    return folder


def levels(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.int64)


def test_pairs_of_the_pack() -> None:
    pairs = image_pairs()
    assert [pair.name for pair in pairs] == ["picosdeeuropa", "picture-1a"]
    whole = load_image("sr_nodes:samples/test/picosdeeuropa.jpg")
    assert torch.equal(pairs[0].hr, whole)
    assert torch.equal(pairs[0].lr, bicubic(whole, 4, eight_bit=True))
    assert torch.equal(pairs[0].lr, levels(pairs[0].lr) / 255)


def test_hr_alone_is_cut_at_the_right_and_the_bottom_to_a_multiple_of_scale(tmp_path: Path) -> None:
    folder = written(tmp_path, (22, 31))
    (pair,) = image_pairs(str(folder), scale=4)
    assert (pair.name, pair.lr.shape, pair.hr.shape) == ("00", (1, 3, 5, 7), (1, 3, 20, 28))
    assert torch.equal(levels(pair.hr)[0], coordinates(0, 22, 31)[:, :20, :28].to(torch.int64))


def test_hr_alone_is_cut_to_the_middle(tmp_path: Path) -> None:
    folder = written(tmp_path, (22, 31))
    (pair,) = image_pairs(str(folder), scale=4, crop=14)
    assert torch.equal(levels(pair.hr)[0], coordinates(0, 22, 31)[:, 5:17, 9:21].to(torch.int64))
    (pair,) = image_pairs(str(folder), scale=4, crop=25)
    assert torch.equal(levels(pair.hr)[0], coordinates(0, 22, 31)[:, 1:21, 3:27].to(torch.int64))


def write_pair(folder: Path, name: str, lr: tuple[int, int], hr: tuple[int, int]) -> None:
    write_png(folder / f"{name}_LR.png", coordinates(1, *lr))
    write_png(folder / f"{name}_HR.png", coordinates(2, *hr))


def test_pairs_of_files_beside_each_other(tmp_path: Path) -> None:
    write_pair(tmp_path / "sub", "b", (10, 12), (20, 24))
    write_pair(tmp_path, "a", (10, 12), (20, 24))
    write_png(tmp_path / "a_other.png", coordinates(3, 20, 24))
    notes = Notes()
    pairs = image_pairs(str(tmp_path), scale=2, report=notes)
    assert [pair.name for pair in pairs] == ["a", "sub/b"]
    assert torch.equal(levels(pairs[0].lr)[0], coordinates(1, 10, 12).to(torch.int64))
    assert torch.equal(levels(pairs[1].hr)[0], coordinates(2, 20, 24).to(torch.int64))
    assert notes.done == [(1, 2), (2, 2)]
    other = tmp_path / "a_other.png"
    assert notes.warnings == [f"passed over: {other} is neither NAME_LR nor NAME_HR, as others in its folder are"]
    notes.warnings.clear()
    assert len(list(pair_stream((str(tmp_path),), scale=2, report=notes))) == len(notes.warnings) + 1 == 2


def test_hr_and_lr_in_a_naming_of_their_own_are_not_measured_as_hr_in_silence(tmp_path: Path) -> None:
    for name, size in (("GTmod12", 24), ("LRbicx4", 6)):
        written(tmp_path / name, (size, size), (size, size))
    notes = Notes()
    assert len(image_pairs(str(tmp_path), report=notes)) == 4
    (warning,) = notes.warnings
    twins = f"{tmp_path}/GTmod12/00.png and {tmp_path}/LRbicx4/00.png"
    assert warning.startswith(f"{twins} have one name, and each is taken for an HR")
    notes.warnings.clear()
    assert len(image_pairs(str(tmp_path / "GTmod12"), report=notes)) == 2
    assert notes.warnings == []


@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 4), st.integers(4, 60))
def test_the_middle_of_a_pair_is_the_same_place_in_both(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, scale: int, crop: int
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    write_pair(folder, "a", (height, width), (scale * height, scale * width))
    (pair,) = image_pairs(str(folder), scale=scale, crop=crop)
    lr, hr = levels(pair.lr)[0], levels(pair.hr)[0]
    assert lr.shape == (3, min(height, crop // scale), min(width, crop // scale))
    assert torch.equal(hr[1:, ::scale, ::scale], scale * lr[1:])
    assert torch.equal(hr[1:, scale - 1 :: scale, scale - 1 :: scale], scale * lr[1:] + scale - 1)


def test_pairs_that_do_not_fit(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", (10, 12), (20, 24))
    with pytest.raises(ValueError, match=r"a_HR\.png has 24x20 pixels and a_LR\.png 12x10: not 4 times as many a side"):
        image_pairs(str(tmp_path))
    write_png(tmp_path / "b_HR.png", coordinates(0, 20, 24))
    with pytest.raises(ValueError, match=r"no partner for b in '.*'; each NAME_LR needs a NAME_HR"):
        image_pairs(str(tmp_path), scale=2)


def test_pictures_that_make_no_pair(tmp_path: Path) -> None:
    written(tmp_path, (3, 40))
    with pytest.raises(ValueError, match=r"00\.png has 40x3 pixels, less than one LR pixel at scale 4"):
        image_pairs(str(tmp_path))
    with pytest.raises(ValueError, match="crop is 3 pixels, less than one LR pixel at scale 4; use 0 for whole"):
        image_pairs(str(tmp_path), crop=3)
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadablePicture, match=r"empty\.png: the file is empty"):
        image_pairs(str(tmp_path), scale=2)


@needs_testsets
def test_set5() -> None:
    pairs = image_pairs(str(SHARED / "testsets" / "Set5"))
    assert [pair.name for pair in pairs] == [f"img_{number:03d}_SRF_4" for number in range(1, 6)]
    stored = read_picture(SHARED / "testsets" / "Set5" / "img_002_SRF_4_LR.png")
    assert torch.equal(levels(pairs[1].lr)[0], stored.to(torch.int64))
    # The data set's own LR is an imresize of its HR, to a fraction of a gray level.
    assert float((pairs[1].lr - bicubic(pairs[1].hr)).abs().mean()) < 0.5 / 255


def test_folders_of_hr_and_lr(tmp_path: Path) -> None:
    """DIV2K's naming; an HR with rows and columns that are no whole LR pixel loses them."""
    for name, lr_name in (("0801", "0801x4"), ("0802", "0802x4")):
        write_png(tmp_path / "HR" / f"{name}.png", coordinates(1, 22, 41))
        write_png(tmp_path / "LR_bicubic" / "X4" / f"{lr_name}.png", coordinates(2, 5, 10))
    pairs = image_pairs(str(tmp_path))
    assert [pair.name for pair in pairs] == ["0801", "0802"]
    assert torch.equal(levels(pairs[0].hr)[0], coordinates(1, 20, 40).to(torch.int64))
    (tmp_path / "HR" / "0802.png").unlink()
    with pytest.raises(ValueError, match=r"no partner for 0802 in '.*'; each picture of HR needs its LR"):
        image_pairs(str(tmp_path))


def test_stream_goes_through_the_sets_and_starts_anywhere(tmp_path: Path) -> None:
    written(tmp_path / "one", (20, 24), (8, 12))
    written(tmp_path / "two", (16, 16))
    folders = (str(tmp_path / "one"), str(tmp_path / "two"))
    items = list(pair_stream(folders))
    assert [item.label for item in items] == [Label("one", "00"), Label("one", "01"), Label("two", "00")]
    assert torch.equal(items[1].hr, image_pairs(folders[0])[1].hr)
    assert torch.equal(items[2].lr, image_pairs(folders[1])[0].lr)
    assert [item.label for item in pair_stream(folders, start=2)] == [Label("two", "00")]


def test_stream_names_a_picture_of_which_the_border_leaves_too_little(tmp_path: Path) -> None:
    folder = str(written(tmp_path, (20, 30), (18, 30)))
    assert len(list(pair_stream((folder,), scale=2, border=4, least=10))) == 2
    items = pair_stream((folder,), scale=2, border=4, least=11)
    with pytest.raises(ValueError, match=r"01\.png has 30x18 pixels, and the metrics need 11 a side within"):
        list(items)


def test_stream_of_two_sets_with_one_name(tmp_path: Path) -> None:
    folders = tuple(str(written(tmp_path / part / "Set5", (8, 8))) for part in ("a", "b"))
    with pytest.raises(ValueError, match="two test sets have one name: Set5, Set5; rename a folder"):
        next(pair_stream(folders))


def write_set(folder: Path, high: str, low: str, *names: str) -> None:
    for name in names:
        write_png(folder / high / f"{name}.png", coordinates(1, 20, 40))
        write_png(folder / low / f"{name}x4.png", coordinates(2, 5, 10))


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic/X4"),
        ("HR", "DIV2K_valid_LR_bicubic/X4"),
        ("hr", "lr_bicubic/x4"),
    ],
)
def test_folders_as_div2k_names_them(tmp_path: Path, high: str, low: str) -> None:
    write_set(tmp_path, high, low, "0801", "0802")
    pairs = image_pairs(str(tmp_path))
    assert [pair.name for pair in pairs] == ["0801", "0802"]
    assert torch.equal(levels(pairs[0].lr)[0], coordinates(2, 5, 10).to(torch.int64))
    with pytest.raises(ValueError, match=r"holds X4, and no X2; set scale as the LR are"):
        image_pairs(str(tmp_path), scale=2)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            [("a_HR", "a_LR_bicubic/X4"), ("b_HR", "b_LR_bicubic/X4")],
            "holds the folders a_HR, b_HR, a_LR_bicubic, b_LR",
        ),
        ([("a_HR", "b_LR_bicubic/X4")], "holds a_HR, b_LR_bicubic, which are of two sets; give a folder of one set"),
        ([("HR", "other/X4")], "holds the folders HR, and a set is one of HR and one LR_bicubic; give"),
        ([("other", "LR_bicubic/X4")], "holds the folders LR_bicubic, and a set is one of HR and one LR_bicubic"),
        ([("HR", "LR_bicubic")], "LR_bicubic holds no folder X2, X3, X4, and no X4; set scale as the LR are"),
    ],
)
def test_folders_that_are_no_one_set(tmp_path: Path, sets: list[tuple[str, str]], message: str) -> None:
    for high, low in sets:
        write_set(tmp_path, high, low, "0801")
    with pytest.raises(ValueError, match=message):
        image_pairs(str(tmp_path))


def test_suffixes_without_regard_to_case(tmp_path: Path) -> None:
    write_png(tmp_path / "a_lr.png", coordinates(1, 5, 10))
    write_png(tmp_path / "a_Hr.png", coordinates(2, 20, 40))
    (pair,) = image_pairs(str(tmp_path))
    assert (pair.name, pair.lr.shape) == ("a", (1, 3, 5, 10))


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a_HR.png", "a_hr.png", "a_LR.png")])
def test_two_files_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_png(tmp_path / name, coordinates(1, 20, 20))
    with pytest.raises(ValueError, match=r"a\S*\.\w+ and a\S*\.\w+ are two files of one name; remove one of them"):
        image_pairs(str(tmp_path))


def test_two_lr_of_one_hr_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path, "HR", "LR_bicubic/X4", "0801")
    write_png(tmp_path / "LR_bicubic" / "X4" / "0801.png", coordinates(2, 5, 10))
    with pytest.raises(ValueError, match=r"0801\.png and 0801x4\.png are two files of one name"):
        image_pairs(str(tmp_path))
