"""The commands that packs declare: each runs a graph with its flags as inputs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import entry_points
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sr_pipeline.command import Command, Flag
from sr_pipeline.jsontext import strict_json

if TYPE_CHECKING:
    from sr_pipeline.events import Event, Sink
    from sr_pipeline.graph import Graph
    from sr_pipeline.registry import Registry

COMMANDS = "sr_pipeline.commands"


def add_pack_commands(app: typer.Typer) -> None:
    """Add the commands of all installed packs to the command line."""
    for point in entry_points(group=COMMANDS):
        for command in point.load():
            app.command(command.name, help=command.help)(_callback(command))


def _callback(command: Command) -> Callable[..., None]:
    """A function with a parameter for each flag, which is what typer reads."""

    def callback(**given: Any) -> None:
        values = {
            place: value
            for flag in command.flags
            for value in _values(flag, given[flag.key], given.get("more") or [])
            for place in flag.sets
        }
        pipes = bool(command.pipe) and given[command.pipe] == "-"
        _run(command, values, given["device"], given["run_dir"], given["as_json"], pipes)

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
    command: Command, values: dict[str, Any], device: str, run_dir: Path | None, as_json: bool, pipes: bool
) -> None:
    from sr_pipeline.console import console_for
    from sr_pipeline.errors import UsageError
    from sr_pipeline.folder import RunFolder
    from sr_pipeline.processes import temporary_folder
    from sr_pipeline.registry import load_packs
    from sr_pipeline.run import run
    from sr_pipeline.shipped import find_graph
    from sr_pipeline.signals import stop_on_signals

    if run_dir is not None and RunFolder(run_dir).record.exists():  # here, because these commands have no --resume
        raise UsageError(f"--run-dir {run_dir}", "holds a run already", "give another folder")
    registry = load_packs()
    graph = find_graph(command.graph)
    for place, value in values.items():
        node, _, name = place.rpartition(".")
        graph.nodes[node].inputs[name] = value
    kept = command.keeps_folder or run_dir is not None
    with ExitStack() as stack:
        if not kept:
            run_dir = stack.enter_context(temporary_folder())
        console = console_for(sys.stderr if as_json or pipes else sys.stdout)
        stack.enter_context(console)
        caught = stack.enter_context(stop_on_signals())
        sinks = [with_total(console, _streams(graph, registry))]
        result = run(graph, registry=registry, device=device, run_dir=run_dir, sinks=sinks, stop=lambda: bool(caught))
    if result.interrupted:
        raise typer.Exit(128 + caught[0])
    if as_json:
        typer.echo(strict_json(result.outputs[command.result]), err=pipes)
    else:
        folder = f"\nrun folder: {result.run_dir}" if kept else ""
        typer.echo(f"{result.outputs[command.text]}{folder}", err=pipes)
    if command.failures and result.outputs[command.result][command.failures]:
        raise typer.Exit(1)


def _streams(graph: Graph, registry: Registry) -> frozenset[str]:
    return frozenset(id_ for id_, entry in graph.nodes.items() if registry[entry.class_type].kind == "stream")


def with_total(sink: Sink, streams: frozenset[str]) -> Sink:
    """The sink, told how many steps a finite stream will have as soon as the stream reports it: hence the time left."""
    from sr_pipeline.events import NodeProgress, Progress

    total: list[int] = []

    def told(event: Event) -> None:
        if isinstance(event, NodeProgress) and event.node in streams:
            total[:] = [event.total]
        elif isinstance(event, Progress) and event.total is None and total:
            event = replace(event, total=total[0])
        sink(event)

    return told
