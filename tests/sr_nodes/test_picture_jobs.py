"""Which files a job is of, where their results go, and what a killed job leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from sr_nodes.picture_files import PIPE
from sr_nodes.picture_jobs import Format, Place, places, refusal, share_of, write_bytes


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos/ in it."""
    monkeypatch.chdir(tmp_path)
    pictures = ("b.jpg", "a.PNG", "sub/c.webp", "sub/deep/d.gif", "[1].png")
    for name in (*pictures, ".hidden/e.png", "notes.txt", "text/a.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def shown(found: list[Place]) -> dict[str, str]:
    return {place.source.as_posix(): place.target.as_posix() for place in found if place.is_picture}


def others(found: list[Place]) -> list[str]:
    return [place.source.as_posix() for place in found if not place.is_picture]


def test_a_folder_keeps_its_structure(photos: Path) -> None:
    assert shown(places(["photos"], "out")) == {
        "photos/[1].png": "out/[1].png",
        "photos/a.PNG": "out/a.PNG",
        "photos/b.jpg": "out/b.jpg",
        "photos/sub/c.webp": "out/sub/c.webp",
        "photos/sub/deep/d.gif": "out/sub/deep/d.png",
    }


def test_what_is_no_picture_is_told_and_what_is_hidden_is_not(photos: Path) -> None:
    assert others(places(["photos"], "out")) == ["photos/notes.txt", "photos/text/a.txt"]
    assert others(places(["photos/*"], "out")) == ["photos/notes.txt"]
    assert others(places(["photos/*.jpg"], "out")) == []
    assert shown(places(["photos/notes.txt"], "out")) == {"photos/notes.txt": "out/notes.png"}  # it was named


def test_format_and_suffix(photos: Path) -> None:
    assert shown(places(["photos/sub"], "out", "jpg", "_x4")) == {
        "photos/sub/c.webp": "out/c_x4.jpg",
        "photos/sub/deep/d.gif": "out/deep/d_x4.jpg",
    }
    for name in ("jpeg", "tif", "bmp", "avif"):
        assert shown(places(["photos/b.jpg"], "out", name)) == {"photos/b.jpg": f"out/b.{name}"}
    assert shown(places(["photos/b.jpg"], "new.jpg", "jpeg")) == {"photos/b.jpg": "new.jpg"}
    assert shown(places(["photos/sub/deep/d.gif"], "out")) == {"photos/sub/deep/d.gif": "out/d.png"}


@pytest.mark.parametrize(
    ("pattern", "targets"),
    [
        ("photos/*.jpg", ["out/b.jpg"]),
        ("photos/*", ["out/[1].png", "out/a.PNG", "out/b.jpg"]),
        ("photos/**/*.gif", ["out/sub/deep/d.png"]),
        ("photos/**/*.webp", ["out/sub/c.webp"]),
        ("photos/[1].png", ["out/[1].png"]),
        ("pho*/sub/*", ["out/photos/sub/c.webp"]),
    ],
)
def test_patterns(photos: Path, pattern: str, targets: list[str]) -> None:
    assert list(shown(places([pattern], "out")).values()) == targets
    assert list(shown(places([str(photos / pattern)], "out")).values()) == targets


def test_one_file_to_a_file_a_folder_or_a_pipe(photos: Path) -> None:
    (photos / "there.png").mkdir()
    one = ["photos/b.jpg"]
    assert shown(places(one, "new.png")) == {"photos/b.jpg": "new.png"}
    assert shown(places(one, "new")) == {"photos/b.jpg": "new/b.jpg"}
    assert shown(places(one, "there.png")) == {"photos/b.jpg": "there.png/b.jpg"}
    assert shown(places(one, "new.png/")) == {"photos/b.jpg": "new.png/b.jpg"}
    assert places(one, "-") == [Place(Path("photos/b.jpg"), PIPE)]
    assert places(["-"], "-") == [Place(PIPE, PIPE)]
    assert places(["-"], "new.png") == [Place(PIPE, Path("new.png"))]
    assert shown(places(["missing.png"], "new")) == {"missing.png": "new/missing.png"}  # told when it is read


@pytest.mark.parametrize(
    ("inputs", "output", "format_", "words"),
    [
        (["photos"], "-", "same", "'-' is one picture to one file or to '-'"),
        (["-"], "folder", "same", "'-' is one picture to one file"),
        (["-", "photos"], "out", "same", "'-' is one picture to one file"),
        (["photos"], "photos/b.jpg", "same", "'photos/b.jpg' is a file, and there are several pictures"),
        (
            ["photos"],
            "new.png",
            "same",
            "'new.png' is one picture's name; give a folder, or new.png/ if it is to be one",
        ),
        (["photos/b.jpg"], "new.gif", "same", "'new.gif' ends in '.gif', a format that is not written; write one of"),
        (["photos/b.jpg"], "v2.0", "same", "'v2.0' ends in '.0', .* .avif, or v2.0/ if it is to be a folder"),
        (["-"], "new.jpgg", "same", "'new.jpgg' ends in '.jpgg', a format that is not written"),
        (["photos/b.jpg"], "new.png", "jpg", "the name 'new.png' and the format jpg contradict"),
        (["photos/*.tiff"], "out", "same", r"no picture matches 'photos/\*.tiff'"),
        (["photos/text"], "out", "same", "holds no picture"),
        (["photos/b.jpg"], "photos/notes.txt", "same", "'photos/notes.txt' is a file, and its name is no picture's; "),
        (
            ["photos/sub/deep"],
            "photos/b.jpg",
            "same",
            "'photos/b.jpg' is a file, and a folder or pattern is to be enlarged",
        ),
        (["photos", ""], "out", "same", r"one of the inputs \(IN\) is empty; give a file"),
        (["photos/b.jpg"], "", "same", r"the output \(OUT\) is empty; give a folder"),
        (["photos/b.jpg"], " ", "same", r"the output \(OUT\) is empty"),
    ],
)
def test_mistakes(photos: Path, inputs: list[str], output: str, format_: Format, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        places(inputs, output, format_)


def test_results_are_not_inputs(photos: Path) -> None:
    """An output folder inside the input folder is passed over; one around it, or it itself, is not."""
    before = shown(places(["photos"], "photos/large"))
    for target in before.values():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_bytes(b"x")
    assert shown(places(["photos"], "photos/large")) == before
    assert shown(places(["photos/**/*"], "photos/large")) == before
    assert len(shown(places(["photos"], "."))) == len(shown(places(["photos"], "photos"))) == 2 * len(before)


@pytest.mark.parametrize("format_", ["same", "png"])
def test_results_beside_their_sources_are_not_inputs(photos: Path, format_: Format) -> None:
    before = shown(places(["photos"], "photos", format_, "_x4"))
    assert len(before) == 5
    for target in before.values():
        Path(target).write_bytes(b"x")
    for inputs in (["photos"], ["photos/**/*"], [str(photos / "photos")]):
        again = [place.target.resolve() for place in places(inputs, "photos", format_, "_x4") if place.is_picture]
        assert again == [Path(target).resolve() for target in before.values()]
    # By another suffix, they are pictures as any.
    assert len(shown(places(["photos"], "photos", format_, "_other"))) == 10


def test_of_equal_names_the_right_mend_is_named() -> None:
    place = Place(Path("one/a.png"), Path("out/a.png"))
    for other, words in (
        ("two/a.png", "give it an output of its own, or rename it"),
        ("one/a.jpg", "use --format same, or rename it"),
        ("one/a.gif", "give it an output of its own, or rename it"),  # as the same it would be PNG too
    ):
        said = refusal(place, [], {place.target.resolve(): Path(other)}, overwrite=False)
        assert said == f"its result would be out/a.png, as that of {other} is; {words}"


def test_refusals(photos: Path) -> None:
    one, other = Path("photos/b.jpg"), Path("photos/a.PNG")
    both = {one.resolve(), other.resolve()}
    assert "its result would take its place" in refusal(Place(one, one), both, {}, overwrite=False)
    assert refusal(Place(one, one), both, {}, overwrite=True) == ""
    for overwrite in (False, True):
        assert "which is one of the pictures to enlarge" in refusal(Place(one, other), both, {}, overwrite)
        taken = {Path("out/b.png").resolve(): other}
        words = "its result would be out/b.png, as that of photos/a.PNG is"
        assert words in refusal(Place(one, Path("out/b.png")), both, taken, overwrite)
    assert refusal(Place(one, Path("new/sub/b.jpg")), both, {}, overwrite=False) == ""
    assert Path("new/sub").is_dir()
    assert refusal(Place(PIPE, PIPE), both, {}, overwrite=False) == ""


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    name = "\u56fe" * 83 + ".png"  # 253 bytes: nothing can be put to it
    write_bytes(tmp_path / name, b"first")
    write_bytes(tmp_path / name, b"second")
    assert (tmp_path / name).read_bytes() == b"second"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "folder", b"x")
    assert {p.name for p in tmp_path.iterdir()} == {name, "folder"}


def test_an_output_that_is_no_picture_is_a_folder_where_that_is_said(photos: Path) -> None:
    (photos / "v1.0").mkdir()
    assert shown(places(["photos/b.jpg"], "v2.0/")) == {"photos/b.jpg": "v2.0/b.jpg"}
    assert shown(places(["photos/b.jpg"], "v1.0")) == {"photos/b.jpg": "v1.0/b.jpg"}
    assert len(shown(places(["photos/b.jpg", "photos/a.PNG"], "v2.0"))) == 2


def test_an_output_at_home(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {place.target.parent for place in places(["photos/b.jpg"], "~/large")} == {tmp_path / "large"}


def test_a_suffix_stays_in_its_folder(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"the suffix '/x' would lead into another folder"):
        places(["photos/b.jpg"], "out", suffix="/x")


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("", "2"), ("5", "2"), ("2", "2")])
def test_a_share_of_the_environment_that_is_none(rank: str, size: str) -> None:
    with pytest.raises(
        ValueError, match=f"^RANK is '{rank}' and WORLD_SIZE '{size}', no share of a job; give --share K/N"
    ):
        share_of(None, {"RANK": rank, "WORLD_SIZE": size})
