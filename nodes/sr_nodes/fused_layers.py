"""What ``fused`` is made of: autograd's functions over Triton's kernels and cuDNN's convolutions. No nodes.

Maps are bfloat16 and channels_last, [B, C, H, W] in torch's words and rows of channels in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ROWS = 64
"""Of a picture's pixels, that a program of a kernel has at once."""
_GROUPS = 128
"""Of rows at most, which a sum is made of."""
_WARPS = 4
_BESIDE = 3
"""Streams for the gradients of weights, which nothing waits for until the pass is over."""
_NONE, _SLOPE, _LEAK = 0, 1, 2
LAST = torch.channels_last


@dataclass(frozen=True)
class Layer:
    """Convolution, BatchNorm, perhaps a PReLU or LeakyReLU, and perhaps an earlier result added."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    act: nn.Module | None = None
    skip: int | None = None
    """The number of the result that is added: 0 is what goes into the chain, 1 the first layer's."""


def learned_by(layer: Layer) -> tuple[Tensor | None, ...]:
    """What a layer learns: weight and bias of the convolution, of BatchNorm, and the slope."""
    slope = layer.act.weight if isinstance(layer.act, nn.PReLU) else None
    return layer.conv.weight, layer.conv.bias, layer.bn.weight, layer.bn.bias, slope


def _once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that says how to go on where somebody wants its own gradient."""
    once = once_differentiable(backward)

    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a recorded step's layers are not differentiated twice; --capture off runs torch's own")
        return once(ctx, *grads)

    return checked


class Chain(torch.autograd.Function):
    """Layers one after the other, [B, C, H, W] in bfloat16 and channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: tuple[Layer, ...], *tensors: Tensor | None) -> Tensor:
        lows = _cast([layer.conv.weight for layer in layers], x.dtype)
        results, saved = [x], list[Tensor]()
        for layer, low in zip(layers, lows, strict=True):
            y = _convolved(results[-1], low, layer.conv)
            out, kept = _normalised(y, layer, None if layer.skip is None else results[layer.skip])
            saved += [y, kept]
            results.append(out)
        ctx.layers = layers
        ctx.save_for_backward(*results[:-1], *saved, *lows, *(t for t in tensors if t is not None))
        return results[-1]

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        layers, count = ctx.layers, len(ctx.layers)
        saved = ctx.saved_tensors
        results, maps, lows = saved[:count], saved[count : 3 * count], saved[3 * count : 4 * count]
        wanted = ctx.needs_input_grad
        grads: list[list[Tensor]] = [*([] for _ in layers), [grad.contiguous(memory_format=LAST)]]
        """Of each result, what comes from whoever reads it."""
        beside = _Beside(grad.device)
        weights, sums = dict[int, Tensor](), dict[int, Tensor]()
        for n in range(count - 1, -1, -1):
            layer, (y, kept) = layers[n], maps[2 * n : 2 * n + 2]
            of_out, of_y, sums[n] = _normalised_backward(grads.pop(), y, kept, layer)
            if layer.skip is not None:
                grads[layer.skip].append(of_out)
            if wanted[2 + 5 * n]:
                weights[n] = beside(partial(_of_weight, of_y, results[n], lows[n], layer.conv))
            if n or wanted[0]:
                grads[n].append(_of_input(of_y, results[n], lows[n], layer.conv))
        beside.join()
        learned = _learned(layers, weights, sums) if any(wanted[2:]) else [None] * (5 * count)
        return (sum(grads[0][1:], grads[0][0]) if wanted[0] else None, None, *learned)


def _learned(layers: Sequence[Layer], weights: dict[int, Tensor], sums: dict[int, Tensor]) -> list[Tensor | None]:
    """The gradients of ``learned_by`` of all layers, by as few kernels as for one."""
    found: list[Tensor | None] = [None] * (5 * len(layers))
    for n, weight in zip(weights, _cast(list(weights.values()), torch.float32), strict=True):
        found[5 * n] = weight
    biases = {n: layer.conv.bias for n, layer in enumerate(layers) if layer.conv.bias is not None}
    if biases:
        zeros = torch.zeros(sum(bias.numel() for bias in biases.values()), device=sums[0].device)
        for n, zero in zip(biases, torch.split(zeros, [bias.numel() for bias in biases.values()]), strict=True):
            found[5 * n + 1] = zero
    for n in range(len(layers)):
        found[5 * n + 2], found[5 * n + 3] = sums[n][1], sums[n][0]
    slopes = {n: layer.act.weight for n, layer in enumerate(layers) if isinstance(layer.act, nn.PReLU)}
    single = [n for n, slope in slopes.items() if slope.numel() == 1]
    for n in slopes.keys() - set(single):
        found[5 * n + 4] = sums[n][2]
    if single:
        for n, slope in zip(single, torch.stack([sums[n][2] for n in single]).sum(1, keepdim=True), strict=True):
            found[5 * n + 4] = slope
    return found


