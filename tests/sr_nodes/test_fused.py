"""Layers in few kernels: what they do where they are the layers, and the kernels themselves by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from sr_nodes import fused
from sr_nodes._fused.products import Dense, Learned
from sr_nodes.discriminators import discriminator
from sr_nodes.fused import conv_to_few
from sr_nodes.srresnet import srresnet
from sr_nodes.types import Generator


def test_kernels_are_torchs_layers() -> None:
    """In a process of its own, because Triton reads when it is imported whether to interpret."""
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted_kernels.py")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    given = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(words, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "36 passed" in done.stdout


class Told(Dense):
    """Tells in which order its gradients are computed."""

    def __init__(self) -> None:
        self.order = list[str]()

    def of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        self.order.append("input")
        return super().of_input(grad, x, weight)

    def of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        self.order.append("weight")
        return super().of_weight(grad, x, weight)


def test_what_a_backward_pass_waits_for_is_computed_before_weights_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    for layer in (one, other):
        layer.weight = nn.Parameter(torch.randn(4, 4, generator=rng).bfloat16().float())
    weight, first = one.weight, other.weight
    x, told = torch.randn(3, 4, generator=rng).bfloat16(), Told()
    y = Learned(lambda: first, other).into(Learned(lambda: weight, one).into(x, told), told)
    y.float().square().sum().backward()  # type: ignore[no-untyped-call]
    assert told.order == ["input", "weight", "weight"]  # of the first product nobody wants what it read
    wanted, then = (p.detach().clone().requires_grad_() for p in (weight, first))
    (x.float() @ wanted.t() @ then.t()).square().sum().backward()  # type: ignore[no-untyped-call]
    for p, q in ((weight, wanted), (first, then)):
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.dtype == torch.float32
        assert (p.grad - q.grad).norm() < 0.02 * q.grad.norm()


@pytest.mark.parametrize("side", [3, 5, 9])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_convolution_to_few_is_the_convolution(side: int, outputs: int) -> None:
    """Also of pictures that are smaller than the kernel."""
    rng = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(8, outputs, side, padding=side // 2)
    learned = list(conv.parameters())
    for height, width in ((13, 11), (2, 3), (1, 1)):
        x = torch.randn(2, 8, height, width, generator=rng)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        wanted, found = conv(one), conv_to_few(other, conv)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        grad = torch.randn(wanted.shape, generator=rng)
        of_wanted = torch.autograd.grad(wanted, [one, *learned], grad)
        of_found = torch.autograd.grad(found, [other, *learned], grad)
        torch.testing.assert_close(of_found, of_wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 64, 3, padding=1),
        nn.Conv2d(8, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 3, 3, stride=2, padding=1),
        nn.Conv2d(8, 3, 3),
        nn.Conv2d(8, 3, (3, 5), padding=(1, 2)),
        nn.Conv2d(9, 3, 3, padding=1, groups=3),
        nn.Conv2d(8, 3, 3, padding=1, bias=False),
    ],
    ids=["to many", "reflecting", "stride", "smaller", "not square", "groups", "no bias"],
)
def test_another_convolution_stays_as_it_is(conv: nn.Conv2d) -> None:
    x = torch.randn(2, conv.in_channels, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(conv_to_few(x, conv), conv(x))


def test_where_triton_makes_no_kernels_it_is_told_once() -> None:
    """As on a CPU, or without a C compiler."""
    pytest.importorskip("triton")
    fused._compiles.cache_clear()
    with pytest.warns(
        RuntimeWarning, match=r"^Triton makes no kernels here \(.+\); steps are recorded with torch's own"
    ):
        assert not fused._compiles(torch.device("cpu"))
    assert not fused._compiles(torch.device("cpu"))
    fused._compiles.cache_clear()


@pytest.mark.parametrize("make", [lambda: srresnet(blocks=1), lambda: discriminator(crop=16)], ids=["G", "D"])
def test_layers_are_called_as_modules_where_nothing_is_recorded(make: Callable[[], nn.Module]) -> None:
    """So hooks on them are called, and torch.fx can trace a generator."""
    net, picture, called = make(), torch.rand(2, 3, 16, 16), set[str]()
    for name, module in net.named_children():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    net(picture)
    assert called >= {name for name, _ in net.named_children()} - {"tail"}  # which is made of rows
    if isinstance(net, Generator):
        torch.testing.assert_close(torch.fx.symbolic_trace(net.eval())(picture), net(picture))
