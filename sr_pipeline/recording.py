"""A step recorded once, as one CUDA graph, and replayed.

A step's nodes run in three parts. First what feeds the part that trains and works on the host: draws of random numbers,
a learning rate. Then all that can be recorded: forward passes, backward passes, optimizers. Last, what looks on: logs,
previews, validation. What the recorded part reads of a step lies in tensors that stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from sr_pipeline.branches import BranchOrder
from sr_pipeline.errors import CaptureError, NodeRunError, PipelineError
from sr_pipeline.events import Warned
from sr_pipeline.execute import Executor, brief
from sr_pipeline.plan.cadence import fires
from sr_pipeline.plan.parts import EAGER, Parts, outputs, read

T = TypeVar("T")
WARM_UP = 3
"""Steps before the recording, which count as any: torch chooses its kernels, and optimizers make what they keep."""
LOSS_BOUND, CHANGE_BOUND = 0.01, 0.25
"""What the first replay may differ by from the same step node by node: of a loss, and of the length of what the step
changed in an object. Kernels that add in another order each time stay far below; stale input or a lost update does not.
"""
State = dict[str, list[Tensor]]
"""By the names of the run's state: its tensors."""


class Recording(Protocol):
    """What records the work of a step on a device."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work where it will be recorded."""

    def record(self, work: Callable[[], T], fed: Iterable[Tensor]) -> T:
        """Keep the work, which reads tensors that are ``fed``, without doing it. Each replay fills the tensors in what
        this returns."""

    def job(self, after: Collection[int], read: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Inside, the next job of the work that is recorded. It follows some of the jobs before, by their numbers from
        0, first those that made what it reads, and may be done beside all others. ``read`` is what they made for it."""

    def changed(self) -> None:
        """The job before changed weights."""

    def replay(self) -> None:
        """Do the work that was recorded last."""

    def clear(self) -> None:
        """Keep no work, nor the memory that it has."""


class RecordedStep:
    """Runs steps in three parts, the middle one as a recording; node by node where it cannot, with the reason told.

    Between steps, models and optimizers are as they are without it: their state is saved and loaded as ever.
    """

    def __init__(self, executor: Executor, found: Parts, recording: Recording) -> None:
        self.executor, self.parts, self.recording = executor, found, recording
        three = (found.before, found.recorded, found.after)
        self.before, self.recorded, self.after = ([executor.bind(op) for op in part] for part in three)
        self.ready, self.possible, self.told = False, True, False
        self.optimizers: list[Optimizer] = []
        self.hooks: list[RemovableHandle] = []
        self.buffers: dict[int, Tensor] = {}
        """By slot: where the recorded part finds what it is fed."""
        self.numbers: dict[int, float] = {}
        """By slot: what is in a number's buffer."""
        self.forget()

    def forget(self, *_: object) -> None:
        """Warm up and record anew: an optimizer was given another state, which lies elsewhere."""
        self.recording.clear()
        self.warm = 0
        self.places: dict[str, list[Any]] = {}
        self.kept: dict[int, Any] | None = None
        """By slot: what the recorded part made, where each replay leaves it."""
        self.options: list[tuple[dict[str, Any], str, int]] = []
        """Options of optimizers that are buffers while the recorded part runs: their group, name and slot."""

    def end(self) -> None:
        """Keep nothing: an optimizer would keep what hears of it, and with it the recording's memory."""
        for hook in self.hooks:
            hook.remove()
        self.forget()
        self.hooks, self.optimizers, self.buffers, self.numbers, self.ready = [], [], {}, {}, False

    def __call__(self, step: int, last: bool) -> None:
        values = self.executor.values
        self.executor.run_due(self.before, step, last)
        given = {slot: values[slot] for slot in self.parts.fed}
        if self._fits(given, step):
            self._in_buffers(given, step, last)
        else:
            self.executor.run_due(self.recorded, step, last)
        self.executor.run_due(self.after, step, last)
        for slot in self.parts.spent:
            values[slot] = None

    def _fits(self, given: dict[int, Any], step: int) -> bool:
        """Whether the buffers can hold this step's values; the first step's make them."""
        if not self.ready:
            self._prepare(given)
        if not self.possible:
            return False
        others = [slot for slot, value in given.items() if not _alike(self.buffers[slot], value)]
        if others and not self.told:
            self.told = True
            found, wanted = brief(given[others[0]]), brief(self.buffers[others[0]])
            what = f"it gave {found} at step {step + 1}, and {wanted} at the first"
            self._tell(CaptureError(self._maker(others[0]), what, f"of such a step {EAGER}"))
        return not others

    def _prepare(self, given: dict[int, Any]) -> None:
        self.ready = True
        self.optimizers = [value for value in self.executor.state().values() if isinstance(value, Optimizer)]
        self.hooks = [optimizer.register_load_state_dict_post_hook(self.forget) for optimizer in self.optimizers]
        device = self.executor.context.device
        number = torch.float32 if device.type == "cuda" else torch.float64  # CUDA's fused optimizers read no other
        other = next((slot for slot, v in given.items() if not isinstance(v, Tensor) and type(v) is not float), None)
        if other is not None:
            what = f"it gives {brief(given[other])}, no tensor or float"
            self._give_up(CaptureError(self._maker(other), what, EAGER))
            return
        for slot, value in given.items():
            made = isinstance(value, Tensor)
            self.buffers[slot] = torch.empty_like(value) if made else torch.zeros((), dtype=number, device=device)

    def _in_buffers(self, given: dict[int, Any], step: int, last: bool) -> None:
        """Run the recorded part on what it is given, from buffers."""
        values = self.executor.values
        for slot, value in given.items():
            values[slot] = buffer = self.buffers[slot]
            if isinstance(value, Tensor):
                buffer.copy_(value, non_blocking=True)
            elif self.numbers.get(slot) != value:  # each kernel between two replays takes 5 us
                buffer.fill_(value)
                self.numbers[slot] = value
        try:
            if self.warm < WARM_UP:
                self._warm_up(step, last)
            elif self.kept is None:
                self._record_and_prove(step, last)
            else:
                self._replay(step, last)
        finally:
            for slot, value in given.items():
                values[slot] = value
            for group, name, slot in self.options:
                group[name] = given[slot]

    def _one_by_one(self, step: int, last: bool) -> None:
        try:
            self.recording.warm_up(partial(self.executor.run_due, self.recorded, step, last))
        finally:
            self._note_options()

    def _warm_up(self, step: int, last: bool) -> None:
        self._one_by_one(step, last)
        self.warm += 1
        if self.warm < WARM_UP - 1:
            return
        state = {name: self.executor.values[slot].state_dict() for name, slot in self.executor.plan.state.items()}
        before, self.places = self.places, {name: _places(found) for name, found in state.items()}
        moved = next((name for name in before if not _same(before[name], self.places[name])), None)
        if moved is not None:
            where = self.executor.plan.wiring.where(moved.partition(".")[0])
            self._give_up(CaptureError(where, "what it keeps changes on the host from step to step", EAGER))

    def _note_options(self) -> None:
        slots = {id(buffer): slot for slot, buffer in self.buffers.items()}
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.options = [(g, name, slots[id(value)]) for g in groups for name, value in g.items() if id(value) in slots]

    def _record(self, step: int, last: bool) -> bool:
        executor, around = self.executor, self.executor.around

        def work() -> dict[int, Any]:
            order = BranchOrder()
            for bound in self.recorded:
                after, read = order.next(bound.op, executor.values)
                with self.recording.job(after, read):
                    executor.run_due([bound], step, last)
                if bound.op.type.mutations:
                    self.recording.changed()
            found = {slot: executor.values[slot] for slot in self.parts.kept}
            return cast(dict[int, Any], tree_map_only(Tensor, Tensor.detach, found))

        try:
            executor.around = {}
            with _capturable(self.optimizers):
                self.kept = self.recording.record(work, self.buffers.values())
        except (PipelineError, RuntimeError) as error:
            self._give_up(_cause(error))
            return False
        finally:
            executor.around = around
            torch.clear_autocast_cache()  # of weights that were rounded in the recording, so not at all
        return True

    def _record_and_prove(self, step: int, last: bool) -> None:
        """Do the step node by node, then record it from where it began, replay that, and compare: only a recording that
        does what the nodes do is used. What remains is what the nodes did.

        The nodes go first, so that a device has their memory back when the recording takes its own.
        """
        tensors = {name: [leaf for leaf in found if isinstance(leaf, Tensor)] for name, found in self.places.items()}
        before = _on_host(tensors)
        self._one_by_one(step, last)
        after, values = _on_host(tensors), tree_map_only(Tensor, Tensor.detach, self.executor.values)
        losses = self._losses(dict(enumerate(values)))
        for slot in outputs(self.parts.recorded):  # with them goes what autograd knows of other streams
            self.executor.values[slot] = None
        _put_back(tensors, before)
        if self._record(step, last):
            self._run_recording(step)
            self._compare(_on_host(tensors), after, before, _difference(self._losses(self.kept or {}), losses))
        _put_back(tensors, after)
        self.executor.values[:] = values

    def _compare(self, replayed: State, after: State, before: State, loss_error: float) -> None:
        if loss_error > LOSS_BOUND:
            what = f"its loss differs by {loss_error:.1%} from its nodes'"
            self._give_up(CaptureError("--capture graph", what, EAGER))
        for name in after:
            error = _distance(replayed[name], after[name]) / max(_distance(after[name], before[name]), 1e-30)
            if error > CHANGE_BOUND and self.possible:
                where = self.executor.plan.wiring.where(name.partition(".")[0])
                what = f"the recorded step changes it otherwise than its nodes do, by {error:.0%} of the change"
                self._give_up(CaptureError(where, what, EAGER))

    def _losses(self, values: dict[int, Any]) -> list[float]:
        """What the recorded part's backward passes begin with, of some values by slot."""
        return [float(values[slot]) for slot in self.parts.losses]

    def _run_recording(self, step: int) -> None:
        try:
            self.recording.replay()
        except RuntimeError as error:
            fix = "--capture off runs the nodes one by one, and names the one that fails"
            raise NodeRunError("--capture graph", f"the step failed at step {step + 1}: {error}", fix) from error

    def _replay(self, step: int, last: bool) -> None:
        executor = self.executor
        executor.begun += self.recorded
        self._run_recording(step)
        assert self.kept is not None
        for slot, value in self.kept.items():
            executor.values[slot] = value
        for bound in self.recorded:
            if around := executor.around.get(bound.op.node):
                around(bound.op, bound.arguments(executor.values, step), lambda _: None)
        due = read(bound.op for bound in self.after if fires(bound.op.demand, step, last))
        for slot in due & self.kept.keys():  # a copy, because who gets it may keep it over the next replay
            executor.values[slot] = tree_map_only(Tensor, Tensor.clone, self.kept[slot])

    def _give_up(self, error: BaseException) -> None:
        self.possible, self.buffers, self.kept = False, {}, None
        self.recording.clear()
        if not isinstance(error, PipelineError):
            error = CaptureError("--capture graph", f"the step cannot be recorded: {error}", EAGER)
        self._tell(error)

    def _tell(self, error: PipelineError) -> None:
        fault = error.faults[0]
        self.executor.context.channel.emit(Warned(fault.where, f"not captured: {fault.what}; {fault.fix}"))

    def _maker(self, slot: int) -> str:
        plan = self.executor.plan
        return plan.wiring.where(next(value.node for value, number in plan.slots.items() if number == slot))


def _cause(error: BaseException) -> BaseException:
    """The error of ours that led to it, if there is one: CUDA tells at the end that a recording failed, not why."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, PipelineError):
        at = at.__context__
    return at or error


def _alike(buffer: Tensor, value: Any) -> bool:
    if not isinstance(value, Tensor):
        return type(value) is float and buffer.dim() == 0
    return (value.shape, value.dtype, value.device) == (buffer.shape, buffer.dtype, buffer.device)


def _places(state: Any) -> list[Any]:
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(state)]


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether the same numbers, and tensors at the same places, are kept."""
    return len(one) == len(other) and all(
        a.data_ptr() == b.data_ptr() if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(one, other, strict=True)
    )


def _on_host(tensors: State) -> State:
    """Copies, which take no memory of the device."""
    return {name: [tensor.to("cpu", copy=True) for tensor in found] for name, found in tensors.items()}


def _put_back(tensors: State, copies: State) -> None:
    for name, found in tensors.items():
        for tensor, copied in zip(found, copies[name], strict=True):
            tensor.copy_(copied)


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The length of the difference of all numbers."""
    return math.hypot(*(float((a.double() - b.double()).norm()) for a, b in zip(one, other, strict=True)))


def _difference(found: list[float], wanted: list[float]) -> float:
    """The largest, as a share of what is wanted."""
    return max((abs(a - b) / max(abs(b), 1e-30) for a, b in zip(found, wanted, strict=True)), default=0.0)


@contextmanager
def _capturable(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Inside, torch lets the optimizers be recorded that can be."""
    groups = [group for o in optimizers for group in o.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = group["capturable"] or group["params"][0].is_cuda
    try:
        yield
    finally:
        for group, was in zip(groups, before, strict=True):
            group["capturable"] = was
