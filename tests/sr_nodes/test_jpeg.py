"""JPEG bit for bit against Pillow's files in memory, on real photographs and odd sizes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sr_nodes.jpeg import Chroma, jpeg, quantize
from sr_nodes.pictures import read_picture, to_image
from sr_pipeline.paths import resolve

CHROMAS: tuple[Chroma, ...] = ("4:2:0", "4:4:4")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A piece of every photograph that ships, of odd sizes, one batch."""
    pictures = sorted(resolve("sr_nodes:samples").glob("*/*.jpg"))
    assert len(pictures) > 5
    return to_image(torch.stack([read_picture(path)[:, 200:357, 200:411] for path in pictures]))


def by_pillow(image: Tensor, quality: int, chroma: str = "4:2:0") -> Tensor:
    """What Pillow, and so libjpeg-turbo, reads of the files it wrote."""
    read = []
    for pixels in (image * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=chroma)
        read.append(torch.from_numpy(np.array(PIL.Image.open(file))))
    return torch.stack(read).permute(0, 3, 1, 2) / 255


def levels_apart(first: Tensor, second: Tensor) -> float:
    return 255 * (first - second).abs().max().item()


def assert_is_pillows(image: Tensor, quality: int, chroma: Chroma) -> None:
    made = jpeg(image, quality, quality, chroma=chroma, rng=rng())
    assert made.dtype == torch.float32
    assert torch.equal(made, by_pillow(image, quality, chroma))


@pytest.mark.parametrize("chroma", CHROMAS)
@pytest.mark.parametrize("quality", [1, *range(10, 101, 10), 49, 51, 75, 95])
def test_jpeg_of_photographs_is_pillows_bit_for_bit(photo: Tensor, quality: int, chroma: Chroma) -> None:
    assert_is_pillows(photo, quality, chroma)


@pytest.mark.parametrize("chroma", CHROMAS)
@given(st.integers(0, 999), st.integers(1, 100), st.integers(1, 40), st.integers(1, 40))
def test_jpeg_of_noise_of_any_size_is_pillows(chroma: Chroma, seed: int, quality: int, height: int, width: int) -> None:
    assert_is_pillows(torch.rand(2, 3, height, width, generator=rng(seed)), quality, chroma)


@pytest.mark.parametrize("width", range(1, 19))
def test_the_edges_of_every_small_size_are_pillows(width: int) -> None:
    """Up to two rows and columns beyond a whole 16x16: where blocks are filled up, and chroma is not smoothed."""
    for height in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18):
        assert_is_pillows(torch.rand(1, 3, height, width, generator=rng(height)), 75, "4:2:0")


@pytest.mark.parametrize("chroma", CHROMAS)
@pytest.mark.parametrize("quality", [1, 30, 100])
def test_jpeg_of_the_strongest_contrasts_is_pillows(quality: int, chroma: Chroma) -> None:
    assert_is_pillows(torch.rand(2, 3, 61, 43, generator=rng()).round(), quality, chroma)


@pytest.mark.full
@pytest.mark.parametrize("chroma", CHROMAS)
def test_jpeg_of_whole_photographs_is_pillows_at_every_quality(chroma: Chroma) -> None:
    for path in sorted(resolve("sr_nodes:samples/test").glob("*.jpg")):
        for quality in range(1, 101):
            assert_is_pillows(to_image(read_picture(path)), quality, chroma)


def test_a_batch_is_as_its_images_alone(photo: Tensor) -> None:
    """With a quality of its own for each, drawn before all else."""
    drawn = torch.randint(20, 91, (len(photo),), generator=rng(5)).tolist()
    assert len(set(drawn)) > 3
    alone = [by_pillow(photo[[place]], quality) for place, quality in enumerate(drawn)]
    assert torch.equal(jpeg(photo, 20, 90, rng=rng(5)), torch.cat(alone))


def test_the_error_falls_as_the_quality_rises(photo: Tensor) -> None:
    errors = [(jpeg(photo, q, q, rng=rng()) - photo).square().mean().item() for q in (5, 20, 40, 60, 80, 95)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[-1] > 0


def test_each_image_has_a_quality_of_its_own_and_both_ends_are_drawn(photo: Tensor) -> None:
    image = photo[:1, :, :32, :32].expand(40, 3, 32, 32)
    expected = {quality: by_pillow(image[:1], quality) for quality in (20, 21, 22, 23)}
    made = torch.split(jpeg(image, 20, 23, rng=rng()), 1)
    drawn = [[q for q, reference in expected.items() if levels_apart(one, reference) < 1.001] for one in made]
    assert {quality for [quality] in drawn} == {20, 21, 22, 23}


def test_as_many_images_as_asked_are_compressed_and_the_others_keep_their_bits(photo: Tensor) -> None:
    image = photo[:1, :, :8, :8].repeat(200, 1, 1, 1) * 0.99
    assert torch.equal(jpeg(image, probability=0.0, rng=rng()), image)
    changed = (jpeg(image, probability=0.3, rng=rng()) != image).flatten(1).any(1)
    assert changed.double().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 200) ** 0.5)


def test_jpeg_depends_on_its_generator_alone_and_changes_no_input(photo: Tensor) -> None:
    before = photo.clone()
    first = jpeg(photo, rng=rng(1))
    torch.manual_seed(7)
    assert torch.equal(first, jpeg(photo, rng=rng(1)))
    assert not torch.equal(first, jpeg(photo, rng=rng(2)))
    assert torch.equal(photo, before)


def test_the_layout_in_memory_changes_nothing(photo: Tensor) -> None:
    turned = photo.contiguous(memory_format=torch.channels_last)
    assert torch.equal(jpeg(turned, rng=rng()), jpeg(photo, rng=rng()))


@given(st.integers(0, 999))
def test_jpeg_and_quantize_give_whole_levels_in_range(seed: int) -> None:
    image = torch.rand(1, 3, 9, 10, generator=rng(seed)) * 1.2 - 0.1
    for made in (jpeg(image, rng=rng(seed)), quantize(image)):
        assert 0 <= made.min() <= made.max() <= 1
        assert torch.equal(made, (made * 255).round() / 255)


@given(st.integers(0, 999))
def test_quantize_is_the_nearest_level_and_changes_no_second_time(seed: int) -> None:
    image = torch.rand(2, 3, 5, 6, generator=rng(seed))
    rounded = quantize(image)
    assert levels_apart(rounded, image) <= 0.5001
    assert torch.equal(quantize(rounded), rounded)


def test_qualities_that_are_turned_round_are_refused(photo: Tensor) -> None:
    with pytest.raises(ValueError, match="quality_min is 90 and quality_max 40; give quality_min the smaller number"):
        jpeg(photo, 90, 40)
