"""The command line. Imports nothing heavy before a command runs, so that ``--help`` is fast."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sr_pipeline import __version__

if TYPE_CHECKING:
    from sr_pipeline.errors import PipelineError
    from sr_pipeline.graph import Graph
    from sr_pipeline.plan import Plan
    from sr_pipeline.registry import Registry

app = typer.Typer(
    help="Train and run image super-resolution as graphs of typed nodes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
)

GraphArgument = Annotated[str, typer.Argument(help="A graph file, or the name of a shipped graph.", show_default=False)]
PackOption = Annotated[
    Optional[list[str]], typer.Option("--pack", metavar="PACK", help="More nodes: a module, or a .py file.")
]
SetOption = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="NODE.INPUT=VALUE", help="Set an input: JSON, a bare string, or a link."),
]
OnlyOption = Annotated[Optional[str], typer.Option(metavar="NODE", help="Run up to this node only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _common(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"sr-pipeline {__version__}")
        raise typer.Exit


@app.command()
def run(
    graph: GraphArgument,
    settings: SetOption = None,
    steps: Annotated[Optional[int], typer.Option(help="The total number of steps, on --resume too.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[Optional[int], typer.Option(help="Of everything random; 0 by default.")] = None,
    run_dir: Annotated[Optional[Path], typer.Option(help="The run's folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state, by the folder's graph.")] = False,
    only: OnlyOption = None,
    checkpoint_every: Annotated[
        Optional[int], typer.Option(min=1, help="Steps between checkpoints; by default one each five minutes.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Scalars for TensorBoard too.")] = False,
    pack: PackOption = None,
) -> None:
    """Run a graph: train, or whatever its nodes do. Ctrl-C finishes the step, saves, and exits with 130."""
    from sr_pipeline.console import console_for
    from sr_pipeline.run import run as run_graph
    from sr_pipeline.signals import stop_on_signals

    registry, loaded, run_dir = _load_run(graph, settings, pack, run_dir, resume)
    with console_for(sys.stdout) as console, stop_on_signals() as caught:
        result = run_graph(
            loaded,
            registry=registry,
            steps=steps,
            device=device,
            seed=seed,
            run_dir=run_dir,
            resume=resume,
            only=only,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            sinks=[console],
            stop=lambda: bool(caught),
        )
    if result.interrupted:
        options = [word for p in pack or () for word in ("--pack", p)] + (["--only", only] if only else [])
        again = ["sr-pipeline", "run", graph, "--run-dir", str(result.run_dir), "--resume", *options]
        saved = any(result.run_dir.glob("checkpoints/*"))
        typer.echo(f"go on with: {shlex.join(again)}" if saved else "there was no state to save")
        raise typer.Exit(128 + caught[0])
    typer.echo(f"run folder: {result.run_dir}")


@app.command()
def validate(
    graphs: Annotated[list[str], typer.Argument(metavar="GRAPH...", help="Graph files or names of shipped graphs.")],
    pack: PackOption = None,
) -> None:
    """Check graphs, and report all faults of all of them."""
    from sr_pipeline.errors import GraphError
    from sr_pipeline.plan import compile_plan
    from sr_pipeline.registry import load_packs
    from sr_pipeline.shipped import find_graph

    registry, faulty = load_packs(pack or ()), False
    for name in graphs:
        try:
            plan = compile_plan(find_graph(name), registry)
        except GraphError as error:
            _print_error(error)
            faulty = True
            continue
        for warning in plan.warnings:
            typer.echo(f"warning: {warning}", err=True)
        typer.echo(f"{name}: {len(plan.wiring.types)} nodes, right")
    if faulty:
        raise typer.Exit(2)


@app.command()
def plan(
    graph: GraphArgument,
    settings: SetOption = None,
    only: OnlyOption = None,
    as_json: JsonOption = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    pack: PackOption = None,
) -> None:
    """Show what a graph compiles to: phases, order, what changes what, gradients."""
    from sr_pipeline import plan as plans

    registry, loaded = _load(graph, settings, pack)
    compiled = plans.compile_plan(loaded, registry, only)
    if mermaid:
        typer.echo(plans.mermaid(compiled), nl=False)
    elif as_json:
        typer.echo(json.dumps(plans.describe(compiled), indent=2))
    else:
        typer.echo(_plan_text(compiled))


@app.command()
def nodes(
    name: Annotated[Optional[str], typer.Argument(help="Show this node in full.", show_default=False)] = None,
    as_json: JsonOption = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole reference.")] = False,
    pack: PackOption = None,
) -> None:
    """List the nodes, or show one."""
    from sr_pipeline import catalogue
    from sr_pipeline.errors import UsageError, nearest
    from sr_pipeline.registry import load_packs

    registry = load_packs(pack or ())
    if name is not None and name not in registry:
        raise UsageError(f"nodes {name}", "there is no such node", nearest(name, registry))
    chosen = {name: registry[name]} if name else registry
    if markdown:
        typer.echo(catalogue.markdown(registry), nl=False)
    elif as_json:
        typer.echo(json.dumps({n: catalogue.describe_node(t) for n, t in chosen.items()}, indent=2))
    elif name:
        typer.echo(_node_text(catalogue.describe_node(registry[name])))
    else:
        width = max(map(len, registry), default=0)
        for t in sorted(registry.values(), key=lambda t: (t.options.category, t.name)):
            typer.echo(f"{t.options.category:<14} {t.name:<{width}}  {t.summary}")


@app.command()
def schema(pack: PackOption = None) -> None:
    """Print the JSON Schema of graph files, for editors."""
    from sr_pipeline.catalogue import json_schema
    from sr_pipeline.registry import load_packs

    typer.echo(json.dumps(json_schema(load_packs(pack or ())), indent=2))


def main() -> None:
    """The command: exit codes are 0 done, 1 failed, 2 bad graph or arguments, 130 interrupted."""
    from sr_pipeline.errors import CheckpointError, NodeRunError, PipelineError
    from sr_pipeline.packcommands import add_pack_commands

    # Threads that wait asleep. Those that spin, OpenMP's default, make a step ten times slower where another program
    # has one of the cores. It is read when torch is imported, which is not yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    add_pack_commands(app)
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except PipelineError as error:
        _print_error(error)
        sys.exit(1 if isinstance(error, (NodeRunError, CheckpointError)) else 2)


def _load(graph: str, settings: list[str] | None, pack: list[str] | None) -> tuple[Registry, Graph]:
    from sr_pipeline.check import with_settings
    from sr_pipeline.registry import load_packs
    from sr_pipeline.shipped import find_graph

    loaded = find_graph(graph)
    registry = load_packs(pack or ())
    return registry, with_settings(loaded, registry, settings or ())


def _load_run(
    graph: str, settings: list[str] | None, pack: list[str] | None, run_dir: Path | None, resume: bool
) -> tuple[Registry, Graph, Path | None]:
    """What to run, and where. A resumed run goes on with the graph of its folder, and any new settings on top."""
    from sr_pipeline.folder import find_folder
    from sr_pipeline.shipped import find_graph

    if resume:
        folder = find_folder(run_dir, find_graph(graph))
        run_dir, graph = folder.path, str(folder.graph)
    return *_load(graph, settings, pack), run_dir


def _print_error(error: PipelineError) -> None:
    typer.secho(str(error), fg="red", err=True)


def _plan_text(compiled: Plan) -> str:
    from sr_pipeline.plan import describe

    data = describe(compiled)
    lines = [f"{data['graph']}: {len(compiled.ops)} of {len(compiled.wiring.types)} nodes run"]
    for phase, when in (("setup", "once before"), ("step", "each step"), ("finish", "once after")):
        if data[phase]:
            lines += ["", f"{phase} ({when})"]
            width = max(len(op["node"]) for op in data[phase])
            lines += [f"  {op['node']:<{width}}  {op['type']}{_notes(op)}" for op in data[phase]]
    lines += ["", *(f"{m['node']} changes {m['value']} ({m['input']})" for m in data["mutations"])]
    lines += [f"state: {', '.join(data['state']) or 'none'}", f"unchanged: {', '.join(data['unchanged']) or 'none'}"]
    lines += [f"warning: {w}" for w in data["warnings"]]
    return "\n".join(lines)


def _notes(op: dict[str, Any]) -> str:
    notes = []
    if op["every"]:
        cadences = sorted({max(g) if g and 0 not in g else 0 for g in op["every"]})
        if cadences != [1]:
            notes.append(" or ".join(f"every {n}" if n else "after the last" for n in cadences))
    if op["grad"]:
        notes.append("gradients")
    if op["training"]:
        notes.append("training mode")
    if op["crosses"]:
        notes.append(f"only crossed: {', '.join(op['crosses'])}")
    if op["retain_graph"]:
        notes.append("retains the autograd graph")
    return f"  [{'; '.join(notes)}]" if notes else ""


def _node_text(node: dict[str, Any]) -> str:
    lines = [f"{node['name']}  ({node['category']}, {node['kind']}, {node['module']})", "", node["doc"], "", "inputs"]
    for name, i in node["inputs"].items():
        default = "needed" if i["required"] else f"default {json.dumps(i['default'])}"
        changes = ", changed in place" if i.get("mutates") else ""
        lines.append(f"  {name}: {i['type']}, {default}{changes}")
    lines += ["outputs", *(f"  {n} {o['name']}: {o['type']}" for n, o in enumerate(node["outputs"]))]
    return "\n".join(lines)
