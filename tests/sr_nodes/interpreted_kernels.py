"""The kernels of ``fused``, run by Triton's interpreter on the CPU: test_fused.py runs this file with it switched on.

Each is compared with torch's own layers, in float32 where it can be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes import fused
from sr_nodes._fused import chain as chains
from sr_nodes._fused import kernels, layers
from sr_nodes._fused.maps import rows_of, up
from sr_nodes._fused.streams import Beside
from sr_nodes.discriminators import SRGANDiscriminator
from sr_nodes.fused import Layer, chain
from sr_nodes.modules import seeded
from sr_nodes.srresnet import SRResNet

SLOPES, LAST = [1, 24], torch.channels_last


def assert_close(found: Tensor, wanted: Tensor, bound: float = 1e-5) -> None:
    """By the largest number of what is wanted."""
    assert (found.float() - wanted).abs().max() <= bound * wanted.abs().max()


def assert_same_gradients(wanted: Tensor, found: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    """Of what either was made of."""
    grad, (ones, others) = noise(*wanted.shape, seed=3), zip(*pairs, strict=True)
    found_grads = torch.autograd.grad(found, others, grad)
    for of_found, of_wanted in zip(found_grads, torch.autograd.grad(wanted, ones, grad), strict=True):
        assert_close(of_found, of_wanted)


def twice(*tensors: Tensor) -> Iterable[list[Tensor]]:
    return ([tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Three layers: with a PReLU, with a result added, with both a LeakyReLU and a result added."""

    def __init__(self, slopes: int, bias: bool, channels: int = 24) -> None:
        super().__init__()
        with seeded(torch.Generator().manual_seed(0)):
            self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for _ in range(3))
        self.bns = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.acts = nn.ModuleList([nn.PReLU(slopes), nn.LeakyReLU(0.2)])
        for n, bn in enumerate(self.bns):
            nn.init.uniform_(bn.weight, -2, 2, generator=torch.Generator().manual_seed(n))  # type: ignore[arg-type]
            nn.init.uniform_(bn.bias, -1, 1, generator=torch.Generator().manual_seed(n + 9))  # type: ignore[arg-type]

    def layers(self) -> tuple[Layer, ...]:
        conv, bn, act = self.convs, self.bns, self.acts
        return (
            Layer(conv[0], bn[0], act[0]),  # type: ignore[arg-type]
            Layer(conv[1], bn[1], skip=0),  # type: ignore[arg-type]
            Layer(conv[2], bn[2], act[1], skip=1),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(("channels", "slopes"), [(24, 1), (24, 24), (16, 1), (16, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_chain_is_its_layers(channels: int, slopes: int, bias: bool) -> None:
    """Results, all gradients, running statistics; over more rows than one program has, and a rest of them. Some are
    convolved by cuDNN, some by a kernel of ours."""
    one = Net(slopes, bias, channels)
    other = copy.deepcopy(one)
    (x,), (y,) = twice(noise(3, channels, 11, 9).to(memory_format=LAST))
    wanted = chain(x, one.layers())
    found = fused_chain(other, y)
    assert_close(found, wanted)
    grad = noise(3, channels, 11, 9, seed=1)
    wanted.backward(grad)  # type: ignore[no-untyped-call]
    found.backward(grad)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert y.grad is not None
    assert_close(y.grad, x.grad)
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        if name.startswith("convs") and name.endswith("bias"):  # which BatchNorm takes away
            assert q.grad.abs().max() == 0
            assert p.grad.abs().max() < 1e-4
        else:
            assert_close(q.grad, p.grad)
    for kept, moved in zip(one.buffers(), other.buffers(), strict=True):
        assert_close(moved, kept.float())


def fused_chain(net: Net, x: Tensor) -> Tensor:
    those = net.layers()
    weights = [layer.conv.weight.detach().contiguous(memory_format=LAST) for layer in those]
    counters = chains.prepared(those)[-1]
    pending = list[Beside]()
    found: Tensor = chains.Chain.apply(x, those, lambda: [*weights, counters], chains.awaited(those, pending), pending)
    return found


def test_two_passes_add_up_their_gradients() -> None:
    net = Net(1, bias=True, channels=16)
    pictures = [noise(2, 16, 4, 5, seed=n).to(memory_format=LAST) for n in (0, 1)]
    alone = [torch.autograd.grad(fused_chain(net, x).square().sum(), list(net.parameters())) for x in pictures]
    results = [fused_chain(net, x) for x in pictures]
    awaited = [result.grad_fn.next_functions[-1][0] for result in results]  # type: ignore[union-attr]
    assert len({id(of.next_functions[0][0]) for of in awaited}) == 1  # type: ignore[union-attr]
    sum(result.square().sum() for result in results).backward()  # type: ignore[union-attr]
    for p, one, other in zip(net.parameters(), *alone, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, one + other)


def test_what_is_frozen_of_a_chain_is_all_that_gets_no_gradient() -> None:
    net = Net(1, bias=False)
    frozen = {"convs.1.weight", "bns.0.weight", "bns.0.bias"}
    for name, p in net.named_parameters():
        p.requires_grad_(name not in frozen)
    fused_chain(net, noise(2, 24, 4, 4).to(memory_format=LAST)).sum().backward()  # type: ignore[no-untyped-call]
    assert {name for name, p in net.named_parameters() if p.grad is None} == frozen


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    with pytest.raises(
        ValueError, match=r"^BatchNorm has one value a channel, of a map \[1, 24, 1, 1\]; give a larger"
    ):
        fused_chain(Net(1, bias=False), noise(1, 24, 1, 1).to(memory_format=LAST))


def test_who_wants_the_gradient_of_a_gradient_is_told_what_to_do() -> None:
    x = noise(2, 24, 4, 4).to(memory_format=LAST).requires_grad_()
    with pytest.raises(RuntimeError, match=r"not differentiated twice; --capture off runs torch's own"):
        torch.autograd.grad(fused_chain(Net(1, bias=False), x).sum(), x, create_graph=True)


@pytest.mark.parametrize("slopes", SLOPES)
def test_shuffle_is_pixel_shuffle_and_prelu(slopes: int) -> None:
    act = nn.PReLU(slopes)
    (x, bias, slope), (y, shift, below) = twice(
        noise(2, 96, 5, 7).to(memory_format=LAST), noise(96), act.weight.detach()
    )
    wanted = F.prelu(F.pixel_shuffle(x + bias.view(-1, 1, 1), 2), slope)
    corners = layers.by_corner(y.transpose(0, 1)).transpose(0, 1).contiguous(memory_format=LAST)
    found: Tensor = layers.Shuffle.apply(corners, shift, below)
    assert_close(found, wanted)
    assert_same_gradients(wanted, found, (x, y), (bias, shift), (slope, below))


@pytest.mark.parametrize("side", [3, 9])
def test_summed_rows_are_the_convolution(side: int) -> None:
    given = noise(2, 8, 13, 11), noise(3, 8, side, side, seed=1), noise(3, seed=2)
    (x, weight, bias), (y, other, shift) = twice(*given)
    wanted = F.conv2d(x, weight, bias, padding=side // 2)
    rows = F.pad(other.permute(2, 0, 1, 3).reshape(3 * side, -1, 1, side), (0, 0, 0, 0, 0, 0, 0, 32 - 3 * side))
    found: Tensor = layers.SumRows.apply(
        F.conv2d(y, rows, None, 1, (0, side // 2)).contiguous(memory_format=LAST), shift, side
    )
    assert_close(found, wanted)
    assert_same_gradients(wanted, found, (x, y), (weight, other))


@pytest.mark.parametrize("side", [3, 9])
def test_a_convolution_of_few_channels(side: int) -> None:
    """In bfloat16, which keeps 8 bits."""
    drawn = noise(2, 3, 12, 10), noise(20, 3, side, side, seed=1) / side**2, noise(20, seed=2)
    (x, weight, bias), (y, other, shift) = twice(*(tensor.bfloat16().float() for tensor in drawn))
    wanted = F.conv2d(x, weight, bias, padding=side // 2)
    found: Tensor = layers.ConvOfFew.apply(y, other, shift, layers.matrix(other, shift))
    assert_close(found, wanted, 0.01)
    grad = noise(2, 20, 12, 10, seed=3).bfloat16()
    wanted.backward(grad.float())  # type: ignore[no-untyped-call]
    found.backward(grad)  # type: ignore[no-untyped-call]
    for p, q in ((x, y), (weight, other), (bias, shift)):
        assert p.grad is not None
        assert q.grad is not None
        assert (q.grad - p.grad).norm() < 0.02 * p.grad.norm()


@pytest.mark.parametrize(("side", "channels"), [(3, 3), (1, 3), (3, 1)])
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("outputs", [20, 72])
def test_a_convolution_of_few_channels_and_a_leaky_relu(side: int, channels: int, slope: float, outputs: int) -> None:
    """Of a picture whose pixels lie in any order, and more of them than a group has."""
    shape = outputs, channels, side, side
    drawn = noise(2, channels, 14, 10).to(memory_format=LAST), noise(*shape, seed=1), noise(outputs, seed=2)
    (x, weight, bias), (y, other, shift) = twice(*drawn)
    wanted = F.leaky_relu(F.conv2d(x, weight, bias, padding=side // 2), slope)
    low = layers.matrix(other, shift, torch.float32)
    found: Tensor = layers.LeakyConvOfFew.apply(y, other, shift, low, slope)
    assert found.is_contiguous(memory_format=LAST)
    assert_close(found, wanted)
    assert_same_gradients(wanted, found, (x, y), (weight, other), (bias, shift))


@pytest.mark.parametrize(("height", "width"), [(12, 10), (13, 11)])
def test_pooling_and_what_goes_back_through_it_and_a_relu(height: int, width: int) -> None:
    """Many numbers are equal, as in bfloat16: the first of the largest gets the gradient; what is left over, none."""
    before = torch.randint(-2, 3, (2, 20, height, width), generator=torch.Generator().manual_seed(0)).float()
    before.requires_grad_()
    wanted = F.max_pool2d(before.relu(), 2)
    x = before.detach().relu().contiguous(memory_format=LAST)
    grad = noise(*wanted.shape).contiguous(memory_format=LAST)
    wanted.backward(grad)  # type: ignore[no-untyped-call]
    found, back = torch.empty_like(grad), torch.zeros_like(x)
    rows, channels = rows_of(found)
    grid = up(rows, 32), 1
    kernels.pool[grid](x, found, rows, height, width, channels, 32, 64)
    kernels.unpool[grid](grad, x, back, rows, height, width, channels, 32, 64)
    assert torch.equal(found, wanted)
    assert before.grad is not None
    assert torch.equal(back, before.grad)


def test_triton_makes_kernels_here() -> None:
    assert fused._compiles(torch.device("cpu"))


@pytest.mark.parametrize(
    ("made", "side"),
    [(lambda: SRResNet(2, 1, 16), 16), (lambda: SRResNet(3, 1, 18), 16), (lambda: SRGANDiscriminator(48, 8, 16), 48)],
    ids=["G", "G of scale 3", "D"],
)
def test_few_kernels_are_as_near_to_float32_as_autocast(
    made: Callable[[], nn.Module], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's result, and the gradients of all that it learns but for biases before BatchNorm and single slopes,
    which nearly cancel. The interpreter has no products of bfloat16, so convolutions are torch's, or of float32."""
    monkeypatch.setattr(chains, "_is_few", lambda x, conv: False)
    exact = partial(layers.matrix, dtype=torch.float32)
    monkeypatch.setattr(fused, "matrix", lambda w, bias: (exact if w[0].numel() < 64 else layers.matrix)(w, bias))
    with seeded(torch.Generator().manual_seed(0)):
        net = made()
    left_out = ("blocks.1.bias", "body.0.bias", "body.3.bias", "head.1.weight", "body.2.weight", "upsample.2.weight")
    image, passed = noise(4, 3, side, side), []
    for mixed, few in ((False, False), (True, False), (True, True)):
        one = copy.deepcopy(net).to(memory_format=LAST)
        monkeypatch.setattr(fused, "_is_mixed", lambda x, few=few: few)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            result = one(image).float()
        result.square().mean().backward()
        assert all(p.grad is not None for p in one.parameters())
        passed.append([result.detach(), *(p.grad for name, p in one.named_parameters() if not name.endswith(left_out))])
    wanted, plain, found = (
        torch.cat([t.flatten() / of.norm() for t, of in zip(those, passed[0], strict=True)]) for those in passed
    )
    assert not torch.equal(found, plain)
    assert (found - wanted).norm() < 1.25 * (plain - wanted).norm()
