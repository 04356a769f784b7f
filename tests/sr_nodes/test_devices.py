"""Degradations on any device: batched there, without a wait for it, and with the same recipe for one seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sr_nodes.blur import random_blur, sinc_filter
from sr_nodes.choice import random_choice
from sr_nodes.degradation import bicubic, gaussian_downsample
from sr_nodes.jpeg import jpeg, quantize
from sr_nodes.noise import gaussian_noise, poisson_noise, random_noise
from sr_nodes.resize import random_resize, resize_to_scale

Degradation = Callable[..., Tensor]


def to_quarter(image: Tensor, rng: torch.Generator | None = None) -> Tensor:
    return resize_to_scale(image, image, 4, rng=rng)


def either(image: Tensor, rng: torch.Generator | None = None) -> Tensor:
    return random_choice(image, image + 1, rng=rng)


DRAWN: list[Degradation] = [random_blur, sinc_filter, random_resize, to_quarter, jpeg, either]
"""Which give the same on every device; those that add noise do not."""
NOISY: list[Degradation] = [gaussian_noise, poisson_noise, random_noise]
FIXED: list[Degradation] = [bicubic, gaussian_downsample, quantize]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(16, 3, 40, 36, generator=rng())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("degrade", [*DRAWN, *NOISY, *FIXED])
def test_no_value_is_read_back_from_the_device(degrade: Degradation) -> None:
    """The device meta computes shapes alone: it refuses whatever would bring a value to the host."""
    made = degrade(torch.empty(5, 3, 40, 36, device="meta"))
    assert made.device.type == "meta"
    assert made.shape[:2] == (5, 3)
    with pytest.raises(RuntimeError, match="meta tensors"):
        made.sum().item()


@pytest.mark.gpu
@pytest.mark.parametrize("degrade", DRAWN)
def test_cuda_gives_what_the_cpu_gives(degrade: Degradation, image: Tensor) -> None:
    for seed in range(5):
        cpu, cuda = degrade(image, rng=rng(seed)), degrade(image.cuda(), rng=rng(seed))
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=0, atol=1e-6 if degrade is jpeg else 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("degrade", NOISY)
def test_noise_on_cuda_is_other_noise_of_the_same_strength(degrade: Degradation) -> None:
    """Each image's deviation is that of the CPU's but for chance: the draws by the image are the same."""
    image = torch.linspace(0.4, 0.6, 96).expand(16, 3, 96, 96)
    cpu, cuda = (degrade(i, rng=rng(1)).cpu() - image for i in (image, image.cuda()))
    assert not torch.equal(cpu, cuda)
    assert torch.equal(cuda, degrade(image.cuda(), rng=rng(1)).cpu() - image)
    torch.testing.assert_close(cuda.std((1, 2, 3)), cpu.std((1, 2, 3)), rtol=0.1, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("degrade", [*DRAWN, *NOISY, *FIXED])
def test_nothing_waits_for_cuda(degrade: Degradation, image: Tensor) -> None:
    there = image.cuda()
    degrade(there)  # libraries may wait at their first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed in range(5):
            degrade(there, rng=rng(seed)) if degrade not in FIXED else degrade(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
