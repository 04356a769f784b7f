"""SSIM and MS-SSIM against scikit-image and an independent float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d
from skimage.metrics import structural_similarity
from torch import Tensor

from sr_nodes.degradation import bicubic_upscale
from sr_nodes.metrics import luma
from sr_nodes.pairs import image_pairs
from sr_nodes.similarity import ms_ssim, ssim

Pixels = np.ndarray[Any, np.dtype[np.float64]]


def pictures(seed: int, height: int, width: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Two correlated pictures, 8-bit levels."""
    rng = torch.Generator().manual_seed(seed)
    smooth = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=rng)
    hr = torch.nn.functional.interpolate(smooth, size=(height, width), mode="bilinear")
    sr = (hr + noise * torch.randn(hr.shape, generator=rng)).clamp(0, 1)
    return (sr * 255).round() / 255, (hr * 255).round() / 255


def scikit(one: Tensor, other: Tensor) -> float:
    a, b = (image[0].double().numpy() for image in (one, other))
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            a, b, channel_axis=0, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


@given(st.integers(0, 99), st.integers(19, 60), st.integers(19, 60), st.floats(0, 0.5))
def test_ssim_is_scikit_images(seed: int, height: int, width: int, noise: float) -> None:
    sr, hr = pictures(seed, height, width, noise)
    cut = (..., slice(4, -4), slice(4, -4))
    assert ssim(sr, hr) == pytest.approx(scikit(luma(sr)[cut], luma(hr)[cut]), abs=1e-7)
    assert ssim(sr, hr, channel="rgb", border=0) == pytest.approx(scikit(255 * sr, 255 * hr), abs=1e-7)


def reference_ms_ssim(a: Pixels, b: Pixels) -> float:
    """From the paper's text, in float64, with scipy's correlation."""
    x = np.arange(-5, 6)
    kernel = np.exp(-(x**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def window(image: Pixels) -> Pixels:
        blurred: Pixels = convolve1d(convolve1d(image, kernel, axis=0), kernel, axis=1)
        return blurred[5:-5, 5:-5]

    found = 1.0
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        ma, mb = window(a), window(b)
        va, vb, c = window(a * a) - ma**2, window(b * b) - mb**2, window(a * b) - ma * mb
        term = (2 * c + 58.5225) / (va + vb + 58.5225)
        if scale == 4:
            term = term * (2 * ma * mb + 6.5025) / (ma**2 + mb**2 + 6.5025)
        found *= max(term.mean(), 0) ** weight
        a, b = ((i[: len(i) // 2 * 2 : 2] + i[1::2])[:, : i.shape[1] // 2 * 2] for i in (a, b))
        a, b = ((i[:, ::2] + i[:, 1::2]) / 4 for i in (a, b))
    return float(found)


@pytest.mark.parametrize(("seed", "noise"), [(1, 0.05), (2, 0.3)])
def test_ms_ssim_is_the_papers(seed: int, noise: float) -> None:
    sr, hr = pictures(seed, 193, 215, noise)
    a, b = (luma(image)[0, 0].numpy() for image in (sr, hr))
    assert ms_ssim(sr, hr, border=0) == pytest.approx(reference_ms_ssim(a, b), abs=1e-9)


@pytest.mark.parametrize("metric", [ssim, ms_ssim])
def test_laws(metric: Callable[[Tensor, Tensor], float]) -> None:
    """1 at equality, symmetric, falling with noise, the mean over a batch."""
    sr, hr = pictures(3, 200, 190, 0.05)
    worse, _ = pictures(3, 200, 190, 0.2)
    assert metric(hr, hr) == pytest.approx(1, abs=1e-12)
    assert metric(sr, hr) == pytest.approx(metric(hr, sr), abs=1e-12)
    assert metric(worse, hr) < metric(sr, hr) < 1
    both = metric(torch.cat([sr, worse]), torch.cat([hr, hr]))
    assert both == pytest.approx((metric(sr, hr) + metric(worse, hr)) / 2, abs=1e-12)


def test_too_small() -> None:
    sr, hr = pictures(0, 40, 18)
    with pytest.raises(ValueError, match="10x32 pixels are left, and ssim needs 11 a side"):
        ssim(sr, hr)
    with pytest.raises(ValueError, match="18x40 pixels are left, and ms_ssim needs 176 a side"):
        ms_ssim(sr, hr, border=0)


def test_set5(shared_data: Path) -> None:
    """The number that the docstring states."""
    pairs = image_pairs(str(shared_data / "testsets" / "Set5"))
    found = sum(ssim(bicubic_upscale(pair.lr), pair.hr) for pair in pairs) / len(pairs)
    assert found == pytest.approx(0.8113, abs=1e-4)
