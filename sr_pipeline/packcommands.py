"""The commands that packs declare: each runs a graph with its flags as inputs."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from sr_pipeline.command import Command, Flag

COMMANDS = "sr_pipeline.commands"


def add_pack_commands(app: typer.Typer) -> None:
    """Add the commands of all installed packs to the command line."""
    for point in entry_points(group=COMMANDS):
        for command in point.load():
            app.command(command.name, help=command.help)(_callback(command))


def _callback(command: Command) -> Callable[..., None]:
    """A function with a parameter for each flag, which is what typer reads."""

    def callback(**given: Any) -> None:
        more = given.get("more") or []
        values = {place: _value(given[_key(flag)], flag, more) for flag in command.flags for place in flag.sets}
        _run(command, values, given["device"], given["run_dir"], given["as_json"])

    parameters = list(_parameters(command))
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in parameters}
    return callback


def _parameters(command: Command) -> Iterator[Parameter]:
    for flag in command.flags:
        kind: Any = list[str] if flag.multiple else str
        option = typer.Option(flag.name, help=flag.help, metavar="TEXT..." if flag.multiple else None)
        default: Any = Parameter.empty if flag.required else None
        kind = kind if flag.required else Optional[kind]
        yield Parameter(_key(flag), Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
    if any(flag.multiple for flag in command.flags):  # of `--flag A B` the parser gives B to this
        rest = Annotated[Optional[list[str]], typer.Argument(hidden=True)]
        yield Parameter("more", Parameter.KEYWORD_ONLY, default=None, annotation=rest)
    common: tuple[tuple[str, Any, Any], ...] = (
        ("device", "auto", Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]),
        ("run_dir", None, Annotated[Optional[Path], typer.Option(help="The run's folder.")]),
        ("as_json", False, Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]),
    )
    for name, default, annotation in common:
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _key(flag: Flag) -> str:
    return flag.name.lstrip("-").replace("-", "_")


def _value(given: Any, flag: Flag, more: list[str]) -> Any:
    return [*given, *more] if flag.multiple and given else given


def _run(command: Command, values: dict[str, Any], device: str, run_dir: Path | None, as_json: bool) -> None:
    from sr_pipeline.console import console_for
    from sr_pipeline.registry import load_packs
    from sr_pipeline.run import run
    from sr_pipeline.shipped import find_graph
    from sr_pipeline.signals import stop_on_signals

    registry = load_packs()
    graph = find_graph(command.graph)
    for place, value in values.items():
        if value:
            node, _, name = place.rpartition(".")
            graph.nodes[node].inputs[name] = value
    with console_for(sys.stderr if as_json else sys.stdout) as console, stop_on_signals() as caught:
        result = run(
            graph, registry=registry, device=device, run_dir=run_dir, sinks=[console], stop=lambda: bool(caught)
        )
    if result.interrupted:
        raise typer.Exit(128 + caught[0])
    if as_json:
        typer.echo(json.dumps(result.outputs[command.result], indent=2))
    else:
        typer.echo(f"{result.outputs[command.text]}\nrun folder: {result.run_dir}")
