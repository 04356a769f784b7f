"""PSNR against independent references and published figures; the reducer; the curve."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from sr_nodes.degradation import bicubic_upscale
from sr_nodes.metrics import Mean, log_scalar, luma, psnr
from sr_nodes.pairs import image_pairs
from sr_nodes.pictures import to_uint8
from sr_nodes.similarity import ssim
from sr_pipeline.sockets import Reporter

TESTSETS = Path(__file__).parents[2].parent / "shared" / "data" / "testsets"
needs_testsets = pytest.mark.skipif(not TESTSETS.is_dir(), reason=f"no test sets in {TESTSETS}")


def images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two pictures in [0, 1], some 25 dB apart."""
    rng = torch.Generator().manual_seed(seed)
    hr = torch.rand(*shape, generator=rng)
    return (hr + 0.05 * torch.randn(*shape, generator=rng)).clamp(0, 1), hr


def as_numpy(image: Tensor, border: int) -> np.ndarray[Any, Any]:
    """The first picture of a batch, [H, W, 3], 8 bits, without its border."""
    array: np.ndarray[Any, Any] = np.rint(image[0].permute(1, 2, 0).double().numpy() * 255).astype(np.uint8)
    return array[border : array.shape[0] - border, border : array.shape[1] - border]


@pytest.mark.parametrize("border", [0, 3])
def test_psnr_of_rgb_is_scikit_images(border: int) -> None:
    sr, hr = images(1, 3, 21, 34)
    expected = peak_signal_noise_ratio(as_numpy(hr, border), as_numpy(sr, border))  # type: ignore[no-untyped-call]
    assert psnr(sr, hr, "rgb", border) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("border", [0, 3])
def test_psnr_of_y_is_that_of_scikit_images_luma(border: int) -> None:
    sr, hr = images(1, 3, 21, 34)
    one, other = (rgb2ycbcr(as_numpy(image, border))[..., 0] for image in (sr, hr))
    expected = 10 * math.log10(255**2 / ((one - other) ** 2).mean())
    assert psnr(sr, hr, "y", border) == pytest.approx(expected, abs=1e-6)


def test_psnr_without_rounding_is_of_the_float_values() -> None:
    sr, hr = images(1, 3, 16, 16)
    difference = sr.double().numpy() - hr.double().numpy()
    assert psnr(sr, hr, "rgb", 0, eight_bit=False) == pytest.approx(-10 * math.log10((difference**2).mean()), abs=1e-9)
    y = (difference * np.array([65.481, 128.553, 24.966]).reshape(3, 1, 1)).sum(axis=1)
    expected = 10 * math.log10(255**2 / (y**2).mean())
    assert psnr(sr, hr, "y", 0, eight_bit=False) == pytest.approx(expected, abs=1e-9)


def test_rounding_to_8_bits_also_clamps() -> None:
    hr = torch.full((1, 3, 4, 4), 0.5)
    assert psnr(hr + 2, hr, "rgb", 0) == pytest.approx(20 * math.log10(255 / 127), abs=1e-9)
    assert psnr(hr + 2, hr, "rgb", 0, eight_bit=False) == pytest.approx(-20 * math.log10(2), abs=1e-9)


@given(st.integers(1, 100), st.integers(0, 155))
def test_a_shift_of_some_levels_has_the_psnr_of_the_formula(shift: int, level: int) -> None:
    hr = torch.full((1, 3, 2, 2), level / 255)
    sr = torch.full((1, 3, 2, 2), (level + shift) / 255)
    assert psnr(sr, hr, "rgb", 0) == pytest.approx(20 * math.log10(255 / shift), abs=1e-9)
    # The studio range is 219 levels instead of 255: the same gray picture measures 1.32 dB more on Y.
    assert psnr(sr, hr, "y", 0) - psnr(sr, hr, "rgb", 0) == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)


def test_the_figure_of_a_batch_is_the_mean_of_the_figures_of_its_pictures() -> None:
    sr, hr = images(3, 3, 16, 16)
    sr[1] = hr[1] * 0.9
    each = [psnr(sr[i : i + 1], hr[i : i + 1]) for i in range(3)]
    assert max(each) - min(each) > 1
    assert psnr(sr, hr) == pytest.approx(sum(each) / 3, abs=1e-9)


@pytest.mark.parametrize("channel", ["y", "rgb"])
def test_equal_pictures_measure_inf(channel: Any) -> None:
    sr, hr = images(2, 3, 16, 16)
    assert psnr(hr, hr, channel) == math.inf
    assert psnr(hr * 0.99, hr, channel) < math.inf
    sr[0] = hr[0]
    assert psnr(sr, hr, channel) == math.inf


