"""Convolutions with BatchNorm, one after the other, as one function of autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sr_nodes._fused.lists import cast_all
from sr_nodes._fused.maps import (
    GROUPS,
    LAST,
    ROWS,
    WARPS,
    convolved,
    of_input,
    of_weight,
    once,
    power,
    rows_of,
    split,
    tile_of,
    up,
)
from sr_nodes._fused.streams import Beside

_REGISTERS = 128
"""Of a thread at most where 8 warps sum what others left: so two such programs are on a multiprocessor."""
_NARROW = 32
"""Channels at most of a program that sums over rows."""
_NONE, _SLOPE, _LEAK = 0, 1, 2


class Tile(NamedTuple):
    """Of a kernel that convolves: rows of a program, its warps, and how many taps it reads ahead."""

    rows: int
    warps: int
    stages: int


TILE = Tile(128, 8, 4)


@dataclass(frozen=True)
class Layer:
    """Convolution, BatchNorm, perhaps a PReLU or LeakyReLU, and perhaps an earlier result added."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    act: nn.Module | None = None
    skip: int | None = None
    """The number of the result that is added: 0 is what goes into the chain, 1 the first layer's."""


def learned_by(layers: Sequence[Layer]) -> list[Tensor]:
    """What layers learn: weights of convolutions, of each BatchNorm bias and weight, biases of convolutions, slopes."""
    return [
        *(layer.conv.weight for layer in layers),
        *(learned for layer in layers for learned in (layer.bn.bias, layer.bn.weight)),
        *(layer.conv.bias for layer in layers if layer.conv.bias is not None),
        *(layer.act.weight for layer in layers if isinstance(layer.act, nn.PReLU)),
    ]


class Packed(torch.autograd.Function):
    """Stands for dense tensors that have one gradient, all of theirs one after the other as they lie in memory, so that
    those of several passes are added up at once. It holds no numbers."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.like = _like(tensors)
        return tensors[0].new_empty(1).expand(sum(tensor.numel() for tensor in tensors))

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = zip(_parts(grad, ctx.like), ctx.needs_input_grad, strict=True)
        return tuple(part if wanted else None for part, wanted in parts)


def _like(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, tuple[int, ...]]]:
    """Their shapes and orders in memory."""
    return [(tensor.shape, tensor.stride()) for tensor in tensors]


def _parts(flat: Tensor, like: Sequence[tuple[torch.Size, tuple[int, ...]]]) -> list[Tensor]:
    """Views of the first numbers of ``flat``, one after the other."""
    numbers = [shape.numel() for shape, _ in like]
    parts = torch.split(flat[: sum(numbers)], numbers)
    return [part.as_strided(*how) for part, how in zip(parts, like, strict=True)]


_PACKED: WeakValueDictionary[Any, Tensor] = WeakValueDictionary()


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """``Packed`` of the tensors; the same as of an earlier pass whose graph is still there."""
    key = tuple((id(tensor), tensor.requires_grad, tensor.shape, tensor.stride()) for tensor in tensors)
    found = _PACKED.get(key)
    if found is None:
        _PACKED[key] = found = cast(Tensor, Packed.apply(*tensors))
    return found


class Awaited(torch.autograd.Function):
    """What layers learn; its gradient is there when the work beside the backward pass is done that is ``pending``."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, pending: list[Beside]) -> Tensor:
        ctx.learned, ctx.pending = learned, pending  # kept, so that ``packed`` finds it for another pass
        return learned.view_as(learned)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        for beside in ctx.pending:
            beside.wait()
        return grad, None


def awaited(layers: Sequence[Layer], pending: list[Beside]) -> Tensor:
    """What layers learn, as one tensor to ``Chain``."""
    return cast(Tensor, Awaited.apply(packed(learned_by(layers)), pending))


