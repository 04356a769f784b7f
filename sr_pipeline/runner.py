"""One run: set up, resume, step, finish, save; and what is kept when it fails."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._pytree import tree_map_only

from sr_pipeline.checkpoint import digest, latest, snapshot, step_of
from sr_pipeline.errors import LostProcessError, NodeRunError, PipelineError, RunFolderError, nearest
from sr_pipeline.events import Channel, Done, Failed, Progress, Resumed, RunStarted, Saved, Warned
from sr_pipeline.execute import Executor
from sr_pipeline.folder import RunFolder, Settings, record_of, write_record
from sr_pipeline.plan import Plan
from sr_pipeline.resume import restore
from sr_pipeline.saver import Best, Saver
from sr_pipeline.sinks import add_line
from sr_pipeline.watch import OnNan, Watch
from sr_pipeline.world import Agreement, World

T = TypeVar("T")
SAVE_SECONDS = 300.0


@dataclass(frozen=True)
class Result:
    """What a run came to. ``outputs`` is what each output node (or the node of ``only``) returned last."""

    run_dir: Path
    step: int
    interrupted: bool
    outputs: dict[str, Any]


@dataclass
class Runner:
    """A run in its folder; the arguments are those of ``run``."""

    executor: Executor
    folder: RunFolder
    channel: Channel
    checkpoint_every: int | None
    best: Best | None
    allow_changed: bool
    stop: Callable[[], bool]
    limit: int | None
    settings: Settings
    on_nan: OnNan = "stop"
    position: int = 0
    saved: int = -1
    """The step of the last state that was saved, or is being saved."""
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.saver = Saver(self.folder.checkpoints)
        self.agree = Agreement(self.world)
        self.watch = Watch(self.executor, self.on_nan, self.back, self.stopped)
        self._digests: dict[str, str] | None = None
        self._missed_best = False

    @property
    def plan(self) -> Plan:
        return self.executor.plan

    @property
    def world(self) -> World:
        return self.executor.context.world

    def stopped(self) -> bool:
        """Whether any process of the run was told to stop."""
        return self.world.any([self.stop()])[0]

    def run(self, resume: bool) -> Result:
        began = time.monotonic()
        try:
            self.announce()
            interrupted = self.work(resume)
            self.channel.flush()
        except BaseException as error:
            if self.world.lost_another(error):
                lost = LostProcessError("another process", "it ended, and this one with it; it says why, if it could")
                self.fail(lost)
                raise lost from error
            if not isinstance(error, SystemExit):  # which a second signal raises: at once
                self.fail(error)
            raise
        self.channel.emit(Done(self.position, interrupted, round(time.monotonic() - began, 3)))
        return Result(self.folder.path, self.position, interrupted, self.executor.outputs())

    def announce(self) -> None:
        context, graph = self.executor.context, self.plan.wiring.graph.source
        folder, device, nodes = str(self.folder.path), str(context.device), len(self.plan.ops)
        size = self.world.size
        self.channel.emit(RunStarted(graph, folder, context.seed, device, nodes, str(context.mode), size))
        for warning in self.plan.warnings:
            self.channel.emit(Warned(warning.where, f"{warning.what}; {warning.fix}"))

    def work(self, resume: bool) -> bool:
        """Set up, step, finish and save; true when it was interrupted."""
        if not resume:
            self.record()
        later = self.plan.stream is not None  # it is asked to stop after a step: then there is a state to save
        later = later or not self.world.alone
        interrupted = not self.executor.setup((lambda: False) if later else self.stop)
        if resume:
            self.resume()
        interrupted = interrupted or self.steps()
        self.agree.settle()
        if not interrupted:
            self.executor.finish(self.position)
        self.save()
        self.tell_saved(self.saver.wait())
        self.tell_of_best()
        if self.best is not None and self.best.value is None and not (interrupted or self._missed_best):
            self.channel.emit(Warned(f"--best {self.best.metric}", "no node reported it; metrics.csv has the names"))
        return interrupted

    def resume(self) -> None:
        """Go on from the newest whole checkpoint; from the start where the run was stopped before the first one."""
        if (step := self.back()) is not None:
            self.position = self.channel.step = step
        self.record()  # only now: a graph that does not fit must not take the place of the one that does
        self.channel.emit(Resumed(self.position))

    def back(self) -> int | None:
        """Load the newest whole checkpoint, and say of which step it is; None where there is none.

        The first process reads it: the others have its state from it.
        """
        self.tell_saved(self.saver.wait())
        step, self.saved = self.world.broadcast(self.load)
        if step is not None and not self.world.alone:
            self.share()
        return step

    def share(self) -> None:
        """Give all processes the first one's state."""
        state = self.executor.state()
        states = {name: value.state_dict() for name, value in state.items()} if self.world.leads else {}
        found = self.world.broadcast(lambda: tree_map_only(Tensor, Tensor.cpu, states))
        for name in found if not self.world.leads else ():
            state[name].load_state_dict(found[name])

    def load(self) -> tuple[int | None, int]:
        """Load the newest whole checkpoint: its step, and the step that needs no saving."""
        if latest(self.folder.checkpoints) is None:
            return None, self.saved
        found = restore(self.folder.checkpoints, self.executor.state(), self.digests(), self.allow_changed)
        if self.best is not None:
            self.best.load_state_dict(found.saved.best)
        for text in found.notes:
            self.channel.emit(Warned(str(self.folder.checkpoints), text))
        return found.saved.step, found.saved.step if found.fit.whole else -1  # anew: the next resume is of this graph

    def steps(self) -> bool:
        """Step through the stream, from another place on where steps are left out; true when it was interrupted."""
        ended: bool | None = None
        while ended is None:
            if self.plan.stream is not None and self.stopped():
                return True
            with closing(self.executor.stream(self.position)) as items:
                ended = self.through(items)
        return ended

    def through(self, items: Iterator[Any]) -> bool | None:
        """Step through items; true when it was interrupted, None when the rest are to be got anew."""
        total = total_steps(self.plan, self.limit)
        if total is not None:
            items = islice(items, max(total - self.position, 0))
        ends: deque[float] = deque([time.monotonic()], maxlen=50)
        told = self.saved_at = time.monotonic()
        for item, last in with_last(items):
            if self.saved < 0:
                self.watch.check_start(self.position)
                self.save()  # so that there is a state to go back to; here, because the stream's workers run by now
            self.channel.step = self.position + 1
            try:
                self.executor.step(item, self.position, last)
            except NodeRunError as error:
                if not self.world.alone or not self.watch.met():  # the others know nothing of it
                    raise
                self.mend(self.position + 1, last, error)
                return None
            self.position += 1
            self.tell_saved(self.saver.poll())
            now = time.monotonic()
            ends.append(now)
            rate = (len(ends) - 1) / max(now - ends[0], 1e-9)
            if last or len(ends) == 2 or now - told > 0.2:
                told = now
                self.channel.emit(Progress(self.position, total, rate))
            due, look, stop = self.after_step(now, rate)
            if (last or due or look) and not self.watch.finite(self.position):
                self.mend(self.position, last)
                return None
            if stop:
                return not last
            if due:
                self.save()
        return False

    def mend(self, position: int, last: bool, cause: NodeRunError | None = None) -> None:
        """Name the node where a number that is none began, and go on as the policy says, or raise."""
        self.position = self.watch.mend(position, last, cause)
        self.save()

    def after_step(self, now: float, rate: float) -> tuple[bool, bool, bool]:
        """For all processes alike: whether to save, to look at the numbers, and to stop."""
        timed = self.checkpoint_every is None and now - self.saved_at > SAVE_SECONDS
        tell, due, look, stop = self.agree(
            [self.channel.due(), timed, self.watch.due(self.position), self.stop()], rate
        )
        if self.checkpoint_every is not None:
            due = self.position % self.checkpoint_every == 0
        awaited = self.best is not None and self.channel.holds(self.best.metric)
        if tell or awaited:
            self.channel.flush()
        self.tell_of_best()
        if self.best is not None and (awaited or self.world.alone):
            due = self.world.any([due or self.best.step == self.position])[0]
        return due, look, stop

    def tell_of_best(self) -> None:
        """Warn, once, as soon as the node of ``--best`` has reported other metrics alone."""
        if self.best is None or self.best.value is not None or not self.best.others or self._missed_best:
            return
        self._missed_best = True
        what = f"its node reports no such metric: {nearest(self.best.metric, self.best.others)}"
        self.channel.emit(Warned(f"--best {self.best.metric}", what))

    def save(self) -> None:
        """Begin to save the state, if there is any that was not saved. The one before must have been written."""
        self.channel.flush()
        if self.plan.stream is None or self.saved == self.position:
            return
        if not self.watch.finite(self.position):
            what = f"a loss or a weight is not finite by step {self.position}: this state is not saved"
            self.channel.emit(Warned("watch", f"{what}; --resume does the steps since the last checkpoint again"))
            return
        self.tell_saved(self.saver.wait())
        self.saved, self.saved_at = self.position, time.monotonic()
        if not self.world.leads:
            return
        best = self.best.state_dict() if self.best is not None else None
        taken = snapshot(self.position, self.executor.state(), self.digests(), best)
        self.saver.start(taken, best=self.best is not None and self.best.step == self.position)

    def tell_saved(self, path: Path | None) -> None:
        if path is not None:
            self.channel.emit(Saved(step_of(path), str(path)))

    def fail(self, error: BaseException) -> None:
        """Save what is sound, and tell what happened: the disk may be full, and the device lost.

        Where several processes share the run, the others cannot be asked: what was saved and told before stands.
        """
        with suppress(PipelineError, RuntimeError):
            if self.world.alone:
                self.channel.flush()
        with suppress(PipelineError, RuntimeError):
            self.tell_saved(self.saver.wait())
            sound = self.world.alone and self.executor.is_sound() and not self.watch.away
            if sound and not isinstance(error, RunFolderError):
                self.save()
                self.tell_saved(self.saver.wait())
        if isinstance(error, PipelineError):
            newest = latest(self.folder.checkpoints)
            step = step_of(newest) if newest is not None else None
            failed = Failed(error.faults[0].where, str(error), step)
            with suppress(RunFolderError, OSError):
                if self.world.leads:
                    self.channel.emit(failed)
                elif not isinstance(error, LostProcessError):  # the first process is ended before it could be told
                    where = f"process {self.world.rank + 1}: {failed.where}"
                    add_line(self.folder.events, replace(failed, where=where))

    def record(self) -> None:
        if not self.world.leads:
            return
        graph = self.plan.wiring.graph
        write_record(self.folder, graph, record_of(self.settings, graph))

    def digests(self) -> dict[str, str]:
        if self._digests is None:
            self._digests = {name: digest(module) for name, module in self.executor.unchanged().items()}
        return self._digests


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last.

    >>> list(with_last("abc"))
    [('a', False), ('b', False), ('c', True)]
    """
    waiting: list[T] = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True


def total_steps(plan: Plan, limit: int | None) -> int | None:
    """How many steps the whole run has; None where only the stream's end tells."""
    made = plan.wiring.types[plan.stream] if plan.stream else None
    if made and plan.stream and "steps" in plan.wiring.links[plan.stream]:
        return None  # another node says how many
    if made and plan.stream and "steps" in made.inputs:
        return int(plan.wiring.setting(plan.stream, made.inputs["steps"]))
    return limit
