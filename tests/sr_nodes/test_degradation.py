"""Degradations against their definitions in float64, at borders and odd sizes, and against published files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage
from torch import Tensor

from sr_nodes.degradation import bicubic, bicubic_upscale, gaussian_downsample

Array = NDArray[np.float64]
SET5 = Path(__file__).parents[2].parent / "shared/data/testsets/Set5"
needs_set5 = pytest.mark.skipif(not SET5.is_dir(), reason=f"the shared test set {SET5} is missing")


def keys_cubic(t: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Keys' cubic kernel with a = -1/2."""
    t = np.abs(t)
    inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, inner, np.where(t < 2, outer, 0))


def imresize_matrix(size: int, ratio: float) -> Array:
    """One row an output pixel: its weights of the input pixels, from MATLAB's definition of imresize."""
    widening = min(ratio, 1.0)
    matrix = np.zeros((math.ceil(size * ratio - 1e-9), size))
    for i, row in enumerate(matrix):
        centre = (i + 0.5) / ratio - 0.5
        taps = np.arange(math.floor(centre - 2 / widening), math.ceil(centre + 2 / widening) + 1)
        weights = keys_cubic((centre - taps) * widening)
        mirrored = taps % (2 * size)
        np.add.at(row, np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored), weights / weights.sum())
    return matrix


def imresize(image: Tensor, ratio: float) -> Array:
    rows, columns = (imresize_matrix(n, ratio) for n in image.shape[-2:])
    resized: Array = np.clip(rows @ image.double().numpy() @ columns.T, 0, 1)
    return resized


def assert_close(image: Tensor, reference: Array, gray_levels: float) -> None:
    assert image.dtype == torch.float32
    assert image.shape == reference.shape
    assert np.abs(image.double().numpy() - reference).max() * 255 < gray_levels


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def read(path: Path) -> Tensor:
    with Pillow.open(path) as picture:
        pixels: NDArray[Any] = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (37, 53), (101, 480), (3, 1), (1, 1)])
def test_bicubic_is_imresize(scale: int, height: int, width: int) -> None:
    hr = noise(height, width)
    assert_close(bicubic(hr, scale), imresize(hr, 1 / scale), 1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 8), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_bicubic_is_imresize_of_black_and_white_too(scale: int, height: int, width: int, seed: int) -> None:
    hr = noise(height, width, seed).round()
    assert_close(bicubic(hr, scale), imresize(hr, 1 / scale), 1e-4)


def test_bicubic_in_eight_bits_is_the_nearest_gray_level() -> None:
    hr = noise(64, 64)
    lr = bicubic(hr, eight_bit=True) * 255
    assert torch.allclose(lr, lr.round(), atol=1e-4)
    assert (lr - 255 * bicubic(hr)).abs().max() <= 0.5001


def test_bicubic_has_a_gradient_after_it_ran_without() -> None:
    """What it keeps for a size serves both."""
    with torch.inference_mode():
        bicubic(torch.rand(1, 3, 44, 36))
    hr = torch.rand(1, 3, 44, 36, requires_grad=True)
    bicubic(hr).sum().backward()  # type: ignore[no-untyped-call]
    assert hr.grad is not None


def test_bicubic_has_the_gradient_of_a_linear_map() -> None:
    hr = (noise(9, 8) * 0.5 + 0.25).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda image: bicubic(image, 4), hr)


@needs_set5
def test_bicubic_is_near_the_published_lr_files() -> None:
    pairs = [(path, path.with_name(path.name.replace("HR", "LR"))) for path in sorted(SET5.glob("*_HR.png"))]
    errors = [(bicubic(read(hr), 4, eight_bit=True) - read(lr)).abs().mean().item() * 255 for hr, lr in pairs]
    assert len(errors) == 5
    assert np.mean(errors) <= 0.13


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (7, 11), (5, 300), (3, 1), (1, 1)])
def test_bicubic_upscale_is_imresize(scale: int, height: int, width: int) -> None:
    lr = noise(height, width).round()
    assert_close(bicubic_upscale(lr, scale), imresize(lr, scale), 1e-4)


