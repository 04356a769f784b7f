"""What of a recorded step has to wait for what: the rest may be done side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from sr_pipeline.plan import Op


class BranchOrder:
    """Which of the jobs before the next one follows: those that made what it reads, those that changed what it touches
    of models and optimizers, and those that touched what it changes."""

    def __init__(self) -> None:
        self.number = 0
        self.made: dict[int, int] = {}
        """By slot: the job that filled it."""
        self.touched: dict[int, list[int]] = {}
        self.changed: dict[int, int] = {}
        """By the identity of a weight, a buffer, or whatever else is changed in place."""
        self.behind: list[set[int]] = []
        """By job: what it and all before it touched: a backward pass reads that again."""

    def next(self, op: Op, values: list[Any]) -> tuple[list[int], list[Tensor]]:
        """Numbers of jobs, first of those that made what this one reads, and the tensors that they made."""
        makers = {self.made[slot] for _, slot in op.links if slot in self.made}
        leaves = (leaf for _, slot in op.links if slot in self.made for leaf in tree_leaves(values[slot]))
        read = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        held = {name: _held(values[slot], name in op.type.mutations) for name, slot in op.links}
        behind = set[int]().union(*held.values(), *(self.behind[n] for n in makers))
        touches = behind if op.type.backward else set[int]().union(*held.values())
        changes = set[int]().union(*(found for name, found in held.items() if name in op.type.mutations or op.training))
        others = {self.changed[found] for found in touches if found in self.changed}
        others |= {n for found in changes for n in self.touched.get(found, ())}
        for found in touches:
            self.touched.setdefault(found, []).append(self.number)
        self.changed |= dict.fromkeys(changes, self.number)
        self.made |= dict.fromkeys(op.outputs, self.number)
        self.behind.append(behind)
        self.number += 1
        return [*sorted(makers, reverse=True), *sorted(others - makers, reverse=True)], read


def _held(value: Any, changed: bool) -> set[int]:
    """The identities of what a value holds that may be changed in place: two models may share it."""
    if isinstance(value, nn.Module):
        return {id(value), *map(id, value.parameters()), *map(id, value.buffers())}
    if isinstance(value, Optimizer):
        return {id(value), *(id(p) for group in value.param_groups for p in group["params"])}
    return {id(value)} if changed else set()
