"""Maps of features, their convolutions by cuDNN, and how kernels divide them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAST = torch.channels_last
ROWS = 64
"""Of a picture's pixels, that a program of a kernel has at once."""
GROUPS = 128
"""Of rows at most, which a sum is made of."""
WARPS = 4


class Geometry(NamedTuple):
    """Of a convolution; a module has it as well."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] | str = (0, 0)
    dilation: tuple[int, ...] = (1, 1)


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that says how to go on where somebody wants its own gradient."""
    differentiated = once_differentiable(backward)

    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a recorded step's layers are not differentiated twice; --capture off runs torch's own")
        return differentiated(ctx, *grads)

    return checked


def convolved(x: Tensor, weight: Tensor, conv: nn.Conv2d | Geometry) -> Tensor:
    """By cuDNN, without a bias."""
    y = torch.ops.aten.convolution(x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1)
    return cast(Tensor, y.contiguous(memory_format=LAST))


def of_input(grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d | Geometry) -> Tensor:
    found: Tensor = _backward(grad, x, weight, conv, (True, False, False))[0]
    return found.contiguous(memory_format=LAST)  # as cuDNN leaves it; torch's own convolutions do not


def of_weight(grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d | Geometry) -> Tensor:
    return cast(Tensor, _backward(grad, x, weight, conv, (False, True, False))[1])


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d | Geometry, mask: tuple[bool, ...]
) -> tuple[Any, ...]:
    found: tuple[Any, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1, mask
    )
    return found


def rows_of(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[1], y.shape[1]


def split(rows: int, tile: int, most: int) -> tuple[int, int]:
    """Into how many groups rows are divided, and how many are in each but the last."""
    span = tile * up(up(rows, tile), most)
    return up(rows, span), span


def tile_of(channels: int) -> int:
    return min(64, power(channels))


def power(number: int) -> int:
    """The least power of two that is no smaller, and at least 16."""
    return max(16, 1 << (number - 1).bit_length())


def up(number: int, by: int) -> int:
    return -(-number // by)
