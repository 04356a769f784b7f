"""Validation measures what psnr and generate measure, and leaves the generator as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sr_nodes.degradation import bicubic, bicubic_upscale
from sr_nodes.metrics import psnr
from sr_nodes.pairs import Pair, Pairs
from sr_nodes.similarity import ssim
from sr_nodes.types import Generator
from sr_nodes.validation import validate
from sr_pipeline.sockets import Reporter


class Normalised(Generator):
    """A generator whose result depends on its mode: nearest x2, then BatchNorm."""

    architecture = "normalised"
    scale = 2

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.saw_gradients: list[bool] = []

    def forward(self, lr: Tensor) -> Tensor:
        sr: Tensor = self.norm(F.interpolate(lr, scale_factor=2.0, mode="nearest"))
        self.saw_gradients.append(sr.requires_grad)
        return sr


class Curve(Reporter):
    def __init__(self) -> None:
        self.points: dict[str, float | Tensor] = {}

    def scalar(self, name: str, value: float | Tensor) -> None:
        self.points[name] = value


def some_pairs(*sides: int) -> Pairs:
    rng = torch.Generator().manual_seed(0)
    hrs = [torch.rand(1, 3, side, side + 6, generator=rng) for side in sides]
    return Pairs(Pair(str(number), bicubic(hr, 2), hr) for number, hr in enumerate(hrs))


def test_validate_is_the_mean_over_the_pairs_in_eval_mode() -> None:
    pairs, generator, curve = some_pairs(16, 24, 20), Normalised(), Curve()
    assert generator.norm.running_mean is not None
    generator.norm.running_mean.add_(0.1)
    scale = 1 / (1 + generator.norm.eps) ** 0.5
    srs = [((F.interpolate(p.lr, scale_factor=2.0, mode="nearest") - 0.1) * scale).clamp(0, 1) for p in pairs]
    found = validate(generator, pairs, report=curve)
    assert found == pytest.approx(
        {
            "psnr_y": sum(psnr(sr, p.hr, "y", 2) for sr, p in zip(srs, pairs, strict=True)) / 3,
            "psnr_rgb": sum(psnr(sr, p.hr, "rgb", 2) for sr, p in zip(srs, pairs, strict=True)) / 3,
            "ssim_y": sum(ssim(sr, p.hr, "y", 2) for sr, p in zip(srs, pairs, strict=True)) / 3,
        },
        abs=0.01,
    )
    assert curve.points == found


@pytest.mark.parametrize("training", [True, False])
def test_validate_leaves_the_generator_as_it_was(training: bool) -> None:
    generator = Normalised().train(training)
    before = copy.deepcopy(generator.state_dict())
    validate(generator, some_pairs(16, 24))
    assert [m.training for m in generator.modules()] == [training, training]
    after = generator.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert generator.saw_gradients == [False, False]
    assert all(p.grad is None and p.requires_grad for p in generator.parameters())
    assert torch.is_grad_enabled()


def test_the_border_is_the_generators_scale() -> None:
    class Enlarged(Generator):
        architecture = "enlarged"
        scale = 3

        def forward(self, lr: Tensor) -> Tensor:
            return bicubic_upscale(lr, 3)

    hr = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    lr = bicubic(hr, 3)
    found = validate(Enlarged(), Pairs([Pair("a", lr, hr)]))
    assert found["psnr_y"] == pytest.approx(psnr(bicubic_upscale(lr, 3), hr, "y", border=3), abs=1e-12)
    assert found["psnr_y"] != pytest.approx(psnr(bicubic_upscale(lr, 3), hr, "y", border=4), abs=1e-3)


def test_pairs_of_another_scale() -> None:
    hr = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"sr is \[1, 3, 8, 8\] and hr is \[1, 3, 16, 16\]"):
        validate(Normalised(), Pairs([Pair("a", bicubic(hr, 4), hr)]))