class _Beside:
    """Amid a recording, runs work on streams beside the current one, which waits for all of it in the end: branches of
    the graph."""

    def __init__(self, device: torch.device) -> None:
        recorded = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self.streams = _streams(device) if recorded else ()
        self.works = list[Callable[[], Tensor]]()
        """Kept until all is over, with what they read: its memory must not be used again before."""

    def __call__(self, work: Callable[[], Tensor]) -> Tensor:
        if not self.streams:
            return work()
        stream = self.streams[len(self.works) % len(self.streams)]
        self.works.append(work)
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            made = work()
        made.record_stream(torch.cuda.current_stream(stream.device))  # which reads it when the next is at work there
        return made

    def join(self) -> None:
        for stream in self.streams[: len(self.works)]:
            torch.cuda.current_stream(stream.device).wait_stream(stream)


@cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(_BESIDE))  # type: ignore[no-untyped-call]


class Shuffle(torch.autograd.Function):
    """PReLU of PixelShuffle 2 of a map and a bias: [B, 4 C, H, W] to [B, C, 2 H, 2 W], channels_last."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
        from sr_nodes._triton_kernels import shuffle

        batch, channels, height, width = y.shape
        rows, channels, tile = batch * height * width, channels // 4, _tile(channels // 4)
        shape = (batch, channels, 2 * height, 2 * width)
        out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=LAST)
        shuffle[(_up(rows, 16), _up(channels, tile))](
            y, bias, slope, out, rows, width, channels, slope.numel() > 1, 16, tile, num_warps=_WARPS
        )
        ctx.save_for_backward(y, bias, slope)
        return out

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from sr_nodes._triton_kernels import unshuffle

        y, bias, slope = ctx.saved_tensors
        batch, channels, height, width = y.shape
        rows, channels, tile = batch * height * width, channels // 4, _tile(channels // 4)
        groups, span = _split(rows, 16, 512)
        out, sums = torch.empty_like(y), y.new_empty((2, groups, 4 * channels), dtype=torch.float32)
        unshuffle[(groups, _up(channels, tile))](
            grad.contiguous(memory_format=LAST), y, bias, slope, out, sums[0], sums[1], rows, width, channels, span,
            slope.numel() > 1, 16, tile, num_warps=_WARPS,
        )  # fmt: skip
        of_bias, of_slope = sums.sum(1)
        slopes = (channels, 4) if slope.numel() > 1 else (1, 4 * channels)
        return out, of_bias, of_slope.view(slopes).sum(1)


class ConvOfFew(torch.autograd.Function):
    """A convolution of a picture [B, C, H, W] as a product of matrices, in bfloat16.

    With a matrix ``frozen`` of the weight it is not learned, a ReLU follows, and the bias is cuBLAS' to add. Without,
    the bias is a column of the matrix, so that its gradient is one of the matrix's.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, frozen: Tensor | None) -> Tensor:
        from sr_nodes._triton_kernels import patches

        batch, channels, height, width = image.shape
        low = matrix(weight, bias) if frozen is None else frozen
        rows, columns = batch * height * width, low.shape[1]
        read, wide = low.new_empty((rows, columns)), min(64, _power(columns))
        patches[(_up(rows, _ROWS), _up(columns, wide))](
            image, read, rows, height, width, *image.stride(), weight.shape[2], channels, columns, _ROWS, wide,
            num_warps=_WARPS,
        )  # fmt: skip
        y = read @ low.t() if frozen is None else torch._addmm_activation(bias, read, low.t())
        ctx.shape = image.shape
        learned = frozen is None and weight.requires_grad
        ctx.save_for_backward(weight, low, read if learned else None, None if frozen is None else y)
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        from sr_nodes._triton_kernels import unpatches

        weight, low, read, y = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        side, rows = weight.shape[2], batch * height * width
        of_y = grad.permute(0, 2, 3, 1).reshape(rows, -1)
        if y is not None:
            of_y = torch.ops.aten.threshold_backward(of_y, y, 0)
        of_image = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_image = grad.new_empty(ctx.shape, dtype=torch.float32)
            unpatches[(_up(rows, 128),)](
                of_y @ low, of_image, rows, height, width, side, channels, low.shape[1], 128, num_warps=_WARPS
            )
        if read is not None:
            used = side * side * channels
            found = of_y.t() @ read
            of_weight = found[:, :used].view(-1, side, side, channels).permute(0, 3, 1, 2).float()
            of_bias = found[:, used].float()
        return of_image, of_weight, of_bias, None