class Chain(torch.autograd.Function):
    """Layers one after the other, [B, C, H, W] in bfloat16 and channels_last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: tuple[Layer, ...], made: Callable[[], list[Tensor]], learned: Tensor,
        pending: list[Beside],
    ) -> Tensor:  # fmt: skip
        (*lows, counters), results, saved = made(), [x], list[Tensor]()
        for layer, low, arrived in zip(layers, lows, counters, strict=True):
            residual = None if layer.skip is None else results[layer.skip]
            out, *kept = (_few if _is_few(results[-1], layer.conv) else _many)(
                results[-1], low, layer, residual, arrived
            )
            saved += kept
            results.append(out)
        ctx.layers, ctx.learned, ctx.pending = layers, learned, pending
        ctx.save_for_backward(*results[:-1], *saved, *lows, counters)
        return results[-1]

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        layers, count = ctx.layers, len(ctx.layers)
        *saved, arrived = ctx.saved_tensors
        results, maps, lows = saved[:count], saved[count : 3 * count], saved[3 * count : 4 * count]
        wanted = ctx.needs_input_grad
        grads: list[list[Tensor]] = [*([] for _ in layers), [grad.contiguous(memory_format=LAST)]]
        """Of each result, what comes from whoever reads it."""
        beside = Beside(grad.device)
        flat = grad.new_empty(ctx.learned.shape, dtype=torch.float32) if wanted[3] else None
        weights = _parts(flat, _like(learned_by(layers)[:count])) if flat is not None else []
        sums = dict[int, Tensor]()
        of_out, found = _gradients(grads.pop(), maps[-2], maps[-1], layers[-1], arrived[-1])
        for n in range(count - 1, -1, -1):
            layer, (y, kept) = layers[n], maps[2 * n : 2 * n + 2]
            of_y, sums[n] = _through_statistics(of_out, y, kept, found, layer)
            if layer.skip is not None:
                grads[layer.skip].append(of_out)
            if n:
                before, (y, kept) = layers[n - 1], maps[2 * n - 2 : 2 * n]
                if _is_few(results[n], layer.conv):
                    of_out, found = _few_backward(of_y, lows[n], grads.pop(), before, y, kept)
                else:
                    parts = [of_input(of_y, results[n], lows[n], layer.conv), *grads.pop()]
                    of_out, found = _gradients(parts, y, kept, before, arrived[n - 1])
            elif wanted[0]:
                grads[0].append(of_input(of_y, results[0], lows[0], layer.conv))
            if flat is not None:  # after what the pass waits for, which it would be in the way of
                beside(partial(_of_weight, weights[n], of_y, results[n], lows[n], layer.conv))
        if flat is not None:
            beside(partial(_fill, flat[sum(weight.numel() for weight in weights) :], layers, sums))
        beside.join_later(ctx.pending)
        return _sum(grads[0]) if wanted[0] else None, None, None, flat, None


@torch.no_grad()
def prepared(layers: Sequence[Layer]) -> list[Tensor]:
    """The weights of the layers' convolutions, in bfloat16 and channels_last; and for each layer zeros, one for each
    tile of its channels, in which kernels count the groups that have arrived: when all have, it is zero again."""
    weights = [layer.conv.weight.contiguous(memory_format=LAST) for layer in layers]
    most = max(up(layer.conv.out_channels, _NARROW) for layer in layers)
    counters = torch.zeros((len(layers), most), dtype=torch.int32, device=weights[0].device)
    return [*cast_all(weights, torch.bfloat16), counters]


def _fill(rest: Tensor, layers: Sequence[Layer], sums: dict[int, Tensor]) -> None:
    """The gradients of ``learned_by`` but for weights of convolutions, of ``_gradients``' sums of each layer."""
    channels = [layer.bn.num_features for layer in layers]
    biases = sum(layer.conv.bias.numel() for layer in layers if layer.conv.bias is not None)
    norms, zeros, slopes = torch.split(rest, [2 * sum(channels), biases, len(rest) - 2 * sum(channels) - biases])
    parts = [part.view(2, -1) for part in torch.split(norms, [2 * number for number in channels])]
    made = [sums[n][:2] for n in range(len(layers))]
    acts = {n: layer.act.weight for n, layer in enumerate(layers) if isinstance(layer.act, nn.PReLU)}
    own = dict(zip(acts, torch.split(slopes, [slope.numel() for slope in acts.values()]), strict=True))
    wide = [n for n, slope in acts.items() if slope.numel() > 1]
    torch._foreach_copy_([*parts, *(own[n] for n in wide)], [*made, *(sums[n][2] for n in wide)])
    zeros.zero_()
    if single := [n for n in acts if n not in wide]:
        found = torch.stack([sums[n][2] for n in single]).sum(1)
        torch._foreach_copy_([own[n] for n in single], list(torch.split(found, 1)))


