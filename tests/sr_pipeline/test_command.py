"""What the flags of a pack's command take, and what they set."""

from __future__ import annotations

from typing import Any

import pytest

from sr_pipeline.command import Flag

TILE = Flag("--tile", ("sr.tile",), "", words={"auto": "auto", "none": None}, number=True)
FORMAT = Flag("--format", ("a.b",), "", words={"png": "png", "jpg": "jpg"})
COUNT = Flag("--count", ("a.b",), "", number=True)
TEXT = Flag("--text", ("a.b",), "")


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        (TILE, "auto", "auto"),
        (TILE, "none", None),
        (TILE, "64", 64),
        (FORMAT, "jpg", "jpg"),
        (COUNT, "0", 0),
        (TEXT, "64", "64"),
        (TEXT, "", ""),
    ],
)
def test_values(flag: Flag, text: str, value: Any) -> None:
    assert flag.read(text) == value
    assert type(flag.read(text)) is type(value)


@pytest.mark.parametrize(
    ("flag", "text", "words"),
    [
        (TILE, "Auto", "'Auto' is not auto or none or a whole number"),
        (TILE, "6.5", "'6.5' is not auto or none or a whole number"),
        (TILE, "-1", "'-1' is not"),
        (TILE, "\u0664", "is not auto"),
        (FORMAT, "gif", "'gif' is not png or jpg"),
        (COUNT, "many", "'many' is not a whole number"),
        (COUNT, "9" * 10, "is not a whole number"),
    ],
)
def test_what_is_refused(flag: Flag, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        flag.read(text)


def test_names() -> None:
    names = ("--no-metadata", "in", "out", "--model")
    flags = [Flag(name, (), "") for name in names]
    assert [flag.key for flag in flags] == ["no_metadata", "in_", "out", "model"]
    assert [flag.by_position for flag in flags] == [False, True, True, False]
