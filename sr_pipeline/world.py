"""The processes that share one run: who this one is, what it takes, and what all of them agree on.

They are started by torchrun, and talk through torch.distributed. A run of one process has the world ``ALONE``, in which
everything here costs nothing and imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sr_pipeline.errors import PipelineError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's number among those that share a run: ``rank`` of ``size``, the first being 0."""

    rank: int = 0
    size: int = 1
    _averaged: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)
    """A DistributedDataParallel by the identity of its first parameter, which it holds."""

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def leads(self) -> bool:
        """The first process: it alone writes, and tells."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Which items of a global batch are this process's: as many as each other's, and in their order.

        >>> [World(rank, 3).share(6) for rank in range(3)]
        [range(0, 2), range(2, 4), range(4, 6)]

        Raises:
            ValueError: the batch does not divide.
        """
        if batch % self.size:
            raise ValueError(f"a batch of {batch} does not divide by {self.size} processes; make it a multiple")
        each = batch // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without its gradient."""
        if self.alone:
            return value
        import torch.distributed as dist

        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is true in any of the processes."""
        if self.alone:
            return list(flags)
        import torch.distributed as dist

        found = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def of_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process; a PipelineError there is raised in all."""
        if self.alone:
            return make()
        import torch.distributed as dist

        found: list[Any] = [None, None]
        if self.leads:
            try:
                found[0] = make()
            except PipelineError as error:  # the others would wait for it
                found[1] = error
        dist.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return cast(T, found[0])

    def all(self, value: T) -> list[T]:
        """The value of each process, in the first one; elsewhere nothing."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, found)
        return found or []

    def backward(self, loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> None:
        """Add to ``parameters`` the gradients of the mean of the processes' losses.

        The gradients travel in buckets while others are still computed: torch's DistributedDataParallel sees to it.
        """
        averaged = None if self.alone else self._averaged.get(id(parameters[0]))
        if averaged is not None:
            averaged.reducer.prepare_for_backward([])
        torch.autograd.backward(loss, inputs=list(parameters), retain_graph=retain_graph)
        if not self.alone and averaged is None:
            self._average(parameters)

    def _average(self, parameters: Sequence[Tensor]) -> None:
        """The first time: which parameters get a gradient is known only now."""
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        reached = [p for p in parameters if p.grad is not None]
        gradients = [p.grad for p in reached if p.grad is not None]
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient.div_(self.size)
        if reached:
            self._averaged[id(parameters[0])] = DistributedDataParallel(nn.ParameterList(reached))


ALONE = World()
