"""Layers of a recorded training step in bf16, in few kernels. No nodes.

The crops of a training step are small, so that a GPU spends more time between kernels than in them. Each function here
is what its layers are: in few kernels, Triton's beside cuDNN's convolutions, where the step is recorded as one CUDA
graph, and layer by layer where it is not, or in float32, in eval mode, compiled, exported. (Launched one by one,
Triton's kernels are slower than torch's.) The numbers are autocast's but for the order of sums and what is rounded on
the way: bfloat16 between layers, float32 inside. A bias before BatchNorm, which BatchNorm takes away again, gets the
gradient zero. Nobody differentiates twice through them, and no hooks are called.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes._fused.chain import Chain, awaited, prepared
from sr_nodes._fused.chain import Layer as Layer
from sr_nodes._fused.layers import ConvOfFew, ConvReLU, LeakyConvOfFew, Shuffle, SumRows, by_corner, matrix
from sr_nodes._fused.maps import LAST, Geometry
from sr_nodes._fused.products import Convolution, Dense, Learned
from sr_nodes._fused.streams import Ahead, Beside, on
from sr_pipeline.streams import is_recorded


def serves(x: Tensor) -> bool:
    """Whether this is a recorded step in bf16 on CUDA, and ``x`` on the way of a gradient."""
    return _is_mixed(x) and torch.is_grad_enabled()


def chain(x: Tensor, layers: Sequence[Layer], weights: Ahead | None = None) -> Tensor:
    """The last layer's result; the weights may be ``all_ahead(layers)``."""
    widest = max(layer.conv.out_channels for layer in layers)
    if serves(x) and _is_small(x, widest) and all(_is_known(layer) for layer in layers):
        made, pending = weights or partial(prepared, layers), list[Beside]()
        with on(weights.stream if weights else None):  # on which autograd comes back to them, beside the pass
            learned = awaited(layers, pending)
        return cast(Tensor, Chain.apply(_low(x), tuple(layers), made, learned, pending))
    results = [x]
    for layer in layers:
        y = layer.bn(layer.conv(results[-1]))
        y = y if layer.act is None else layer.act(y)
        results.append(y if layer.skip is None else results[layer.skip] + y)
    return results[-1]


def all_ahead(layers: Sequence[Layer]) -> Ahead | None:
    """Their weights for ``chain``, which are rounded beside what comes before; None where that runs layer by layer."""
    known = all(_is_known(layer) for layer in layers)
    return Ahead(partial(prepared, layers), *(layer.conv for layer in layers)) if known else None


def ahead(linear: nn.Linear) -> Learned:
    """Its weight for ``dense``, which is rounded beside what comes before the layer."""
    return Learned(lambda: linear.weight, linear)


def corners_ahead(conv: nn.Conv2d, shuffle: nn.PixelShuffle) -> Learned | None:
    """The same for ``conv_shuffle``, which has kernels for a factor of 2."""
    return Learned(lambda: by_corner(conv.weight), conv) if shuffle.upscale_factor == 2 else None


def rows_ahead(conv: nn.Conv2d) -> Learned:
    """The same for ``conv_to_few``."""
    return Learned(lambda: _rows(conv), conv)


def few_ahead(conv: nn.Conv2d) -> Ahead | None:
    """The same, with the bias, for ``conv_of_few``; None where that is ``conv``."""
    if not (_is_plain(conv) and _reads_few(conv)) or conv.bias is None:
        return None
    return Ahead(lambda: [matrix(conv.weight, cast(Tensor, conv.bias))], conv)


def conv_shuffle(x: Tensor, weight: Learned | None, conv: nn.Conv2d, shuffle: nn.PixelShuffle, act: nn.PReLU) -> Tensor:
    """``act(shuffle(conv(x)))``; the weight is ``corners_ahead(conv, shuffle)``."""
    known = type(conv) is nn.Conv2d and conv.groups == 1 and conv.bias is not None and type(act) is nn.PReLU
    if weight is None or not (serves(x) and known and _is_small(x, conv.out_channels)):
        return cast(Tensor, act(shuffle(conv(x))))
    return cast(Tensor, Shuffle.apply(weight.into(_low(x), Convolution(conv)), conv.bias, act.weight))


