"""Numbers are watched: a loss or a weight that is not finite is found, the node where it began is named, and a policy
says how to go on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sr_pipeline.diagnosis import Diagnosis, all_finite, parts, unsound
from sr_pipeline.digraph import reached
from sr_pipeline.errors import NodeRunError, NotFiniteError, UsageError
from sr_pipeline.events import Resumed, Warned
from sr_pipeline.execute import Executor
from sr_pipeline.plan import Op, Plan

OnNan = Literal["stop", "skip", "back"]
"""What follows a step that is not finite: the error; the state before it and the next item; or the last checkpoint and
the next item, so that all steps since are undone."""
EVERY, SECONDS = 100, 10.0
"""Steps or seconds from look to look; also before each checkpoint, and after the last step."""
MOST, WINDOW = 10, 1000
"""More steps than this, of so many, are not left out."""


def policy_of(text: str) -> OnNan:
    """What ``--on-nan`` says.

    Raises:
        UsageError: there is no such policy.
    """
    policies: tuple[OnNan, ...] = get_args(OnNan)
    found = [policy for policy in policies if policy == text]
    if not found:
        raise UsageError(f"--on-nan {text}", "is unknown", f"give one of {', '.join(policies)}")
    return found[0]


class Watch:
    """Looks now and then whether losses and state are finite, and sees to it when they are not.

    Losses are kept as they are on the device, and read together: no step waits for it. A gradient that is not finite
    is seen in the weights or in the optimizer's state.

    Args:
        executor: set up; its backward steps are listened to from now on.
        on_nan: the policy.
        restore: loads the newest checkpoint, and returns its position; None where there is none.
        stop: asked while steps are done again.
    """

    def __init__(
        self,
        executor: Executor,
        on_nan: OnNan,
        restore: Callable[[], int | None],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.executor, self.on_nan, self.restore, self.stop = executor, on_nan, restore, stop
        self.losses: list[Tensor] = []
        self.sound = -1
        self.looked = time.monotonic()
        self.left_out: list[int] = []
        self.away = False
        """While the state is not that of the run's position, or not finite: not to be saved, whatever happens."""
        self.training, self.changing = training(executor.plan), changing(executor.plan)
        executor.around |= {op.node: self._keep_loss for op in executor.plan.steps if op.type.backward}

    def _keep_loss(self, op: Op, arguments: dict[str, Any], call: Callable[[dict[str, Any]], Any]) -> Any:
        assert op.type.backward
        loss = arguments[op.type.backward.name].detach().clone()  # as it is now: it may be changed in place
        result = call(arguments)
        self.losses.append(loss)
        return result

    def due(self, position: int) -> bool:
        return position - self.sound >= EVERY or time.monotonic() - self.looked > SECONDS

    def finite(self, position: int) -> bool:
        """Whether each loss since the last look and the whole state are finite, after ``position`` steps."""
        if self.sound == position:
            return True
        state = {name: self.executor.values[slot] for name, slot in self.executor.plan.state.items()}
        losses, self.losses = self.losses, []
        self.looked = time.monotonic()
        bad = not all_finite([*losses, *(tensor for _, tensor in parts("state", state))])
        if self.executor.context.world.any([bad])[0]:
            return False
        self.sound = position
        return True

    def check_start(self, position: int) -> None:
        """Before the first step.

        Raises:
            NotFiniteError: what setup made is not finite.
        """
        self.away = not self.finite(position)
        if self.away:
            raise self._of_state(position)

    def met(self) -> bool:
        """After an error of a node: whether numbers that are not finite may have led to it."""
        plan, values = self.executor.plan, self.executor.values
        slots = [slot for op in plan.steps if op.node in self.training for slot in op.outputs]
        met = [values[slot] for slot in (*plan.state.values(), *slots)]
        return not all_finite([*self.losses, *(tensor for _, tensor in parts("met", met))])

    def mend(self, position: int, last: bool, cause: NodeRunError | None = None) -> int:
        """After a look that found something: name the node, and raise, or give the position to go on from.

        The state is then that of this position, and is to be saved before anything else, because the steps before it
        are no longer those of the stream alone. ``last`` says whether the run's last step is among those done, and
        ``cause`` is the error of a node, if the last of these steps ended in one.

        Raises:
            NotFiniteError: the policy is to stop, or what it asks for cannot be done.
            NodeRunError: the cause, where the numbers are not.
        """
        channel = self.executor.context.channel
        channel.flush()
        self.losses.clear()
        self.away, start = True, self.restore()
        if start is None:
            raise cause or self._of_state(position)
        what = f"a loss or a weight is not finite by step {position}"
        channel.emit(Warned("watch", f"{what}; going back to step {start} to find where it began"))
        with channel.muted(), torch.no_grad():
            reached, error = self._find(start, position, last)
        if error is None:
            self._check_stopped(reached, position, last, cause)
            self.away = False
            return reached
        self._check_policy(error, start, reached, last and reached == position - 1)
        first = reached if self.on_nan == "skip" else self.restore()
        assert first is not None
        self.left_out.append(reached)
        self.sound = channel.step = reached + 1
        self.away = False
        channel.emit(Resumed(first))
        steps = f"step {reached + 1} is" if first == reached else f"steps {first + 1} to {reached + 1} are"
        channel.emit(Warned(error.faults[0].where, f"{error.faults[0].what}; {steps} left out"))
        return reached + 1

    def _find(self, start: int, position: int, last: bool) -> tuple[int, NotFiniteError | None]:
        """Do the steps from ``start`` on again, up to the first that is not finite: the state is then the one before
        it. Steps from before the last look were sound then, and are now. Ends early where the run is to stop."""
        sound = max(self.sound, start)
        with closing(self.executor.stream(start)) as items:
            for at, item in enumerate(islice(items, position - start), start):
                if self.stop():
                    return at, None
                final = last and at == position - 1
                if at < sound:
                    self.executor.step(item, at, final, self.changing)
                    continue
                before = self._state()
                if not self._goes_well(item, at, final):
                    self._load(before)
                    error = self._diagnosed(item, at, final)
                    self._load(before)
                    return at, error
        return position, None

    def _goes_well(self, item: Any, step: int, last: bool) -> bool:
        try:
            self.executor.step(item, step, last, self.changing)
        except NodeRunError:  # of a node that refuses what is not finite: the diagnosis finds whence it came
            if not self.executor.context.world.alone:
                raise
            return False
        return self.finite(step + 1)

    def _diagnosed(self, item: Any, step: int, last: bool) -> NotFiniteError:
        diagnosis, usual = Diagnosis(self.executor.plan, step), self.executor.around
        if not self.executor.context.world.alone:  # one that stopped at a node would leave the others waiting
            return self._of_step(step)
        try:
            self.executor.around = dict.fromkeys(self.training, diagnosis)
            diagnosis.check_item(item)
            self.executor.step(item, step, last, self.changing)
        except NotFiniteError as error:
            return error
        finally:
            self.executor.around = usual
        return self._of_state(step + 1)

    def _of_step(self, step: int) -> NotFiniteError:
        what = f"a loss or a weight is not finite at step {step + 1}"
        source = self.executor.plan.wiring.graph.source
        return NotFiniteError(source, what, "resume in one process, and the node is named")

    def _of_state(self, position: int) -> NotFiniteError:
        wiring = self.executor.plan.wiring
        for name, slot in self.executor.plan.state.items():
            if found := unsound(name, self.executor.values[slot]):
                what = f"it holds {found}, after {position} steps"
                return NotFiniteError(wiring.where(name), what, "give it weights that are numbers")
        fix = "the steps that led to it cannot be done again"
        return NotFiniteError(wiring.graph.source, f"a loss is not finite by step {position}", fix)

    def _check_stopped(self, reached: int, position: int, last: bool, cause: NodeRunError | None) -> None:
        """Done again, the steps were finite: the device does not repeat its numbers. Or the run was told to stop."""
        if reached < position:
            return
        what = f"a loss or a weight was not finite by step {position}, but is when the steps are done again"
        if cause or last or self.on_nan == "stop":
            fix = "the device does not repeat its numbers: --resume, with --deterministic to find the node"
            raise cause or NotFiniteError(self.executor.plan.wiring.graph.source, what, fix)
        self.executor.context.channel.emit(Warned("watch", what))

    def _check_policy(self, error: NotFiniteError, start: int, bad: int, last: bool) -> None:
        """Raise the error, with what stands in the way of going on, unless the policy is to and nothing does."""
        self.left_out = [step for step in self.left_out if step > bad - WINDOW]
        if self.on_nan == "stop":
            fix = f"the checkpoint of step {start} is sound"
        elif last:
            fix = f"it is the run's last step, which cannot be left out: --resume with --steps {bad}"
        elif len(self.left_out) >= MOST:
            fix = f"{MOST} of the last {WINDOW} steps were left out already"
        else:
            return
        fault = error.faults[0]
        raise NotFiniteError(fault.where, fault.what, f"{fault.fix}; {fix}") from None

    def _state(self) -> dict[str, Any]:
        return {name: copy.deepcopy(value.state_dict()) for name, value in self.executor.state().items()}

    def _load(self, state: dict[str, Any]) -> None:
        for name, value in self.executor.state().items():
            value.load_state_dict(copy.deepcopy(state[name]))  # an optimizer goes on to change what it was given


def training(plan: Plan) -> frozenset[str]:
    """The step nodes that change models and optimizers, and what they need."""
    return _with_needs(plan, {op.node for op in plan.steps if op.type.mutations or op.training})


def changing(plan: Plan) -> frozenset[str]:
    """Those, and the reducers with what they need: all that the state comes from. The others only look on."""
    return training(plan) | _with_needs(plan, set(plan.reducers))


def _with_needs(plan: Plan, nodes: set[str]) -> frozenset[str]:
    return frozenset(reached(plan.wiring.predecessors, nodes) & {op.node for op in plan.steps})
