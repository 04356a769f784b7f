"""Optimizers, learning rates, and the only nodes that change weights in training."""

from __future__ import annotations

import copy
import math
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sr_nodes._fused.adam import update
from sr_nodes.modules import check_fits
from sr_pipeline.node import node
from sr_pipeline.sockets import SILENT, Backward, Loss, Model, Mutates, Optimizer, Report, RetainGraph, Step, World
from sr_pipeline.world import ALONE

M = TypeVar("M", bound=nn.Module)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]

_ACCUMULATED = "accumulated"
"""Under this key of an optimizer's state are the gradients that wait for the rest: so its state_dict carries them."""


@node(category="optimizer")
def adam(
    model: Model,
    learning_rate: Positive = 1e-4,
    beta1: Beta = 0.9,
    beta2: Beta = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015) for the parameters of a model that ask for a gradient; the paper's optimizer.

    Raises a ValueError for a model that has none.

    Args:
        model: the network to train.
        learning_rate: step size, where optimizer_step is given none.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        eps: added to the root of the latter.
        weight_decay: L2 penalty, added to the gradients.
    """
    return torch.optim.Adam(_trainable(model), learning_rate, (beta1, beta2), eps, weight_decay, fused=True)


@node(category="optimizer")
def adamw(
    model: Model,
    learning_rate: Positive = 1e-4,
    beta1: Beta = 0.9,
    beta2: Beta = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.01,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019): Adam whose weight decay does not pass through the gradients' means.

    Raises a ValueError for a model that has no parameter that asks for a gradient.

    Args:
        model: the network to train.
        learning_rate: step size, where optimizer_step is given none.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        eps: added to the root of the latter.
        weight_decay: share of each weight, times the learning rate, that a step takes away.
    """
    return torch.optim.AdamW(_trainable(model), learning_rate, (beta1, beta2), eps, weight_decay, fused=True)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameter to train; wire a model that is not a frozen copy")
    return found


@node(category="optimizer")
def step_schedule(
    initial: Positive = 1e-4,
    drop_at: tuple[Annotated[int, Field(ge=1)], ...] = (100_000,),
    factor: Positive = 0.1,
    step: Step = 0,
) -> float:
    """A learning rate that is multiplied by ``factor`` after each listed number of steps.

    With the defaults, SRGAN's: 100,000 updates at 1e-4, then 1e-5.

    >>> [step_schedule(1.0, (2, 3), 0.5, step=step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.25, 0.25]

    Args:
        initial: the rate of the first step.
        drop_at: numbers of steps after which it drops.
        factor: what a drop multiplies it by.
    """
    return initial * factor ** sum(step >= drop for drop in drop_at)


@node(category="optimizer")
def cosine_schedule(
    initial: Positive = 1e-4, steps: Annotated[int, Field(ge=1)] = 100_000, final: NotNegative = 0.0, step: Step = 0
) -> float:
    """A learning rate that falls from ``initial`` to ``final`` in ``steps`` steps along half a cosine, and stays there.

    final + (initial - final) (1 + cos(pi step / steps)) / 2 (Loshchilov and Hutter, SGDR, 2017, without restarts).

    >>> [round(cosine_schedule(1.0, 4, step=step), 3) for step in (0, 1, 2, 4, 9)]
    [1.0, 0.854, 0.5, 0.0, 0.0]

    Args:
        initial: the rate of the first step.
        steps: how many steps it falls.
        final: the rate from then on.
    """
    return final + (initial - final) * (1 + math.cos(math.pi * min(step / steps, 1))) / 2


class Stepped(NamedTuple, Generic[M]):
    """The model after an optimizer's step, and the optimizer."""

    model: M
    optimizer: Optimizer


