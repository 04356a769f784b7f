"""BatchNorm over the batches of all processes that share a run. No nodes."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sr_pipeline.board import Numbers, summed
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
        joined, count = _joined(input.detach().to(_width(input)))
        mean, variance, unbiased = torch.from_numpy(joined).to(_width(input)).unbind()
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return cast(Tensor, _Normalised.apply(input, self.weight, self.bias, self.eps, mean, variance, joined, count))


def _joined(x: Tensor) -> tuple[Numbers, float]:
    """Mean, variance and unbiased variance, [3, C], of [B, C, H, W] over all but C and over the processes, and of how
    many numbers.

    Sums travel in float64: the variance is a difference of two of them (Ioffe and Szegedy, 2015, algorithm 1). Between
    two convolutions a call of NumPy's takes 10 us, so there are few.
    """
    channels = x.shape[1]
    mean, variance = (part.numpy() for part in torch.batch_norm_update_stats(x, None, None, 0.0))
    row, own = np.empty(2 * channels + 1), x.numel() // channels
    row[:channels], row[channels:-1], row[-1] = mean, variance, own
    row[channels:-1] += row[:channels] ** 2
    row[:-1] *= own
    sums = summed(row)
    joined, count = np.empty((3, channels)), float(sums[-1])
    np.divide(sums[:-1].reshape(2, -1), count, out=joined[:2])
    np.maximum(joined[1] - joined[0] ** 2, 0.0, out=joined[1])
    np.multiply(joined[1], count / (count - 1), out=joined[2])
    return joined, count


class _Normalised(torch.autograd.Function):
    """[B, C, H, W] by the joined batches' statistics, of which the gradient is that of the joined batches, too.

    Those of weight and bias are this process's part of theirs (Ioffe and Szegedy, 2015, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, mean: Tensor, variance: Tensor, joined: Numbers,
        count: float,
    ) -> Tensor:  # fmt: skip
        """``joined`` has mean and variance in float64."""
        ctx.save_for_backward(x, weight)
        ctx.statistics = mean, variance, joined, count, eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (mean, variance, joined, count, eps) = ctx.saved_tensors, ctx.statistics
        width = _width(x)
        wide, wide_grad = x.to(width), grad.to(width)
        # As if mean and variance were constants: so torch's kernel gives the sums.
        constants = weight, mean, variance, None, None, False, eps
        only_sums = [False, True, True]
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(wide_grad, wide, *constants, only_sums)
        row = np.empty((2, len(weight)))
        row[0], row[1] = of_bias.numpy(), of_weight.numpy()
        # weight * inverse * (g - mean(g) - normalised * mean(g * normalised)): of g that kernel, of x a slope.
        terms = np.empty((3, len(weight)))
        np.divide(summed(row.reshape(-1)).reshape(2, -1), count, out=terms[:2])
        terms[1] *= weight.detach().numpy() / (joined[1] + eps)
        np.multiply(terms[1], joined[0], out=terms[2])
        middle, slope, offset = torch.from_numpy(terms).to(width).unbind()
        of_x = F.batch_norm(wide_grad, middle, variance, weight, offset, training=False, eps=eps)
        of_x.addcmul_(wide, slope.view(-1, 1, 1), value=-1)
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None, None


def _width(x: Tensor) -> torch.dtype:
    """What statistics of such a tensor are computed in."""
    return torch.promote_types(x.dtype, torch.float32)
