"""Layers that are functions of autograd of their own: of pictures, to pictures, PixelShuffle, and frozen ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sr_nodes._fused.maps import GROUPS, LAST, ROWS, WARPS, of_input, once, power, rows_of, split, tile_of, up

_FEW = 128
"""Of a picture's pixels, that a program has at once which convolves few channels."""


class Shuffle(torch.autograd.Function):
    """PReLU of PixelShuffle 2 of a map and a bias: [B, 4 C, H, W] to [B, C, 2 H, 2 W], channels_last.

    The map has all channels of one corner of the 2 x 2 before those of the next, so that kernels read and write whole
    rows; see ``by_corner``.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
        from sr_nodes._fused.kernels import shuffle

        batch, channels, height, width = y.shape
        rows, channels, tile = batch * height * width, channels // 4, tile_of(channels // 4)
        shape = (batch, channels, 2 * height, 2 * width)
        out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=LAST)
        shuffle[(up(rows, ROWS), up(channels, tile), 4)](
            y, bias, slope, out, rows, width, channels, slope.numel() > 1, ROWS, tile, num_warps=WARPS
        )
        ctx.save_for_backward(y, bias, slope)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from sr_nodes._fused.kernels import unshuffle

        y, bias, slope = ctx.saved_tensors
        batch, channels, height, width = y.shape
        rows, channels, tile = batch * height * width, channels // 4, tile_of(channels // 4)
        groups, span = split(rows, ROWS // 2, GROUPS)
        out, partial = torch.empty_like(y), y.new_empty((2, groups, 4 * channels), dtype=torch.float32)
        sums = partial.new_empty((2, 4, channels))
        arrived = torch.zeros(4 * up(channels, tile), dtype=torch.int32, device=y.device)
        unshuffle[(groups, up(channels, tile), 4)](
            grad.contiguous(memory_format=LAST), y, bias, slope, out, partial, arrived, sums, rows, width, channels,
            span, slope.numel() > 1, power(groups), ROWS // 2, tile, num_warps=WARPS,
        )  # fmt: skip
        return out, sums[0].t().flatten(), sums[1].sum(0) if slope.numel() > 1 else sums[1].sum().view(1)


def by_corner(weight: Tensor) -> Tensor:
    """A weight before PixelShuffle 2, [4 C, ...], in the order of ``Shuffle``: corner by corner."""
    return weight.view(-1, 4, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


class ConvOfFew(torch.autograd.Function):
    """A convolution of a picture [B, C, H, W] as a product of matrices, in bfloat16.

    ``low`` is the ``matrix`` of weight and bias: the bias is a column, so that its gradient is one of the matrix's.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, low: Tensor) -> Tensor:
        from sr_nodes._fused.kernels import patches

        batch, channels, height, width = image.shape
        rows, columns = batch * height * width, low.shape[1]
        read, wide = low.new_empty((rows, columns)), min(64, power(columns))
        patches[(up(rows, ROWS), up(columns, wide))](
            image, read, rows, height, width, *image.stride(), weight.shape[2], channels, columns, ROWS, wide,
            num_warps=WARPS,
        )  # fmt: skip
        ctx.shape, ctx.side = image.shape, weight.shape[2]
        ctx.save_for_backward(low, read if any(ctx.needs_input_grad[1:3]) else None)
        return (read @ low.t()).view(batch, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        low, read = ctx.saved_tensors
        of_y, of_image = grad.permute(0, 2, 3, 1).reshape(-1, len(low)), None
        of_both: tuple[Tensor | None, Tensor | None] = None, None
        if ctx.needs_input_grad[0]:
            of_image = _unpatched(of_y @ low, ctx.shape, ctx.side)
        if read is not None:
            of_both = _of_weight_and_bias(of_y.t() @ read, ctx.shape[1], ctx.side)
        return of_image, *of_both, None


class LeakyConvOfFew(torch.autograd.Function):
    """A LeakyReLU of a convolution of a picture that reads fewer than 64 numbers, as ``ConvOfFew``; 0 is ReLU's
    slope."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, low: Tensor, slope: float) -> Tensor:
        from sr_nodes._fused.kernels import convolve_few

        batch, channels, height, width = image.shape
        rows, (outputs, columns) = batch * height * width, low.shape
        out = torch.empty((batch, outputs, height, width), dtype=low.dtype, device=low.device, memory_format=LAST)
        ctx.side, ctx.slope, tile = weight.shape[2], slope, tile_of(outputs)
        convolve_few[(up(rows, _FEW), up(outputs, tile))](
            image, low, out, rows, height, width, *image.stride(), outputs, slope, ctx.side, channels, columns, _FEW,
            tile, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(image, low, out)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        from sr_nodes._fused.kernels import convolve_few_back, convolve_few_weight

        image, low, out = ctx.saved_tensors
        batch, channels, height, width = image.shape
        rows, (outputs, columns), tile = batch * height * width, low.shape, tile_of(len(low))
        grad, of_image = grad.contiguous(memory_format=LAST), None
        of_both: tuple[Tensor | None, Tensor | None] = None, None
        if ctx.needs_input_grad[0]:
            of_patches = low.new_empty((rows, columns))
            convolve_few_back[(up(rows, _FEW),)](
                grad, out, low, of_patches, rows, outputs, ctx.slope, columns, _FEW, tile, num_warps=WARPS
            )
            of_image = _unpatched(of_patches, image.shape, ctx.side)
        if any(ctx.needs_input_grad[1:3]):
            groups, span = split(rows, _FEW, 2 * GROUPS)
            partial = torch.empty((groups, outputs, columns), dtype=torch.float32, device=low.device)
            convolve_few_weight[(groups, up(outputs, tile))](
                grad, out, image, partial, rows, height, width, *image.stride(), outputs, span, ctx.slope, ctx.side,
                channels, columns, _FEW, tile, num_warps=WARPS,
            )  # fmt: skip
            of_both = _of_weight_and_bias(partial.sum(0), channels, ctx.side)
        return of_image, *of_both, None, None


def _unpatched(of_patches: Tensor, shape: torch.Size, side: int) -> Tensor:
    """The gradient of a picture of that of its patches."""
    from sr_nodes._fused.kernels import unpatches

    (_, channels, height, width), (rows, columns) = shape, of_patches.shape
    out = torch.empty(shape, dtype=torch.float32, device=of_patches.device)
    unpatches[(up(rows, 128),)](of_patches, out, rows, height, width, side, channels, columns, 128, num_warps=WARPS)
    return out


def _of_weight_and_bias(found: Tensor, channels: int, side: int) -> tuple[Tensor, Tensor]:
    """The gradients of both of that of their ``matrix``."""
    used = side * side * channels
    return found[:, :used].view(-1, side, side, channels).permute(0, 3, 1, 2).float(), found[:, used].float()


@torch.no_grad()
def matrix(weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[outputs, columns]: a row's weights, channels last, then the bias, then zeros; columns are 16, 32, 64 or more by
    16."""
    outputs, inputs, side, _ = weight.shape
    used = inputs * side * side
    columns = power(used + 1) if used < 64 else 16 * up(used + 1, 16)
    low = weight.new_zeros((outputs, columns), dtype=dtype)
    low[:, :used].view(outputs, side, side, inputs).copy_(weight.permute(0, 2, 3, 1))
    low[:, used].copy_(bias)
    return low


class SumRows(torch.autograd.Function):
    """A convolution's result in float32, [B, C, H, W], of its ``side`` rows', [B, 32, H, W], channels_last; the bias is
    given no gradient."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, bias: Tensor, side: int) -> Tensor:
        from sr_nodes._fused.kernels import sum_rows

        batch, columns, height, width = parts.shape
        rows, few = batch * height * width, bias.numel()
        out = parts.new_empty((batch, few, height, width), dtype=torch.float32)
        wide = 1 << (few - 1).bit_length()
        sum_rows[(up(rows, 128),)](
            parts, bias, out, rows, height, width, side, few, columns, 128, wide, num_warps=WARPS
        )
        ctx.side, ctx.dtype, ctx.columns = side, parts.dtype, columns
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from sr_nodes._fused.kernels import spread_rows

        batch, few, height, width = grad.shape
        rows, grad = batch * height * width, grad.contiguous()
        shape = (batch, ctx.columns, height, width)
        out = torch.empty(shape, dtype=ctx.dtype, device=grad.device, memory_format=LAST)
        spread_rows[(up(rows, ROWS),)](
            grad, out, rows, height, width, ctx.side, few, ctx.columns, ROWS, num_warps=WARPS
        )
        return out, None, None


class ConvReLU(torch.autograd.Function):
    """ReLU of a convolution that is not learned, in one kernel of cuDNN's, then perhaps the largest of each 2 x 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, pooled: bool) -> Tensor:
        from sr_nodes._fused.kernels import pool

        geometry: Any = conv.stride, conv.padding, conv.dilation, conv.groups
        y = torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        ctx.conv, ctx.pooled = conv, pooled
        ctx.save_for_backward(x, weight, y)
        if not pooled:
            return y
        batch, channels, height, width = y.shape
        shape = (batch, channels, height // 2, width // 2)
        out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=LAST)
        rows, channels = rows_of(out)
        pool[(up(rows, 32), up(channels, 64))](y, out, rows, height, width, channels, 32, 64, num_warps=WARPS)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        from sr_nodes._fused.kernels import unpool

        x, weight, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        if ctx.pooled:
            height, width = y.shape[2:]
            of_y = torch.zeros_like(y) if height % 2 or width % 2 else torch.empty_like(y)
            rows, channels = rows_of(grad)
            unpool[(up(rows, 32), up(channels, 64))](
                grad, y, of_y, rows, height, width, channels, 32, 64, num_warps=WARPS
            )
        else:
            of_y = torch.ops.aten.threshold_backward(grad, y, 0)
        return of_input(of_y, x, weight, ctx.conv), None, None, None, None