def matrix(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[outputs, columns]: a row's weights, channels last, then the bias, then zeros; columns are a multiple of 16."""
    outputs, inputs, side, _ = weight.shape
    used = inputs * side * side
    low = weight.new_zeros((outputs, 16 * _up(used + 1, 16)), dtype=torch.bfloat16)
    low[:, :used].view(outputs, side, side, inputs).copy_(weight.permute(0, 2, 3, 1))
    if bias is not None:
        low[:, used].copy_(bias)
    return low


class SumRows(torch.autograd.Function):
    """A convolution's result in float32, [B, C, H, W], of its ``side`` rows', [B, 32, H, W], channels_last."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, bias: Tensor, side: int) -> Tensor:
        from sr_nodes._triton_kernels import sum_rows

        batch, columns, height, width = parts.shape
        rows, few = batch * height * width, bias.numel()
        out = parts.new_empty((batch, few, height, width), dtype=torch.float32)
        sum_rows[(_up(rows, 128),)](parts, bias, out, rows, height, width, side, few, columns, 128, num_warps=_WARPS)
        ctx.side, ctx.dtype, ctx.columns = side, parts.dtype, columns
        return out

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from sr_nodes._triton_kernels import spread_rows

        batch, few, height, width = grad.shape
        rows, grad = batch * height * width, grad.contiguous()
        shape = (batch, ctx.columns, height, width)
        out = torch.empty(shape, dtype=ctx.dtype, device=grad.device, memory_format=LAST)
        spread_rows[(_up(rows, _ROWS),)](
            grad, out, rows, height, width, ctx.side, few, ctx.columns, _ROWS, num_warps=_WARPS
        )
        return out, grad.sum((0, 2, 3)), None


class ConvReLU(torch.autograd.Function):
    """ReLU of a convolution that is not learned, in one kernel of cuDNN's, then perhaps the largest of each 2 x 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, pooled: bool) -> Tensor:
        from sr_nodes._triton_kernels import pool

        geometry: Any = conv.stride, conv.padding, conv.dilation, conv.groups
        y = torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        ctx.conv, ctx.pooled = conv, pooled
        ctx.save_for_backward(x, weight, y)
        if not pooled:
            return y
        batch, channels, height, width = y.shape
        shape = (batch, channels, height // 2, width // 2)
        out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=LAST)
        rows, channels = _rows(out)
        pool[(_up(rows, 32), _up(channels, 64))](y, out, rows, height, width, channels, 32, 64, num_warps=_WARPS)
        return out

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        from sr_nodes._triton_kernels import unpool

        x, weight, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        if ctx.pooled:
            height, width = y.shape[2:]
            of_y = torch.zeros_like(y) if height % 2 or width % 2 else torch.empty_like(y)
            rows, channels = _rows(grad)
            unpool[(_up(rows, 32), _up(channels, 64))](
                grad, y, of_y, rows, height, width, channels, 32, 64, num_warps=_WARPS
            )
        else:
            of_y = torch.ops.aten.threshold_backward(grad, y, 0)
        return _of_input(of_y, x, weight, ctx.conv), None, None, None, None


def _convolved(x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    y = torch.ops.aten.convolution(x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1)
    return cast(Tensor, y.contiguous(memory_format=LAST))


def _of_input(grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    found: Tensor = _backward(grad, x, weight, conv, (True, False, False))[0]
    return found.contiguous(memory_format=LAST)  # as cuDNN leaves it; torch's own convolutions do not


def _of_weight(grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    return cast(Tensor, _backward(grad, x, weight, conv, (False, True, False))[1])


def _backward(grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d, mask: tuple[bool, ...]) -> tuple[Any, ...]:
    found: tuple[Any, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1, mask
    )
    return found


def _normalised(y: Tensor, layer: Layer, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer's result of its convolution's, and mean and one over the deviation, [2, C]."""
    from sr_nodes._triton_kernels import finish_statistics, normalise, partial_statistics

    bn, rows, channels = layer.bn, *_rows(y)
    if rows == 1:
        raise ValueError(f"BatchNorm has one value a channel, of a map {list(y.shape)}; give a larger batch or crop")
    groups, span = _split(rows, _ROWS, _GROUPS)
    found, kept = y.new_empty((2, groups, channels), dtype=torch.float32), bn.weight.new_empty((2, channels))
    narrow, wide = min(32, _tile(channels)), _tile(channels)
    partial_statistics[(groups, _up(channels, narrow))](y, found, rows, channels, span, _ROWS, narrow, num_warps=_WARPS)
    bias = layer.conv.bias
    finish_statistics[(_up(channels, 16),)](
        found, bias, bn.running_mean, bn.running_var, bn.num_batches_tracked, kept, rows, channels, span, groups,
        bn.eps, bn.momentum, bias is not None, _power(groups), 16, num_warps=_WARPS,
    )  # fmt: skip
    out, (kind, slope, slopes, leak) = torch.empty_like(y), _activation(layer)
    normalise[(_up(rows, _ROWS), _up(channels, wide))](
        y, kept, bn.weight, bn.bias, slope, residual, out, rows, channels, leak,
        slopes, kind, residual is not None, _ROWS, wide, num_warps=_WARPS,
    )  # fmt: skip
    return out, kept


def _normalised_backward(grads: list[Tensor], y: Tensor, kept: Tensor, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the result, of what was normalised, and [3, C]: of BatchNorm's bias and weight, and of a slope a
    channel."""
    from sr_nodes._triton_kernels import finish_gradients, partial_gradients, through_statistics

    grad, *others = grads
    also = sum(others[1:], others[0]) if others else None
    total = grad if also is None else torch.empty_like(grad)
    bn, rows, channels = layer.bn, *_rows(y)
    groups, span = _split(rows, _ROWS, _GROUPS)
    found, sums = y.new_empty((3, groups, channels), dtype=torch.float32), kept.new_empty((3, channels))
    narrow, wide = min(32, _tile(channels)), _tile(channels)
    kind, slope, slopes, leak = _activation(layer)
    partial_gradients[(groups, _up(channels, narrow))](
        grad, also, total, y, kept, bn.weight, bn.bias, slope, found, rows, channels, span, leak,
        also is not None, slopes, kind, _ROWS, narrow, num_warps=_WARPS,
    )  # fmt: skip
    finish_gradients[(_up(channels, 16),)](found, sums, channels, groups, kind, _power(groups), 16, num_warps=_WARPS)
    out = torch.empty_like(y)
    through_statistics[(_up(rows, _ROWS), _up(channels, wide))](
        total, y, kept, bn.weight, bn.bias, slope, sums, out, rows, channels, leak, slopes, kind, _ROWS, wide,
        num_warps=_WARPS,
    )  # fmt: skip
    return total, out, sums


def _activation(layer: Layer) -> tuple[int, Tensor | None, bool, float]:
    """Its kind, a PReLU's slope, whether that is one a channel, and a LeakyReLU's."""
    if isinstance(layer.act, nn.PReLU):
        return _SLOPE, layer.act.weight, layer.act.weight.numel() > 1, 0.0
    if isinstance(layer.act, nn.LeakyReLU):
        return _LEAK, None, False, layer.act.negative_slope
    return _NONE, None, False, 0.0


def _rows(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[1], y.shape[1]


def _split(rows: int, tile: int, most: int) -> tuple[int, int]:
    """Into how many groups rows are divided, and how many are in each but the last."""
    span = tile * _up(_up(rows, tile), most)
    return _up(rows, span), span


def _tile(channels: int) -> int:
    return min(64, _power(channels))


def _power(number: int) -> int:
    """The least power of two that is no smaller, and at least 16."""
    return max(16, 1 << (number - 1).bit_length())


def _up(number: int, by: int) -> int:
    return -(-number // by)


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """All in another type, by one kernel."""
    made = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if made:
        torch._foreach_copy_(made, tensors)
    return made
