"""The receptive field is what a float64 gradient says, for every phase; and what has none is told."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.receptive import Field, receptive_field, receptive_radius
from sr_nodes.rrdbnet import rrdbnet
from sr_nodes.srresnet import msrresnet, srresnet
from sr_nodes.types import Generator
from sr_nodes.upscalers import Interpolation


def positive(generator: Generator) -> Generator:
    """The same network in which nothing can cancel or be dead: positive weights, and inputs that stay positive."""
    made = copy.deepcopy(generator).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(parameter.abs() + 0.01)
    return made


def gradient_radius(generator: Generator, size: int, period: int = 1) -> int:
    """The farthest LR pixel, along either axis, on which an SR pixel of some phase depends."""
    net, middle, farthest = positive(generator), size // 2 // period * period, 0
    for phase in range(net.scale * period):
        lr = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
        row = net.scale * middle + phase
        (gradient,) = torch.autograd.grad(net(lr)[0, :, row, row].sum(), lr)
        for i in gradient[0].abs().sum(0).nonzero().flatten().tolist():
            farthest = max(farthest, abs(i - row // net.scale))
    return farthest


NETS: dict[str, tuple[Callable[[], Generator], int]] = {
    "srresnet": (lambda: srresnet(blocks=2, channels=3), 12),
    "srresnet x2": (lambda: srresnet(2, blocks=1, channels=3), 10),
    "srresnet x3": (lambda: srresnet(3, blocks=1, channels=3), 10),
    "msrresnet": (lambda: msrresnet(blocks=2, channels=3), 7),
    "msrresnet x3": (lambda: msrresnet(3, blocks=1, channels=3), 5),
    "rrdbnet": (lambda: rrdbnet(blocks=1, channels=3, growth=2), 19),
    "bicubic": (lambda: Interpolation("bicubic", 4), 2),
    "nearest": (lambda: Interpolation("nearest", 3), 0),
}


@pytest.mark.parametrize("name", NETS)
def test_the_radius_is_the_gradients(name: str) -> None:
    build, radius = NETS[name]
    generator = build()
    found = receptive_field(generator)
    assert found == Field(radius, grid=1)
    if name != "bicubic":  # its weights are in part negative, and in part zero
        assert gradient_radius(generator, size=2 * radius + 9) == radius


@pytest.mark.parametrize(("scale", "grid"), [(2, 2), (1, 4)])
def test_folded_pixels_have_a_grid_and_a_bound(scale: int, grid: int) -> None:
    generator = rrdbnet(scale, blocks=1, channels=3, growth=2)  # type: ignore[arg-type]
    field = receptive_field(generator)
    assert field is not None
    assert field.grid == grid
    exact = gradient_radius(generator, size=2 * field.radius + 24 // grid * grid, period=grid)
    assert exact <= field.radius < exact + grid


def test_the_papers_generator_sees_40_pixels_far() -> None:
    # 4 of the 9 x 9 convolution, 33 of the 3 x 3, 1 and a half of the enlarging ones, 1 of the last at a quarter pixel
    assert receptive_radius(srresnet(channels=4)) == 40


class Small(Generator):
    architecture, scale = "small", 1

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.config = {}
        self.made = forward

    def forward(self, lr: Tensor) -> Tensor:
        return self.made(lr)


UNBOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "global pooling": lambda lr: lr * lr.mean(dim=(-2, -1), keepdim=True),
    "attention": lambda lr: (lr.flatten(2).mT @ lr.flatten(2)).softmax(-1).matmul(lr.flatten(2).mT).mT.view_as(lr),
    "the whole row": lambda lr: lr.cumsum(-1),
    "the whole column": lambda lr: lr.cumsum(-2),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_without_bound_it_is_none(name: str) -> None:
    assert receptive_radius(Small(UNBOUNDED[name]), limit=128) is None


def test_what_depends_on_the_place_is_none() -> None:
    assert receptive_field(Small(lambda lr: lr * torch.arange(lr.shape[-1]))) is None


def test_columns_count_as_rows_do() -> None:
    upright = torch.ones(3, 1, 7, 1)
    assert receptive_radius(Small(lambda lr: F.conv2d(lr, upright, padding=(3, 0), groups=3))) == 3


@pytest.mark.parametrize(("limit", "radius"), [(99, None), (100, 100), (512, 100)])
def test_beyond_the_limit_it_is_none(limit: int, radius: int | None) -> None:
    far = torch.ones(3, 1, 1, 3)
    net = Small(lambda lr: F.conv2d(lr, far, padding=(0, 100), dilation=(1, 100), groups=3))
    assert receptive_radius(net, limit) == radius


def far_blocks(lr: Tensor) -> Tensor:
    """Each SR pixel is of the blocks of 16 pixels that are up to three blocks and a pixel away from it."""
    blocks = F.conv2d(F.avg_pool2d(lr, 16, ceil_mode=True), torch.ones(3, 1, 1, 7), padding=(0, 3), groups=3)
    pixels = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., : lr.shape[2], : lr.shape[3]]
    return F.conv2d(pixels, torch.ones(3, 1, 1, 3), padding=(0, 1), groups=3)


def test_the_limit_itself_on_the_largest_grid() -> None:
    assert receptive_field(Small(far_blocks), limit=64) == Field(64, grid=16)


def test_a_diverged_generator_has_no_field() -> None:
    generator = srresnet(blocks=1, channels=3)
    nn.init.constant_(generator.get_parameter("tail.bias"), torch.nan)
    assert receptive_field(generator) is None


def test_the_generator_is_left_as_it_was() -> None:
    generator = srresnet(blocks=1, channels=3).double().train()
    before = copy.deepcopy(generator.state_dict())
    receptive_field(generator)
    assert generator.training
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
