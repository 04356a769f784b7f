"""Products with weights that are learned: convolutions and dense layers.

What a product passes back to what it read is on the way of the backward pass; its weight's gradient is not, so that is
computed beside it, and autograd joins both when the pass is over. So is the weight rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sr_nodes._fused.maps import LAST, Geometry, convolved, of_input, of_weight, once
from sr_nodes._fused.streams import Ahead, on
from sr_pipeline.streams import recorded_stream


class Product(Protocol):
    """What is computed of ``x`` and a weight in bfloat16, and the gradients of both; the weight's is float32."""

    def result(self, x: Tensor, weight: Tensor) -> Tensor: ...
    def of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor: ...
    def of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor: ...


class Convolution(Product):
    """As a module convolves, without its bias."""

    def __init__(self, conv: nn.Conv2d | Geometry) -> None:
        self.conv = conv

    def result(self, x: Tensor, weight: Tensor) -> Tensor:
        return convolved(x, weight, self.conv)

    def of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return of_input(grad.contiguous(memory_format=LAST), x, weight, self.conv)

    def of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return of_weight(grad.contiguous(memory_format=LAST), x, weight, self.conv).float()


class Dense(Product):
    """[B, inputs] to [B, outputs], without a bias."""

    def result(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    def of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return grad @ weight

    def of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(grad.t(), x, out_dtype=torch.float32) if x.is_cuda else (grad.t() @ x).float()


class Learned:
    """A weight on its way into a product, rounded ahead; and its bias on its way to what is made of that."""

    def __init__(self, weight: Callable[[], Tensor], module: nn.Module) -> None:
        def make() -> list[Tensor]:
            self.full = weight()
            low = self.full.detach().to(torch.bfloat16)
            return [low.contiguous(memory_format=LAST) if low.dim() == 4 else low]

        self.low = Ahead(make, module)

    def into(self, x: Tensor, how: Product) -> Tensor:
        """``how``'s result of ``x`` and this weight."""
        (low,) = self.low()
        with torch.no_grad():
            y = how.result(x, low)
        given = y, x.detach(), low, how, _Passed()
        with on(self.low.stream):
            other = _OfWeight.apply(self.full, *given)
        one = _OfInput.apply(x, *given)  # the last, because autograd comes back to it first
        return cast(Tensor, _Both.apply(one, other))

    def biased(self, y: Tensor, bias: Tensor) -> Tensor:
        """The same map [B, C, H, W], to which the bias has been added, but for its gradient."""
        with on(self.low.stream):
            other = _OfBias.apply(bias, y.detach())
        return cast(Tensor, _Both.apply(y, other))


@dataclass
class _Passed:
    """When what the backward pass waits for is there; before, the rest would be in its way."""

    event: torch.cuda.Event | None = None


class _Product(torch.autograd.Function):
    """The product ``y`` of ``x`` and a weight, as a function ``of`` one of both."""

    @staticmethod
    def forward(ctx: Any, of: Tensor, y: Tensor, x: Tensor, low: Tensor, how: Product, passed: _Passed) -> Tensor:
        ctx.how, ctx.passed = how, passed
        ctx.save_for_backward(x, low)
        return y.view_as(y)


class _OfInput(_Product):
    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = ctx.how.of_input(grad, *ctx.saved_tensors) if ctx.needs_input_grad[0] else None
        if (here := recorded_stream(grad.device)) is not None:
            ctx.passed.event = here.record_event()
        return found, None, None, None, None, None


class _OfWeight(_Product):
    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = None
        if ctx.needs_input_grad[0]:
            x, low = ctx.saved_tensors
            here = _reading(grad, x, low)
            if here is not None and ctx.passed.event is not None:
                here.wait_event(ctx.passed.event)
            found = ctx.how.of_weight(grad, x, low)
        return found, None, None, None, None, None


class _OfBias(torch.autograd.Function):
    """The map ``y``, as of its bias."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        _reading(grad)
        return grad.sum((0, 2, 3)), None


def _reading(*tensors: Tensor) -> torch.cuda.Stream | None:
    """The stream, if it is recorded, that the tensors' memory is not used again before."""
    if (here := recorded_stream(tensors[0].device)) is not None:
        for tensor in tensors:
            tensor.record_stream(here)
    return here


class _Both(torch.autograd.Function):
    """One product, told twice."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, other: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad
