"""Adam's step amid a recording, with the whole GPU at work. No nodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from sr_nodes._fused.lists import cut
from sr_nodes._fused.streams import Beside
from sr_pipeline.streams import recorded_stream

_MANY = 36
"""Tensors that torch's kernel takes at once."""


def update(optimizer: Optimizer) -> None:
    """``optimizer.step()``, with the same bits.

    Torch's fused kernel takes 36 tensors at once and gives each to a multiprocessor or few, one launch after the other.
    Amid a recording tensors are cut, and launches run beside each other.
    """
    device = optimizer.param_groups[0]["params"][0].device
    recorded = recorded_stream(device) is not None
    if not (recorded and all(_is_known(optimizer, group) for group in optimizer.param_groups)):
        optimizer.step()
        return
    beside = Beside(device, number=8)
    for group in optimizer.param_groups:
        if not (learned := [p for p in group["params"] if p.grad is not None]):
            continue
        states = [optimizer.state[p] for p in learned]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        own = [p.grad for p in learned], *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        kinds = [cut([p.detach() for p in learned]), *map(cut, own)]
        kinds.append([[step] * len(pieces) for step, pieces in zip(steps, kinds[0], strict=True)])
        flat = [[piece for pieces in kind for piece in pieces] for kind in kinds]
        for first in range(0, len(flat[0]), _MANY):
            some = [kind[first : first + _MANY] for kind in flat]
            beside(partial(_step, type(optimizer), group, *some))
    beside.join()


def _step(
    kind: type[Optimizer], group: dict[str, Any], learned: list[Tensor], grads: list[Tensor], means: list[Tensor],
    squares: list[Tensor], steps: list[Tensor],
) -> None:  # fmt: skip
    step = torch._fused_adamw_ if kind is AdamW else torch._fused_adam_
    beta1, beta2 = group["betas"]
    step(
        learned, grads, means, squares, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2, eps=group["eps"],
        weight_decay=group["weight_decay"], amsgrad=False, maximize=False,
    )  # fmt: skip


def _is_known(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether it is torch's own, fused and plain, with weights, gradients and state in one order in memory."""
    if type(optimizer) not in (Adam, AdamW) or not group["fused"] or group["amsgrad"] or group["maximize"]:
        return False
    for p in group["params"]:
        if p.grad is None:
            continue
        state = optimizer.state.get(p, {})
        if not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
            return False
        alike = all(t.stride() == p.stride() for t in (p.grad, state["exp_avg"], state["exp_avg_sq"]))
        dense = p.is_contiguous() or (p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last))
        if not (alike and dense):
            return False
    return True
