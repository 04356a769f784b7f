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
    _averaged: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    """A DistributedDataParallel by the identities of its parameters, which it holds."""

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

    def broadcast(self, make: Callable[[], T]) -> T:
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

    def gather(self, value: T) -> list[T]:
        """The value of each process, in the first one; elsewhere nothing."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, found)
        return found or []

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, in all of them."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def lost_another(self, error: BaseException | None) -> bool:
        """Whether an error, or what it came from, is that another process can no longer be heard."""
        if self.alone or error is None:
            return False
        import torch.distributed as dist

        heard = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))
        return heard or self.lost_another(error.__cause__)

    def backward(self, loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> None:
        """Add to ``parameters`` the gradients of the mean of the processes' losses.

        The gradients travel in buckets while others are still computed: torch's DistributedDataParallel sees to it. A
        parameter that the loss does not reach in any process keeps what it had.
        """
        if not self.alone:
            self._averaging(parameters).prepare_for_backward([loss])
        torch.autograd.backward(loss, inputs=list(parameters), retain_graph=retain_graph)

    def _averaging(self, parameters: Sequence[Tensor]) -> Any:
        key = tuple(map(id, parameters))
        if key not in self._averaged:
            from torch.nn.parallel import DistributedDataParallel

            held = nn.ParameterList(parameters)  # alike in all: made with one seed, or given by the first
            self._averaged[key] = DistributedDataParallel(held, init_sync=False, find_unused_parameters=True)
        return self._averaged[key].reducer


class Agreement:
    """Flags on which the processes agree, about five times a second: a message on its way stops nobody.

    Each process asks after each step. What is true in one of them is told to all after the same later step; so a flag
    has to stay up until then. A process that is alone has its answer at once.
    """

    SECONDS = 0.2

    def __init__(self, world: World) -> None:
        self.world, self.left = world, 0
        self.message: tuple[Tensor, Any] | None = None

    def __call__(self, flags: Sequence[bool], rate: float) -> list[bool]:
        """``rate``: steps a second, of which the first process's says when the next message is read."""
        if self.world.alone:
            return list(flags)
        self.left -= 1
        if self.left > 0:
            return [False] * len(flags)
        import torch.distributed as dist

        found = [False] * len(flags)
        if self.message is not None:
            told, work = self.message
            work.wait()
            *numbers, self.left = told.tolist()
            found = [bool(number) for number in numbers]
        pause = max(1, round(self.SECONDS * rate)) if self.world.leads else 0
        now = torch.tensor([*map(int, flags), pause], dtype=torch.int32)
        self.message = now, dist.all_reduce(now, dist.ReduceOp.MAX, async_op=True)
        return found

    def settle(self) -> None:
        """Wait for the message that is on its way: torch must not be ended under it."""
        if self.message is not None:
            self.message[1].wait()
            self.message = None


ALONE = World()
