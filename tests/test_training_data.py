"""The shipped weights were trained on photographs of which no test set holds one, nor one that looks alike."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

SIDE = 16
ALIKE = 60
"""Of 256 bits: a copy that was made smaller and compressed differs by under 30, another photograph by over 85."""


def looks(picture: Image.Image) -> np.ndarray:
    """The difference hash: where a picture of 17 x 16 gray pixels grows brighter to the right."""
    small = np.asarray(picture.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.LANCZOS), np.int16)
    return small[:, 1:] > small[:, :-1]


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int((one != other).sum())


def hashes(folder: Path, pattern: str) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.rglob(pattern)):
        with Image.open(path) as picture:
            picture.draft("L", (256, 256))
            found[path.relative_to(folder).as_posix()] = looks(picture)
    assert found, f"no {pattern} in {folder}"
    return found


@pytest.fixture(scope="module")
def test_sets(shared_data: Path) -> dict[str, np.ndarray]:
    return hashes(shared_data / "testsets", "*_HR.png")


def alike(folder: Path, test_sets: dict[str, np.ndarray]) -> set[tuple[str, str]]:
    """The photographs of a folder that look like one of a test set, mirrored or not, and which."""
    return {
        (photo, tested)
        for photo, seen in hashes(folder, "*.jpg").items()
        for tested, wanted in test_sets.items()
        if min(distance(seen, wanted), distance(seen, ~wanted[:, ::-1])) < ALIKE
    }


def test_no_photograph_of_a_test_set_was_trained_on(shared_data: Path, test_sets: dict[str, np.ndarray]) -> None:
    assert alike(shared_data / "photos", test_sets) == set()


def test_bsds400_holds_one_picture_of_set5(shared_data: Path, test_sets: dict[str, np.ndarray]) -> None:
    """Whoever trains on it must leave this one out."""
    assert alike(shared_data / "bsds400", test_sets) == {("302003.jpg", "Set5/img_005_SRF_4_HR.png")}


def test_a_copy_would_be_seen(shared_data: Path, test_sets: dict[str, np.ndarray]) -> None:
    for name, wanted in test_sets.items():
        with Image.open(shared_data / "testsets" / name) as picture:
            smaller = picture.convert("RGB").resize((picture.width * 3 // 5, picture.height * 3 // 5))
        file = BytesIO()
        smaller.save(file, "JPEG", quality=40)
        copy = Image.open(file)
        assert distance(looks(copy), wanted) < ALIKE / 2
        assert distance(looks(ImageOps.mirror(copy)), ~wanted[:, ::-1]) < ALIKE


def test_only_the_one_picture_that_both_sets_hold_looks_alike(test_sets: dict[str, np.ndarray]) -> None:
    names = list(test_sets)
    found = {
        (names[n], other)
        for n in range(len(names))
        for other in names[:n]
        if distance(test_sets[names[n]], test_sets[other]) < ALIKE
    }
    assert found == {("Set5/img_004_SRF_4_HR.png", "Set14/img_006_SRF_4_HR.png")}
