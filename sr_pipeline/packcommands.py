"""The commands that packs declare: each runs a graph with its flags as inputs."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sr_pipeline.command import Command, Flag
from sr_pipeline.jsontext import strict_json
from sr_pipeline.paths import announced

if TYPE_CHECKING:
    from sr_pipeline.errors import PipelineError
    from sr_pipeline.events import Event, Sink
    from sr_pipeline.graph import Graph
    from sr_pipeline.registry import Registry

COMMANDS = "sr_pipeline.commands"


def add_pack_commands(app: typer.Typer) -> None:
    """Add the commands of all installed packs to the command line."""
    for point in announced(COMMANDS):
        for command in point.load():
            app.command(command.name, help=command.help)(_callback(command))


def _callback(command: Command) -> Callable[..., None]:
    """A function with a parameter for each flag, which is what typer reads."""

    def callback(**given: Any) -> None:
        values = dict(command.sets) | {
            place: value
            for flag in command.flags
            for value in _values(flag, given[flag.key], given.get("more") or [])
            for place in flag.sets
        }
        pipes = bool(command.pipe) and given[command.pipe] == "-"
        temporary = bool(command.temporary_with) and given[command.temporary_with] is not None
        kept = not temporary or given["run_dir"] is not None
        _run(command, values, given["device"], given["run_dir"], kept, given["as_json"], pipes)

    parameters = list(_parameters(command))
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in parameters}
    return callback


def _parameters(command: Command) -> Iterator[Parameter]:
    for flag in command.flags:
        yield _parameter(flag)
    many = next((flag for flag in command.flags if flag.multiple and not flag.by_position), None)
    if many:  # `--flag A B`: the parser gives B to this
        rest = Annotated[Optional[list[str]], typer.Argument(hidden=True, metavar=many.key.upper())]
        yield Parameter("more", Parameter.KEYWORD_ONLY, default=None, annotation=rest)
    common: tuple[tuple[str, Any, Any], ...] = (
        ("device", "auto", Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]),
        ("run_dir", None, Annotated[Optional[Path], typer.Option(help="The run's folder.")]),
        ("as_json", False, Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]),
    )
    for name, default, annotation in common:
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(flag: Flag) -> Parameter:
    shown = "|".join([*flag.words, *(["N"] if flag.number else [])]) or None
    many = "..." if flag.multiple else ""
    option: Any
    if flag.switch:
        kind: Any = bool
        option = typer.Option(flag.name, help=flag.help)
    elif flag.by_position:
        kind = list[str] if flag.multiple else str
        option = typer.Argument(help=flag.help, metavar=flag.name.upper() + many, show_default=False)
    else:
        kind = list[str] if flag.multiple else str
        option = typer.Option(flag.name, help=flag.help, metavar=shown or ("TEXT..." if flag.multiple else None))
    default: Any = Parameter.empty if flag.required else False if flag.switch else None
    kind = kind if flag.required or flag.switch else Optional[kind]
    return Parameter(flag.key, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _values(flag: Flag, given: Any, more: list[str]) -> Iterator[Any]:
    """What a flag sets, if it was given."""
    if flag.switch:
        yield from [flag.constant] if given else []
    elif flag.multiple:
        texts = [*(given or []), *([] if flag.by_position else more)]
        yield from [[_read(flag, text) for text in texts]] if given else []
    elif given is not None:
        yield _read(flag, given)


def _read(flag: Flag, text: str) -> Any:
    try:
        return flag.read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=repr(flag.name)) from None


def _run(
    command: Command, values: dict[str, Any], device: str, run_dir: Path | None, kept: bool, as_json: bool, pipes: bool
) -> None:
    from sr_pipeline import launch
    from sr_pipeline.console import console_for
    from sr_pipeline.errors import PipelineError, UsageError
    from sr_pipeline.folder import RunFolder
    from sr_pipeline.processes import temporary_folder
    from sr_pipeline.registry import load_packs
    from sr_pipeline.run import run
    from sr_pipeline.shipped import find_graph
    from sr_pipeline.signals import stop_on_signals

    shared = command.apart and launch.is_shared()
    run_dir = run_dir / f"process-{launch.rank()}" if shared and run_dir is not None else run_dir
    if run_dir is not None and RunFolder(run_dir).record.exists():  # here, because these commands have no --resume
        raise UsageError(f"--run-dir {run_dir}", "holds a run already", "give another folder")
    registry = load_packs()
    collect_garbage()
    graph = find_graph(command.graph)
    _set(graph, values)
    with ExitStack() as stack:
        caught = stack.enter_context(stop_on_signals())
        if not kept:
            run_dir = stack.enter_context(temporary_folder())
        console = console_for(sys.stderr if as_json or pipes else sys.stdout)
        stack.enter_context(console)
        told = Told(console, command.name, _streams(graph, registry), kept)
        stop = lambda: bool(caught)  # noqa: E731
        try:
            result = run(
                graph, registry=registry, device=device, run_dir=run_dir, sinks=[told], stop=stop, apart=command.apart
            )
        except PipelineError as error:
            raise in_flags(error, command, graph) from error
    if result.interrupted:
        if command.stopped and told.total is not None:
            typer.echo(command.stopped.format(done=result.step, total=told.total), err=True)
        raise typer.Exit(128 + caught[0])
    if as_json:
        typer.echo(strict_json(result.outputs[command.result]), err=pipes)
    else:
        folder = f"\nrun folder: {result.run_dir}" if kept else ""
        typer.echo(f"{result.outputs[command.text]}{folder}", err=pipes)
    if command.failures and not shared and result.outputs[command.result][command.failures]:
        raise typer.Exit(1)


def _set(graph: Graph, values: dict[str, Any]) -> None:
    for place, value in values.items():
        node, _, name = place.rpartition(".")
        graph.nodes[node].inputs[name] = value


def collect_garbage() -> None:
    """From now on; not what there is now. A command's imports are all there to stay, and each time that Python's
    collector walks them takes a tenth of a second, which is why ``main`` has it wait."""
    gc.freeze()
    gc.enable()


def _streams(graph: Graph, registry: Registry) -> frozenset[str]:
    return frozenset(id_ for id_, entry in graph.nodes.items() if registry[entry.class_type].kind == "stream")


class Told:
    """A sink that is told what a command's user understands: steps of how many, hence the time left, and no node's id.

    ``total`` is how many steps a finite stream will have, as soon as the stream reports it. Of a run whose folder is
    not kept, neither the folder is spoken of nor what is saved there.
    """

    def __init__(self, sink: Sink, name: str, streams: frozenset[str], kept: bool) -> None:
        self.sink, self.name, self.streams, self.kept = sink, name, streams, kept
        self.total: int | None = None

    def __call__(self, event: Event) -> None:
        from sr_pipeline.events import NodeProgress, NodeStarted, Progress, RunStarted, Saved, Warned

        if isinstance(event, NodeProgress) and event.node in self.streams:
            self.total = event.total
        if isinstance(event, Progress) and event.total is None:
            event = replace(event, total=self.total)
        if isinstance(event, Warned):
            event = replace(event, where=self.name)
        if self.kept or not isinstance(event, (RunStarted, NodeStarted, Saved)):
            self.sink(event)


def in_flags(error: PipelineError, command: Command, graph: Graph) -> PipelineError:
    """An error in the words of the command: the flag that was given, in place of the graph's file, node and input.

    What a node found wrong with its inputs is told by the first flag that sets one of them. Any other error of a node
    is a fault of the program, and stays as it is.
    """
    from sr_pipeline.errors import Fault, GraphError, NodeRunError

    name = f"sr-pipeline {command.name}"
    flags: dict[str, str] = {}
    for flag in command.flags:
        shown = name if flag.by_position else flag.name
        for place in flag.sets:
            node, _, input_ = place.rpartition(".")
            flags[graph.where(node, input_)] = flag.name.upper() if flag.by_position else flag.name
            flags.setdefault(graph.where(node), shown)
    if isinstance(error, GraphError):
        return GraphError(Fault(flags.get(f.where, f.where), f.what, f.fix) for f in error.faults)
    if isinstance(error, NodeRunError) and isinstance(error.__cause__, ValueError):
        return NodeRunError(flags.get(error.faults[0].where, name), str(error.__cause__))
    return error
