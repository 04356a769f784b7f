"""BatchNorm over the batches of all processes that share a run. No nodes."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sr_pipeline.board import summed
from sr_pipeline.world import World

M = TypeVar("M", bound=nn.Module)


def synchronised(model: M, world: World, wanted: bool = True) -> M:
    """The model, on its device, each BatchNorm2d of it over the joined batch if that is wanted and there are others.

    Weights, buffers and their names stay. On CUDA it is torch's ``SyncBatchNorm``, which does not run on a CPU.
    """
    if world.alone or not wanted:
        return model
    if any(p.is_cuda for p in model.parameters()):
        return cast(M, nn.SyncBatchNorm.convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
    return model


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose mean and variance, in training, are those of the joined batches of all processes.

    Each may give another number of images. The running statistics are then alike in all processes, too.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        out, mean, variance, count = _Synchronised.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            unbiased = variance * count / (count - 1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return cast(Tensor, out)


class _Synchronised(torch.autograd.Function):
    """[B, C, H, W], normalised over all but C and over the processes; and mean [C], variance [C], count.

    Sums travel in float64: the variance is a difference of two of them (Ioffe and Szegedy, 2015, algorithm 1, and
    the gradients of section 3).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        wide = _wide(x)
        mean, variance = (part.double() for part in torch.batch_norm_update_stats(wide, None, None, 0.0))
        own = x.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)
        sums = summed(torch.cat([own, mean * own, (variance + mean.square()) * own]))
        count, total, squares = sums[:1], *sums[1:].chunk(2)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_(min=0)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, variance, count)
        out = F.batch_norm(x, mean.to(wide.dtype), variance.to(wide.dtype), weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        wide = _wide(x)
        # As if mean and variance were constants: so torch's kernel gives the sums, and the first part of x's gradient.
        constants = weight, mean.to(wide.dtype), variance.to(wide.dtype), None, None, False, ctx.eps, [True] * 3
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(_wide(grad), wide, *constants)
        sums = summed(torch.cat([of_bias, of_weight]).double())
        bias_mean, weight_mean = (sums / count).chunk(2)
        # The rest, weight * inverse * (-mean(g) - normalised * mean(g * normalised)), is a line in x for each channel.
        inverse = (variance + ctx.eps).rsqrt()
        slope = -weight.double() * inverse.square() * weight_mean
        offset = -weight.double() * inverse * bias_mean - slope * mean
        by_channel = [part.to(wide.dtype).view(-1, 1, 1) for part in (slope, offset)]
        of_x.addcmul_(wide, by_channel[0]).add_(by_channel[1])
        return of_x.to(x.dtype), of_weight, of_bias, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
