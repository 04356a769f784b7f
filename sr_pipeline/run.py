"""Run a graph: set up, step, finish; with its folder, its events and its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

from sr_pipeline import determinism
from sr_pipeline.allocator import kept_memory
from sr_pipeline.cache import SetupCache
from sr_pipeline.capture import capturing, chosen_capture
from sr_pipeline.errors import UsageError, nearest
from sr_pipeline.events import Channel, Sink
from sr_pipeline.execute import Context, Executor, writing
from sr_pipeline.folder import RunFolder, Settings, find_folder, locked, new_folder, read_record
from sr_pipeline.graph import Graph
from sr_pipeline.launch import check_restarts, is_restart, is_shared, joined, own_device
from sr_pipeline.plan import Plan, compile_plan
from sr_pipeline.precision import chosen_mode, slower
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.runner import Result, Runner
from sr_pipeline.saver import Best, best_of
from sr_pipeline.sinks import JsonLines, MetricsCsv, TensorBoard
from sr_pipeline.watch import changing, policy_of
from sr_pipeline.world import ALONE, World


def run(
    graph: Graph,
    *,
    registry: Registry | None = None,
    steps: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
    capture: str = "auto",
    deterministic: bool = False,
    threads: int | None = None,
    seed: int | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    allow_changed: bool = False,
    only: str | Sequence[str] | None = None,
    checkpoint_every: int | None = None,
    best: str | None = None,
    on_nan: str = "stop",
    tensorboard: bool = False,
    sinks: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
    cache: SetupCache | None = None,
    apart: bool = False,
) -> Result:
    """Run a graph to its end, or until ``stop()`` is true after a step: then the state is saved and nothing fires.

    Args:
        graph: the graph; it is not changed.
        registry: the nodes it may name; all installed packs by default.
        steps: the run's total number of steps, in place of the stream's own; on resume too.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``auto`` (the fastest that the device has units for); see ``Mode``.
        memory_format: ``contiguous``, ``channels_last`` or ``auto``.
        capture: ``off``, ``graph`` (on CUDA a step is recorded once and replayed), ``compile`` (of the networks) or
            ``auto`` (a graph where the device and the plan allow one). Where it cannot be, the reason is told.
        deterministic: torch's deterministic algorithms: with the seed, the same bits each time on one machine.
        threads: of the CPU; as torch has it by default.
        seed: of everything random; 0 by default, and the run's own on resume.
        run_dir: the run's folder; ``runs/<graph>-<time>`` by default, and the newest one on resume.
        resume: go on from the newest whole checkpoint of the folder, or from the start where there is none yet.
        allow_changed: resume though the graph was changed: what fits is restored, the rest is new.
        only: run up to this node or these, whatever the graph's output nodes are.
        checkpoint_every: save the state each so many steps; by default each five minutes. It is saved before the first
            step and at the end too, and the newest three are kept.
        best: a metric as metrics.csv names it, ``:min`` after it where less is better; its best state is kept too.
        on_nan: what follows a step whose loss, gradients or weights are not finite: ``stop`` (an error that names the
            node), ``skip`` (the step is left out) or ``back`` (and so are those since the last checkpoint).
        tensorboard: write scalars for TensorBoard into the folder too (extra ``tensorboard``).
        sinks: functions that are given each event.
        stop: asked after each step.
        cache: setup values of earlier runs of this process, and where this one's are kept.
        apart: processes that torchrun started do not share the run: each has one of its own.

    Raises:
        GraphError: the graph is faulty; nothing was run or written.
        UsageError: an argument does not fit.
        NodeRunError: a node failed; a NotFiniteError where its result, or the gradient from it, is not finite.
        CheckpointError: the state to resume from does not fit, or none is whole; or a state cannot be saved.
        RunFolderError: a file of the folder cannot be written.
    """
    registry = load_packs() if registry is None else registry
    where = own_device(resolve_device(device))
    mode = chosen_mode(precision, memory_format, where)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every {checkpoint_every}", "is no number of steps", "give 1 or more")
    policy = policy_of(on_nan)
    plan = compile_plan(with_steps(graph, registry, steps), registry, only)
    watched = _best_of(best, plan) if best is not None else None
    path = Path(run_dir) if run_dir is not None else None
    if not apart:
        check_restarts(path is not None)
        if watched is not None and is_shared() and watched.metric.partition("/")[0] in writing(plan):
            raise UsageError(f"--best {best}", "that node writes files, in the first process alone", "give another")
    with ExitStack() as stack:
        if where.type == "cpu" and plan.trains:
            stack.enter_context(kept_memory())
        world = ALONE if apart else stack.enter_context(joined())
        _check_shares(plan, world)
        captured, refused = chosen_capture(capture, plan, where, world.alone)
        mode = replace(mode, capture=captured)
        plan = replace(plan, warnings=(*plan.warnings, *slower(mode, where), *refused))
        folder, seed, resume = world.broadcast(lambda: _opened(stack, path, graph, resume, seed))
        if cache is not None:
            cache.device, cache.seed = str(where), seed
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode.products(where))
        stack.enter_context(determinism.threads(threads))
        stack.enter_context(determinism.deterministic(deterministic, where))
        settings = Settings(
            seed=seed,
            device=str(where) if world.alone else where.type,  # each process has its own
            precision=mode.precision,
            memory_format=mode.memory_format,
            deterministic=deterministic,
            threads=torch.get_num_threads(),
            steps=steps,
            only=only if isinstance(only, (str, type(None))) else tuple(only),
            checkpoint_every=checkpoint_every,
            best=best,
            on_nan=on_nan,
            tensorboard=tensorboard,
            capture=mode.capture,
        )
        channel = Channel([], world=world)
        if world.leads:
            files = _file_sinks(folder, tensorboard)
            for file in files:
                stack.enter_context(closing(file))
            channel.sinks = [*files, *([watched] if watched is not None else []), *sinks]
        executor = Executor(plan, Context(folder.path, seed, where, channel, mode, world), cache)
        stack.callback(executor.release)
        stack.enter_context(capturing(executor))
        runner = Runner(
            executor, folder, channel, checkpoint_every, watched, allow_changed, stop, steps, settings, policy
        )
        return runner.run(resume)


def _opened(
    stack: ExitStack, path: Path | None, graph: Graph, resume: bool, seed: int | None
) -> tuple[RunFolder, int, bool]:
    """The run's folder, kept to this run while the stack lasts; the run's seed; whether it is to be resumed.

    Processes that torchrun starts in the place of lost ones resume what those began.
    """
    if path is not None and RunFolder(path).record.is_file():
        resume = resume or is_restart(read_record(RunFolder(path)).launch)
    folder = find_folder(path, graph) if resume else new_folder(path, graph)
    stack.enter_context(locked(folder, new=not resume))
    return folder, _seed_of(folder, seed) if resume else seed or 0, resume


def _check_shares(plan: Plan, world: World) -> None:
    """Raise where processes cannot share a run: each would do all of it."""
    if world.alone or plan.stream is None:
        return
    made = plan.wiring.types[plan.stream]
    if "world" not in made.injected.values():
        fix = "run it in one process, or wire a stream whose node takes a World"
        raise UsageError(plan.wiring.where(plan.stream), f"{made.name} does not share out its items", fix)
    if plan.reducers:
        name = plan.reducers[0]
        what = f"{plan.wiring.types[name].name} gathers over the steps, and each process sees its share alone"
        raise UsageError(plan.wiring.where(name), what, "run it in one process")
    if in_the_way := sorted(writing(plan) & changing(plan)):
        what = (
            "it writes files, or needs what does, so that the first process alone would run it; and training needs it"
        )
        raise UsageError(plan.wiring.where(in_the_way[0]), what, "run it in one process")


def _best_of(text: str, plan: Plan) -> Best:
    best, nodes = best_of(text), [op.node for op in plan.ops]
    node = best.metric.partition("/")[0]
    if node not in nodes:
        raise UsageError(f"--best {text}", f"no node {node!r} runs", nearest(node, nodes))
    return best


def _file_sinks(folder: RunFolder, tensorboard: bool) -> list[JsonLines | MetricsCsv | TensorBoard]:
    try:
        files: list[JsonLines | MetricsCsv | TensorBoard] = [JsonLines(folder.events), MetricsCsv(folder.metrics)]
    except OSError as error:
        what = f"cannot be written: {error.strerror}: {error.filename2 or error.filename}"
        raise UsageError(f"--run-dir {folder.path}", what, "give another folder") from None
    return [*files, TensorBoard(folder.path / "tensorboard")] if tensorboard else files


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
    kept = read_record(folder).settings.seed
    if given is not None and given != kept:
        raise UsageError(f"--seed {given}", f"the run to resume has the seed {kept}", "leave --seed out")
    return kept