def test_what_lies_in_the_border_does_not_count() -> None:
    sr, hr = images(1, 3, 16, 20)
    before = psnr(sr, hr, border=2)
    frame = torch.ones(16, 20, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    assert psnr(torch.where(frame, 0.0, sr), hr, border=2) == before
    frame[2, 2] = True
    assert psnr(torch.where(frame, 0.0, sr), hr, border=2) != before


def test_psnr_builds_no_graph_and_accepts_what_has_one() -> None:
    sr, hr = images(1, 3, 16, 16)
    assert psnr(sr.requires_grad_(), hr, eight_bit=False) == psnr(sr.detach(), hr, eight_bit=False)


def test_pictures_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"sr is \[1, 3, 8, 8\] and hr is \[1, 3, 8, 9\]; a metric needs two pictures"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="a border of 4 leaves nothing of 20x8 pixels; make it smaller"):
        psnr(torch.zeros(1, 3, 8, 20), torch.zeros(1, 3, 8, 20))


def test_luma_of_the_primaries() -> None:
    colours = torch.eye(3).view(3, 3, 1, 1)
    assert luma(colours).flatten().tolist() == pytest.approx([81.481, 144.553, 40.966], abs=1e-12)
    assert luma(colours).dtype == torch.float64


@needs_testsets
@pytest.mark.parametrize(("name", "published"), [("Set5", 28.43), ("Set14", 26.09)])
def test_bicubic_measures_what_was_published(name: str, published: float) -> None:
    pairs = image_pairs(str(TESTSETS / name))
    figures = [psnr(bicubic_upscale(pair.lr), pair.hr) for pair in pairs]
    assert sum(figures) / len(figures) == pytest.approx(published, abs=0.01)


@needs_testsets
def test_the_definitions_differ_on_one_picture() -> None:
    pair = image_pairs(str(TESTSETS / "Set5"))[4]
    sr = bicubic_upscale(pair.lr)
    assert psnr(sr, pair.hr) == pytest.approx(26.47, abs=0.005)
    assert psnr(sr, pair.hr, "rgb") == pytest.approx(25.13, abs=0.005)
    difference = (to_uint8(sr).double() - to_uint8(pair.hr).double())[..., 4:-4, 4:-4]
    error = (difference * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1).square().mean()
    assert float(10 * torch.log10(255**2 / error)) == pytest.approx(25.15, abs=0.005)


# the reducer


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_mean(values: list[float]) -> None:
    mean = Mean()
    for value in values:
        mean(value)
    assert mean.result() == pytest.approx(math.fsum(values) / len(values), abs=1e-6)


def test_a_mean_that_was_interrupted_goes_on_as_if_it_had_not_been() -> None:
    straight, first, second = Mean(), Mean(), Mean()
    for value in (0.1, 0.2, 0.7):
        straight(value)
        first(value)
    second.load_state_dict(first.state_dict())
    for mean in (straight, second):
        mean(1.3)
    assert second.result() == straight.result()
    assert second.state_dict() == straight.state_dict()
    assert first.result() != straight.result()


def test_the_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="mean was given no value"):
        Mean().result()


# the curve


class Curve(Reporter):
    def __init__(self) -> None:
        self.points: list[tuple[str, float | Tensor]] = []

    def scalar(self, name: str, value: float | Tensor) -> None:
        self.points.append((name, value))


def test_log_scalar_reports_under_the_nodes_own_id() -> None:
    curve = Curve()
    log_scalar(2.5, report=curve)
    assert curve.points == [("", 2.5)]


def test_log_scalar_keeps_a_loss_on_its_device_but_not_its_graph() -> None:
    curve = Curve()
    loss = (torch.ones(3, requires_grad=True) * 2).sum()
    log_scalar(loss, report=curve)
    ((name, value),) = curve.points
    assert isinstance(value, Tensor)
    assert (name, value.item(), value.requires_grad) == ("", 6.0, False)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("eight_bit", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(metric: Any, eight_bit: bool, value: float) -> None:
    broken, whole = images(2, 3, 24, 24)
    broken[1, 2, 0, 0] = value  # in the border, too
    with pytest.raises(ValueError, match="sr has values that are not finite"):
        metric(broken, whole, eight_bit=eight_bit)
    with pytest.raises(ValueError, match="hr has values that are not finite"):
        metric(whole, broken, eight_bit=eight_bit)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="the batch is empty; a metric needs one picture or more"):
        psnr(torch.ones(0, 3, 24, 24), torch.ones(0, 3, 24, 24))