def _many(
    x: Tensor, weight: Tensor, layer: Layer, residual: Tensor | None, arrived: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's result; its convolution's; and of that, mean and one over the deviation, [2, C]."""
    y = convolved(x, weight, layer.conv)
    kept = _statistics(y, layer, arrived)
    return _normalised(y, kept, layer, residual), y, kept


def _few(
    x: Tensor, weight: Tensor, layer: Layer, residual: Tensor | None, arrived: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``_many`` in two kernels of ours."""
    from sr_nodes._fused.kernels import convolve, join_and_normalise

    conv, bn, rows, channels = layer.conv, layer.bn, *rows_of(x)
    _check_rows(x, rows)
    groups, span = up(rows, TILE.rows), TILE.rows
    y, out, partial = torch.empty_like(x), torch.empty_like(x), x.new_empty((2, groups, channels), dtype=torch.float32)
    convolve[(groups,)](
        x, weight, y, partial, rows, *x.shape[2:], channels, channels, span, TILE.stages, num_warps=TILE.warps
    )
    kept, wide, (kind, slope, slopes, leak) = bn.weight.new_empty((2, channels)), tile_of(channels), _activation(layer)
    join_and_normalise[(up(rows, ROWS), up(channels, wide))](
        y, partial, conv.bias, bn.running_mean, bn.running_var, bn.num_batches_tracked, kept, bn.weight, bn.bias, slope,
        residual, out, rows, channels, span, groups, bn.eps, bn.momentum, leak,
        conv.bias is not None, slopes, kind, residual is not None, power(groups), ROWS, wide,
        num_warps=2 * WARPS, maxnreg=_REGISTERS,
    )  # fmt: skip
    return out, y, kept


def _few_backward(
    grad: Tensor, weight: Tensor, others: list[Tensor], layer: Layer, y: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of a layer's result, of the gradient of the next one's convolution and others, and sums that are
    ``_gradients``', of each group of rows: [3, groups, C]."""
    from sr_nodes._fused.kernels import convolve_back

    rows, channels = rows_of(y)
    groups, also = up(rows, TILE.rows), _sum(others)
    total, partial = torch.empty_like(y), y.new_empty((3, groups, channels), dtype=torch.float32)
    kind, slope, slopes, leak = _activation(layer)
    convolve_back[(groups,)](
        grad, weight, also, total, y, kept, layer.bn.weight, layer.bn.bias, slope, partial, rows, *y.shape[2:], leak,
        also is not None, slopes, kind, channels, channels, TILE.rows, TILE.stages, num_warps=TILE.warps,
    )  # fmt: skip
    return total, partial


def _is_few(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether it is a 3 x 3 convolution that keeps the size, of a small map of few channels to as many: SRResNet's, for
    which cuDNN's kernels cost no more than to read and write their results once more."""
    same = conv.in_channels == conv.out_channels and conv.in_channels in (16, 32, 64)
    small = up(rows_of(x)[0], TILE.rows) <= GROUPS  # of which each program of the next kernel reads the sums
    return same and small and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))


def _sum(tensors: Sequence[Tensor]) -> Tensor | None:
    return sum(tensors[1:], tensors[0]) if tensors else None


def _of_weight(out: Tensor, grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> None:
    out.copy_(of_weight(grad, x, weight, conv))


def _check_rows(y: Tensor, rows: int) -> None:
    if rows == 1:
        raise ValueError(f"BatchNorm has one value a channel, of a map {list(y.shape)}; give a larger batch or crop")


def _statistics(y: Tensor, layer: Layer, arrived: Tensor) -> Tensor:
    """Of a convolution's result, mean and one over the deviation, [2, C]."""
    from sr_nodes._fused.kernels import statistics

    bn, bias, rows, channels = layer.bn, layer.conv.bias, *rows_of(y)
    _check_rows(y, rows)
    groups, span = split(rows, ROWS, GROUPS)
    partial, kept = y.new_empty((2, groups, channels), dtype=torch.float32), bn.weight.new_empty((2, channels))
    narrow = min(_NARROW, tile_of(channels))
    statistics[(groups, up(channels, narrow))](
        y, partial, arrived, bias, bn.running_mean, bn.running_var, bn.num_batches_tracked, kept, rows, channels, span,
        bn.eps, bn.momentum, bias is not None, power(groups), ROWS, narrow, num_warps=WARPS,
    )  # fmt: skip
    return kept


def _normalised(y: Tensor, kept: Tensor, layer: Layer, residual: Tensor | None) -> Tensor:
    """A layer's result of its convolution's."""
    from sr_nodes._fused.kernels import normalise

    bn, rows, channels = layer.bn, *rows_of(y)
    out, wide, (kind, slope, slopes, leak) = torch.empty_like(y), tile_of(channels), _activation(layer)
    normalise[(up(rows, ROWS), up(channels, wide))](
        y, kept, bn.weight, bn.bias, slope, residual, out, rows, channels, leak,
        slopes, kind, residual is not None, ROWS, wide, num_warps=WARPS,
    )  # fmt: skip
    return out


def _gradients(grads: list[Tensor], y: Tensor, kept: Tensor, layer: Layer, arrived: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a layer's result, and [3, C]: of BatchNorm's bias and weight, and of a slope a channel."""
    from sr_nodes._fused.kernels import gradients

    grad, *others = grads
    also = _sum(others)
    total = grad if also is None else torch.empty_like(grad)
    bn, rows, channels = layer.bn, *rows_of(y)
    groups, span = split(rows, ROWS, GROUPS)
    partial, sums = y.new_empty((3, groups, channels), dtype=torch.float32), kept.new_empty((3, channels))
    narrow, (kind, slope, slopes, leak) = min(_NARROW, tile_of(channels)), _activation(layer)
    gradients[(groups, up(channels, narrow))](
        grad, also, total, y, kept, bn.weight, bn.bias, slope, partial, arrived, sums, rows, channels, span, leak,
        also is not None, slopes, kind, power(groups), ROWS, narrow, num_warps=WARPS,
    )  # fmt: skip
    return total, sums


def _through_statistics(grad: Tensor, y: Tensor, kept: Tensor, found: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """The gradient of what was normalised, and ``_gradients``' sums, which are found, or of each group of rows."""
    from sr_nodes._fused.kernels import through_statistics

    bn, rows, channels = layer.bn, *rows_of(y)
    joined, groups = found.dim() == 2, found.shape[1]
    sums = found if joined else kept.new_empty((3, channels))
    out, wide, (kind, slope, slopes, leak) = torch.empty_like(y), tile_of(channels), _activation(layer)
    through_statistics[(up(rows, ROWS), up(channels, wide))](
        grad, y, kept, bn.weight, bn.bias, slope, found, sums, out, rows, channels, groups, leak,
        not joined, slopes, kind, 16 if joined else power(groups), ROWS, wide,
        num_warps=WARPS if joined else 2 * WARPS, maxnreg=_REGISTERS,
    )  # fmt: skip
    return out, sums


def _activation(layer: Layer) -> tuple[int, Tensor | None, bool, float]:
    """Its kind, a PReLU's slope, whether that is one a channel, and a LeakyReLU's."""
    if isinstance(layer.act, nn.PReLU):
        return _SLOPE, layer.act.weight, layer.act.weight.numel() > 1, 0.0
    if isinstance(layer.act, nn.LeakyReLU):
        return _LEAK, None, False, layer.act.negative_slope
    return _NONE, None, False, 0.0
