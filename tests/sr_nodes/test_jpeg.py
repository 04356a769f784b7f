"""JPEG against Pillow's files in memory, on real photographs and odd sizes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sr_nodes.assets import resolve
from sr_nodes.jpeg import jpeg, quantize
from sr_nodes.pictures import read_picture, to_image


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    pictures = sorted(resolve("sr_nodes:samples/test").glob("*.jpg"))
    pixels = [read_picture(Path(path))[:, 200:328, 200:331] for path in pictures]
    return to_image(torch.stack(pixels))


def by_pillow(image: Tensor, quality: int) -> Tensor:
    """What Pillow reads of the files it wrote, with its default chroma subsampling."""
    read = []
    for pixels in (image * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        read.append(torch.from_numpy(np.array(PIL.Image.open(file))))
    return torch.stack(read).permute(0, 3, 1, 2) / 255


def levels_apart(first: Tensor, second: Tensor) -> float:
    return 255 * (first - second).abs().max().item()


@pytest.mark.parametrize("quality", [1, 30, 49, 50, 75, 95, 100])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (37, 53), (24, 8), (3, 5), (1, 1)])
def test_jpeg_is_pillows(photo: Tensor, quality: int, height: int, width: int) -> None:
    image = photo[..., :height, :width]
    made = jpeg(image, quality, quality, rng=rng())
    assert made.dtype == torch.float32
    assert levels_apart(made, by_pillow(image, quality)) < 1.001


@given(st.integers(0, 999), st.integers(1, 100), st.integers(1, 40), st.integers(1, 40))
def test_jpeg_of_noise_is_pillows(seed: int, quality: int, height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=rng(seed))
    assert levels_apart(jpeg(image, quality, quality, rng=rng()), by_pillow(image, quality)) < 1.001


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