def dense(x: Tensor, weight: Learned, linear: nn.Linear) -> Tensor:
    """``linear(x)`` in a recorded step, in float32 where it has a bias; the weight is ``ahead(linear)``."""
    y = weight.into(x.to(torch.bfloat16), Dense())
    return y if linear.bias is None else y + linear.bias


def conv_of_few(x: Tensor, conv: nn.Conv2d, act: nn.Module, weight: Ahead | None) -> Tensor:
    """``act(conv(x))`` of a picture, of so few channels that all it reads for a pixel is one row of a matrix.

    The weight is ``few_ahead(conv)``.

    cuDNN's kernels take channels by eight at least.
    """
    if weight is None or not (serves(x) and _is_small(x, max(256, conv.out_channels))):
        return cast(Tensor, act(conv(x)))
    (low,) = weight()
    if type(act) is nn.LeakyReLU and act.negative_slope >= 0 and _reads_few(conv, 64):
        return cast(Tensor, LeakyConvOfFew.apply(x, conv.weight, conv.bias, low, act.negative_slope))
    return cast(Tensor, act(ConvOfFew.apply(x, conv.weight, conv.bias, low)))


def conv_to_few(x: Tensor, conv: nn.Conv2d, weight: Learned | None = None) -> Tensor:
    """A convolution to few channels; where it is learned, by rows: K x K to C channels is 1 x K to K C, and K rows of
    those summed. In a recorded step the weight is ``rows_ahead(conv)``.

    Units for matrices make 8 to 32 channels at once; of 3 they leave most idle. It takes more memory.
    """
    if not (torch.is_grad_enabled() and _is_plain(conv)) or conv.bias is None or _is_traced(x):
        return cast(Tensor, conv(x))
    side, few = conv.kernel_size[0], conv.out_channels
    if not 3 <= side <= side * few <= 32:
        return cast(Tensor, conv(x))
    if weight and _is_small(x, 32):
        parts = weight.into(_low(x), Convolution(Geometry(padding=(0, side // 2))))
        return weight.biased(cast(Tensor, SumRows.apply(parts, conv.bias.detach(), side)), conv.bias)
    rows = conv.weight.flip(2).permute(0, 2, 1, 3).reshape(few * side, -1, 1, side)
    layout = LAST if conv.weight.is_contiguous(memory_format=LAST) else torch.contiguous_format
    parts = F.conv2d(x, rows.contiguous(memory_format=layout), None, 1, (0, side // 2))
    summed = F.fold(parts.float().flatten(2), x.shape[-2:], (side, 1), padding=(side // 2, 0))
    return summed + conv.bias.view(-1, 1, 1)


def _rows(conv: nn.Conv2d) -> Tensor:
    """The weight of the convolution of rows, [32, I, 1, K]."""
    side, few = conv.kernel_size[0], conv.out_channels
    rows = conv.weight.permute(2, 0, 1, 3).reshape(side * few, -1, 1, side)
    return F.pad(rows, (0, 0, 0, 0, 0, 0, 0, 32 - side * few))


def frozen(x: Tensor, layers: nn.Sequential) -> Tensor:
    """``layers(x)`` of convolutions, ReLUs and pools of which no weight is learned."""
    if not (_is_mixed(x) and _is_small(x, 64) and all(not p.requires_grad for p in layers.parameters())):
        return cast(Tensor, layers(x))
    rest = list(layers)
    while rest:
        conv, act = rest[0], rest[1] if len(rest) > 1 else None
        if not (type(conv) is nn.Conv2d and type(act) is nn.ReLU and _is_plain(conv) and conv.bias is not None):
            x = rest.pop(0)(x)
            continue
        del rest[:2]
        low, bias = _rounded(conv)
        if _reads_few(conv, 64):
            x = LeakyConvOfFew.apply(x, conv.weight, conv.bias, low, 0.0)
            continue
        pooled = bool(rest) and type(rest[0]) is nn.MaxPool2d and _halves(rest[0])
        del rest[: int(pooled)]
        x = ConvReLU.apply(_low(x), low, bias, conv, pooled)
    return x


def _low(x: Tensor) -> Tensor:
    """In bfloat16, as rows of channels: dense, which ``to`` does not make of a slice."""
    return x.to(torch.bfloat16).contiguous(memory_format=LAST)


def _halves(pool: nn.MaxPool2d) -> bool:
    return (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (2, 2, 0, 1, False)


def _is_plain(conv: nn.Module) -> bool:
    """Whether it is a square convolution of torch's own that keeps the size."""
    if type(conv) is not nn.Conv2d:
        return False
    height, width = conv.kernel_size
    known = (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    return known and height == width and height % 2 == 1 and conv.padding == (height // 2, width // 2)


def _reads_few(conv: nn.Conv2d, columns: int = 256) -> bool:
    """Whether what it reads for a pixel is one row of a matrix, with a column left for the bias."""
    return conv.in_channels * conv.kernel_size[0] ** 2 < columns


def _is_small(x: Tensor, channels: int) -> bool:
    """Whether a map of its size with so many channels has addresses that kernels count in 32 bits."""
    return x.shape[0] * x.shape[2] * x.shape[3] * channels < 2**31


def _is_traced(x: object) -> bool:
    """By torch.jit, torch.compile, torch.export, the ONNX exporter, or torch.fx, which gives no tensors."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or not isinstance(x, Tensor)


def _is_mixed(x: Tensor) -> bool:
    """Whether this is a recorded step in bf16 on CUDA."""
    return (
        is_recorded()
        and x.is_cuda
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and not _is_traced(x)
        and _compiles(x.device)
    )


def _is_known(layer: Layer) -> bool:
    """Whether it is made of torch's own modules, with all that they can have, and BatchNorm learns."""
    conv, bn, act = layer.conv, layer.bn, layer.act
    return (
        type(conv) is nn.Conv2d
        and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
        and conv.weight.dtype == torch.float32
        and not (conv._forward_hooks or conv._forward_pre_hooks)  # old weight_norm for one
        and type(bn) is nn.BatchNorm2d
        and bn.training
        and bn.affine
        and bn.track_running_stats
        and bool(bn.momentum)
        and (act is None or type(act) in (nn.PReLU, nn.LeakyReLU))
    )


@cache
def _compiles(device: torch.device) -> bool:
    """Whether Triton makes kernels here: it is not everywhere, and needs a C compiler and Python's headers."""
    if find_spec("triton") is None:
        return False
    try:
        from sr_nodes._fused.kernels import pool

        pool[(1, 1)](torch.zeros(4, 64, device=device), torch.empty(1, 64, device=device), 1, 2, 2, 64, 32, 64)
    except Exception as error:  # noqa: BLE001  whatever a compiler says
        reason = str(error).strip().partition("\n")[0]
        what = "steps are recorded with torch's own layers, which take twice as long"
        warnings.warn(f"Triton makes no kernels here ({reason}); {what}", RuntimeWarning, stacklevel=2)
        return False
    return True


_ROUNDED: WeakKeyDictionary[nn.Conv2d, tuple[tuple[Any, ...], Tensor, Tensor]] = WeakKeyDictionary()
"""Of convolutions that nothing trains: what weight and bias were when they were rounded, and both in bfloat16."""


def _rounded(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias; for ``LeakyConvOfFew`` the weight is the matrix of both."""
    weight, bias = conv.weight, conv.bias
    assert bias is not None
    now = (id(weight), weight._version, weight.data_ptr(), id(bias), bias._version, bias.data_ptr())
    found = _ROUNDED.get(conv)
    if found is None or found[0] != now:
        low = matrix(weight, bias) if _reads_few(conv, 64) else weight.to(torch.bfloat16, memory_format=LAST)
        found = now, low, bias.to(torch.bfloat16)
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(low.device).synchronize()  # once, because other streams will read it
            _ROUNDED[conv] = found
    return found[1:]
