"""Run a graph: set up, step, finish; with its folder, its events and its state."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from sr_pipeline import checkpoint
from sr_pipeline.cache import SetupCache
from sr_pipeline.errors import PipelineError, UsageError
from sr_pipeline.events import (
    Channel,
    Done,
    Failed,
    JsonLines,
    MetricsCsv,
    Progress,
    Resumed,
    RunStarted,
    Saved,
    Sink,
    TensorBoard,
    Warned,
)
from sr_pipeline.execute import Context, Executor
from sr_pipeline.folder import RunFolder, find_folder, new_folder, read_record, record_of, write_record
from sr_pipeline.graph import Graph
from sr_pipeline.plan import Plan, compile_plan
from sr_pipeline.registry import Registry, load_packs

T = TypeVar("T")
SAVE_SECONDS = 300.0


@dataclass(frozen=True)
class Result:
    """What a run came to. ``outputs`` is what each output node (or the node of ``only``) returned last."""

    run_dir: Path
    step: int
    interrupted: bool
    outputs: dict[str, Any]


def run(
    graph: Graph,
    *,
    registry: Registry | None = None,
    steps: int | None = None,
    device: str = "auto",
    seed: int | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    only: str | None = None,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    sinks: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
    cache: SetupCache | None = None,
) -> Result:
    """Run a graph to its end, or until ``stop()`` is true after a step: then the state is saved and nothing fires.

    Args:
        graph: the graph; it is not changed.
        registry: the nodes it may name; all installed packs by default.
        steps: the run's total number of steps, in place of the stream's own; on resume too.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of everything random; 0 by default, and the run's own on resume.
        run_dir: the run's folder; ``runs/<graph>-<time>`` by default, and the newest one on resume.
        resume: go on from the last checkpoint of the folder.
        only: run up to this node, whatever the graph's output nodes are.
        checkpoint_every: save the state each so many steps; by default each five minutes, and at the end.
        tensorboard: write scalars for TensorBoard into the folder too (extra ``tensorboard``).
        sinks: functions that are given each event.
        stop: asked after each step.
        cache: setup values of earlier runs of this process, and where this one's are kept.

    Raises:
        GraphError: the graph is faulty; nothing was run or written.
        UsageError: an argument does not fit.
        NodeRunError: a node failed.
        CheckpointError: the state to resume from does not fit or is damaged.
    """
    registry = load_packs() if registry is None else registry
    where = resolve_device(device)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every {checkpoint_every}", "is no number of steps", "give 1 or more")
    plan = compile_plan(with_steps(graph, registry, steps), registry, only)
    path = Path(run_dir) if run_dir is not None else None
    folder = find_folder(path, graph) if resume else new_folder(path, graph)
    seed = _seed_of(folder, seed) if resume else seed or 0
    start = checkpoint.latest(folder.checkpoints) if resume else None
    if cache is not None:
        cache.device, cache.seed = str(where), seed
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        files = _file_sinks(folder, tensorboard)
        for file in files:
            stack.enter_context(closing(file))
        channel = Channel([*files, *sinks])
        executor = Executor(plan, Context(folder.path, seed, where, channel), cache)
        return _Runner(executor, folder, channel, checkpoint_every, stop, steps).run(start)


def _file_sinks(folder: RunFolder, tensorboard: bool) -> list[JsonLines | MetricsCsv | TensorBoard]:
    try:
        files: list[JsonLines | MetricsCsv | TensorBoard] = [JsonLines(folder.events), MetricsCsv(folder.metrics)]
    except OSError as error:
        what = f"cannot be written: {error.strerror}: {error.filename}"
        raise UsageError(f"--run-dir {folder.path}", what, "give another folder") from None
    return [*files, TensorBoard(folder.path / "tensorboard")] if tensorboard else files


@dataclass
class _Runner:
    executor: Executor
    folder: RunFolder
    channel: Channel
    checkpoint_every: int | None
    stop: Callable[[], bool]
    limit: int | None
    position: int = 0
    saved: int = -1

    @property
    def plan(self) -> Plan:
        return self.executor.plan

    def run(self, start: Path | None) -> Result:
        began = time.monotonic()
        context = self.executor.context
        graph, nodes = self.plan.wiring.graph.source, len(self.plan.ops)
        self.channel.emit(RunStarted(graph, str(self.folder.path), context.seed, str(context.device), nodes))
        for warning in self.plan.warnings:
            self.channel.emit(Warned(warning.where, f"{warning.what}; {warning.fix}"))
        if start is None:
            self.record()
        try:
            streams = self.plan.stream is not None  # which is asked to stop after a step: then there is a state to save
            interrupted = not self.executor.setup((lambda: False) if streams else self.stop)
            if start is not None:
                self.position = checkpoint.restore(start, self.executor.state(), self.digests())
                self.saved = self.channel.step = self.position
                self.record()  # only now: a graph that does not fit must not take the place of the one that does
                self.channel.emit(Resumed(self.position))
            interrupted = interrupted or self.steps()
            if not interrupted:
                self.executor.finish(self.position)
            self.channel.flush()
            self.save()
        except PipelineError as error:
            self.channel.flush()
            self.channel.emit(Failed(error.faults[0].where, str(error)))
            raise
        self.channel.emit(Done(self.position, interrupted, round(time.monotonic() - began, 3)))
        return Result(self.folder.path, self.position, interrupted, self.executor.outputs())

    def steps(self) -> bool:
        """Step through the stream; true when it was interrupted."""
        total = total_steps(self.plan, self.limit)
        items: Iterator[Any] = self.executor.stream(self.position)
        if total is not None:
            items = islice(items, max(total - self.position, 0))
        if self.plan.stream is not None and self.stop():
            return True
        ends: deque[float] = deque([time.monotonic()], maxlen=50)
        told = saved = time.monotonic()
        for item, last in with_last(items):
            self.channel.step = self.position + 1
            self.executor.step(item, self.position, last)
            self.position += 1
            now = time.monotonic()
            ends.append(now)
            if last or len(ends) == 2 or now - told > 0.2:
                told = now
                self.channel.emit(Progress(self.position, total, (len(ends) - 1) / max(now - ends[0], 1e-9)))
            if self.stop():
                return not last
            if self.due(now - saved):
                self.save()
                saved = time.monotonic()
        return False

    def record(self) -> None:
        context = self.executor.context
        record = record_of(context.seed, str(context.device), torch.get_num_threads())
        write_record(self.folder, self.plan.wiring.graph, record)

    def due(self, seconds: float) -> bool:
        if self.checkpoint_every is None:
            return seconds > SAVE_SECONDS
        return self.position % self.checkpoint_every == 0

    def save(self) -> None:
        """Save the state, if there is any that was not saved."""
        if self.plan.stream is None or self.saved == self.position:
            return
        self.channel.flush()
        path = checkpoint.save(self.folder.checkpoints, self.position, self.executor.state(), self.digests())
        self.saved = self.position
        self.channel.emit(Saved(self.position, str(path)))

    def digests(self) -> dict[str, str]:
        if not hasattr(self, "_digests"):
            self._digests = {name: checkpoint.digest(module) for name, module in self.executor.unchanged().items()}
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


def with_steps(graph: Graph, registry: Registry, steps: int | None) -> Graph:
    """The graph with the stream's ``steps`` replaced, where it has that input.

    Raises:
        UsageError: ``steps`` is less than 1.
    """
    if steps is None:
        return graph
    if steps < 1:
        raise UsageError(f"--steps {steps}", "is no number of steps", "give 1 or more")
    changed = graph.copy()
    for entry in changed.nodes.values():
        made = registry.get(entry.class_type)
        if made and made.kind == "stream" and "steps" in made.inputs:
            entry.inputs["steps"] = steps
    return changed


def total_steps(plan: Plan, limit: int | None) -> int | None:
    """How many steps the whole run has; None where only the stream's end tells."""
    made = plan.wiring.types[plan.stream] if plan.stream else None
    if made and plan.stream and "steps" in plan.wiring.links[plan.stream]:
        return None  # another node says how many
    if made and plan.stream and "steps" in made.inputs:
        return int(plan.wiring.setting(plan.stream, made.inputs["steps"]))
    return limit


def resolve_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}", "is no device", "give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices are visible"
        raise UsageError(f"--device {name}", f"there is no such device: {found}", "give auto or cpu")
    return device


def _seed_of(folder: RunFolder, given: int | None) -> int:
    kept = read_record(folder).seed
    if given is not None and given != kept:
        raise UsageError(f"--seed {given}", f"the run to resume has the seed {kept}", "leave --seed out")
    return kept