@node(category="optimizer", recordable=True)
def optimizer_step(
    loss: Backward[Loss],
    model: Mutates[M],
    optimizer: Mutates[Optimizer],
    learning_rate: Annotated[float | None, Field(gt=0)] = None,
    clip_norm: Annotated[float | None, Field(gt=0)] = None,
    accumulate: Annotated[int, Field(ge=1)] = 1,
    retain_graph: RetainGraph = False,
    step: Step = 0,
    report: Report = SILENT,
    world: World = ALONE,
) -> Stepped[M]:
    """Change a model's weights, in place, against the gradient of a loss.

    Gradients are computed for the optimizer's own parameters alone: no other model that the loss crosses gets any, and
    none is left behind. A parameter without a gradient in the first step is warned of by name. Raises a ValueError,
    and changes nothing, for a loss that is no scalar or has no gradient, and for an optimizer that was not made from
    this model.

    With ``accumulate`` n, the weights change at each n-th call, against the mean of the n gradients: for a loss that is
    a mean over the batch, and without BatchNorm, that is one step on a batch n times as large. Between the calls the
    gradients are a part of the optimizer's state, and are saved with it. Those that a run ends on wait there for a
    resume; they change nothing else. Schedules count the items of the stream, not the updates.

    Where several processes share the run, the gradients are those of the mean of their losses.

    Args:
        loss: what to make smaller.
        model: the network to change.
        optimizer: made from this model.
        learning_rate: of this step; without it, the optimizer's own.
        clip_norm: most that the L2 norm of all gradients together may be; longer ones are scaled down to it.
        accumulate: number of steps whose gradients are averaged for one update.
    """
    parameters = _parameters(optimizer)
    _check_step(loss, model, optimizer, parameters)
    optimizer.zero_grad(set_to_none=True)  # what others left there is no part of this loss's gradient
    world.backward(loss, parameters, retain_graph)
    if step == 0:
        _warn_of_unreached(model, parameters, report)
    if learning_rate is not None:
        _set_learning_rate(optimizer, learning_rate)
    if _accumulated(optimizer, parameters, accumulate):
        if clip_norm is not None:
            clip_grad_norm_(parameters, clip_norm)
        update(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return Stepped(model, optimizer)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _check_step(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    own = {id(p) for p in model.parameters()}
    if not parameters or any(id(p) not in own for p in parameters):
        raise ValueError(
            f"this {type(optimizer).__name__} was not made from this {type(model).__name__}: it holds other, or no, "
            "parameters to train; wire model and optimizer from one model"
        )
    if loss.numel() != 1:
        raise ValueError(f"the loss has shape {list(loss.shape)}; give a scalar")
    if not loss.requires_grad:
        raise ValueError(
            f"the loss has no gradient, so {type(model).__name__} cannot learn from it; wire a loss that is computed "
            "from the model's own output"
        )


def _warn_of_unreached(model: nn.Module, parameters: list[Tensor], report: Report) -> None:
    without = {id(p) for p in parameters if p.grad is None}
    names = [name for name, p in model.named_parameters() if id(p) in without]
    if names:
        report.warning(f"the loss gives no gradient to {', '.join(names)} of {type(model).__name__}")


def _accumulated(optimizer: torch.optim.Optimizer, parameters: list[Tensor], number: int) -> bool:
    """Add the gradients of earlier calls. True once they are of ``number`` calls, and then ``grad`` is their mean."""
    state: dict[Any, Any] = optimizer.state
    earlier = state.get(_ACCUMULATED, {"count": 0, "gradients": [None] * len(parameters)})
    _add_gradients(parameters, earlier["gradients"])
    count = earlier["count"] + 1
    if count < number:
        state[_ACCUMULATED] = {"count": count, "gradients": [p.grad for p in parameters]}
        return False
    state.pop(_ACCUMULATED, None)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if count > 1 and gradients:
        torch._foreach_div_(gradients, count)
    return True


def _add_gradients(parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
    # a restored gradient is where its file was read
    kept = [(p, g.to(p.device)) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    for p, _ in kept:
        if p.grad is None:
            p.grad = torch.zeros_like(p)  # in the weight's order in memory, which a fused optimizer relies on
    if kept:
        torch._foreach_add_([p.grad for p, _ in kept if p.grad is not None], [gradient for _, gradient in kept])


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a captured step reads it where it lies
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


@node(category="optimizer")
def copy_model(model: M) -> M:
    """A copy of a model with its own weights and buffers, which asks for no gradients: where ``ema`` starts.

    Args:
        model: the network to copy; it is not changed.
    """
    return copy.deepcopy(model).requires_grad_(False)


@node(category="optimizer")
def ema(model: M, average: Mutates[M], decay: Beta = 0.999) -> M:
    """Move a copy towards a model, in place: average = decay * average + (1 - decay) * model.

    So for every parameter and every floating-point buffer (BatchNorm's statistics); integer buffers are copied. With
    decay 0 the average is the model. It moves at every step, also where ``optimizer_step`` accumulates and has not
    changed the weights: n moves with the decay ``d ** (1 / n)`` are one with ``d``. Raises a ValueError,
    and changes nothing, for an average of another architecture, or that is the model itself.

    Args:
        model: the network that is trained.
        average: a copy_model of it.
        decay: share that the average keeps.
    """
    if model is average:
        raise ValueError("average is the model itself; give it a copy_model of the model")
    current, averaged = _state(model), _state(average)
    check_fits(averaged, current, f"the model {type(model).__name__}")
    floating = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
    with torch.no_grad():
        if floating:
            move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            move([averaged[name] for name in floating], [current[name] for name in floating], 0)
        for name in averaged.keys() - set(floating):
            averaged[name].copy_(current[name])
    return average


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