@needs_set5
def test_bicubic_upscale_has_the_published_psnr() -> None:
    def luma(image: Tensor) -> Tensor:
        return (torch.tensor([65.481, 128.553, 24.966]).double() @ image[0].double().flatten(1)).view(image.shape[-2:])

    psnrs = []
    for path in sorted(SET5.glob("*_HR.png")):
        hr, lr = read(path), read(path.with_name(path.name.replace("HR", "LR")))
        sr = (bicubic_upscale(lr, 4) * 255).round() / 255
        error = (luma(sr) - luma(hr))[4:-4, 4:-4].square().mean().item()
        psnrs.append(10 * math.log10(255**2 / error))
    assert np.mean(psnrs) == pytest.approx(28.43, abs=0.01)


def gaussian_reference(image: Tensor, scale: int, sigma: float) -> Array:
    """Every output pixel a normalised sum, over the mirrored image, around the centre of its block."""
    blurred = image.double().numpy()
    for axis in (-2, -1):
        size = blurred.shape[axis]
        centres = np.arange(math.ceil(size / scale)) * scale + (scale - 1) / 2
        taps = np.arange(-30, size + 30)
        distance = centres[:, None] - taps
        reach = max(scale / 2, math.ceil(4 * sigma - (scale - 1) / 2) + scale / 2)
        weights = np.where(np.abs(distance) < reach, np.exp(-0.5 * (distance / sigma) ** 2), 0)
        weights /= weights.sum(1, keepdims=True)
        before = [(0, 0)] * blurred.ndim
        before[axis] = (30, 30)
        padded = np.pad(blurred, before, mode="symmetric")
        blurred = np.moveaxis(np.moveaxis(padded, axis, -1) @ weights.T, -1, axis)
    return blurred


@pytest.mark.parametrize(("scale", "sigma"), [(2, 0.3), (2, 1.6), (3, 1.0), (4, 1.6), (4, 0.2), (5, 2.5), (8, 3.0)])
@pytest.mark.parametrize(("height", "width"), [(32, 40), (37, 9), (1, 2)])
def test_gaussian_downsample_is_its_definition(scale: int, sigma: float, height: int, width: int) -> None:
    hr = noise(height, width)
    assert_close(gaussian_downsample(hr, scale, sigma), gaussian_reference(hr, scale, sigma), 1e-4)


@pytest.mark.parametrize("scale", [3, 5])
def test_gaussian_downsample_is_scipys_filter_sampled_at_block_centres(scale: int) -> None:
    hr = noise(30, 45)
    blurred = ndimage.gaussian_filter(hr.double().numpy(), 2.0, mode="reflect", truncate=4.0, axes=(-2, -1))
    start = scale // 2
    assert_close(gaussian_downsample(hr, scale, 2.0), blurred[..., start::scale, start::scale], 1e-4)


@pytest.mark.parametrize("scale", range(2, 9))
def test_gaussian_downsample_shifts_nothing(scale: int) -> None:
    ramp = torch.arange(160.0).expand(1, 3, 160, 160) / 160
    lr = gaussian_downsample(ramp, scale)[..., 40 // scale : 120 // scale]
    centres = (torch.arange(160 // scale) * scale + (scale - 1) / 2) / 160
    assert torch.allclose(lr, centres[40 // scale : 120 // scale].expand_as(lr), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 8), st.floats(0.1, 5), st.integers(1, 30), st.floats(0, 1))
def test_a_constant_stays(scale: int, sigma: float, size: int, level: float) -> None:
    image = torch.full((1, 3, size, size + 3), level)
    for made in (gaussian_downsample(image, scale, sigma), bicubic(image, scale), bicubic_upscale(image, scale)):
        assert torch.allclose(made, torch.full_like(made, level), atol=1e-6)
