"""The command line. Imports nothing heavy before a command runs, so that ``--help`` is fast."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sr_pipeline import __version__

if TYPE_CHECKING:
    from sr_pipeline.errors import PipelineError
    from sr_pipeline.plan import Plan

app = typer.Typer(
    help="Train and run image super-resolution as graphs of typed nodes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
)

GraphArgument = Annotated[str, typer.Argument(help="A graph file, or the name of a shipped graph.", show_default=False)]
AllowOption = Annotated[
    Optional[list[Path]],
    typer.Option(
        metavar="DIR",
        help="Let a picture's graph read this folder beside the current one; a graph file then has that limit too.",
    ),
]
ServedOption = Annotated[
    Optional[list[Path]],
    typer.Option("--allow-folder", metavar="DIR", help="Let graphs read this folder beside --folder."),
]
TokenOption = Annotated[Optional[str], typer.Option(help="What each request must bring.", envvar="SR_PIPELINE_TOKEN")]
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
    context: typer.Context,
    graph: Annotated[
        str,
        typer.Argument(help="A graph file, the name of a shipped graph, or a run's folder: again.", show_default=False),
    ],
    settings: SetOption = None,
    steps: Annotated[Optional[int], typer.Option(help="The total number of steps, on --resume too.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or auto: the fastest here.")] = "auto",
    memory_format: Annotated[str, typer.Option(help="contiguous, channels_last or auto.")] = "auto",
    capture: Annotated[
        str, typer.Option(help="Of a step: off, graph (one CUDA graph, replayed), compile (the networks) or auto.")
    ] = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic/--no-deterministic", help="The same bits each time on this machine.")
    ] = False,
    threads: Annotated[Optional[int], typer.Option(help="Of the CPU; by default as many as there are cores.")] = None,
    seed: Annotated[Optional[int], typer.Option(help="Of everything random; 0 by default.")] = None,
    run_dir: Annotated[Optional[Path], typer.Option(help="The run's folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state, by the folder's graph.")] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume though the graph was changed: with what of the state fits.")
    ] = False,
    only: OnlyOption = None,
    checkpoint_every: Annotated[
        Optional[int], typer.Option(min=1, help="Steps between checkpoints; by default one each five minutes.")
    ] = None,
    best: Annotated[
        Optional[str],
        typer.Option(metavar="METRIC[:max|min]", help="Keep the best state too, by a name of metrics.csv."),
    ] = None,
    on_nan: Annotated[
        str, typer.Option(help="After a step that is not finite: stop, skip (leave it out), back (to the last state).")
    ] = "stop",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Scalars for TensorBoard too.")] = False,
    nproc: Annotated[
        Optional[int], typer.Option(min=1, help="Processes of this machine that share the run; torchrun starts them.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="With --nproc: how often a process that is lost is replaced.")
    ] = 0,
    nnodes: Annotated[
        Optional[str], typer.Option(metavar="N|MIN:MAX", help="With --nproc: machines that share the run.")
    ] = None,
    rdzv_endpoint: Annotated[
        Optional[str], typer.Option(metavar="HOST:PORT", help="With --nnodes: where they meet, on one of them.")
    ] = None,
    rdzv_id: Annotated[Optional[str], typer.Option(help="With --nnodes: the job's name, on all of them.")] = None,
    allow_folder: AllowOption = None,
    pack: PackOption = None,
) -> None:
    """Run a graph: train, or whatever its nodes do. Ctrl-C finishes the step, saves, and exits with 130."""
    asked = {"--nnodes": nnodes, "--rdzv-endpoint": rdzv_endpoint, "--rdzv-id": rdzv_id}
    asked["--max-restarts"] = str(max_restarts) if max_restarts else None
    shared = {name: value for name, value in asked.items() if value is not None}
    if shared or nproc is not None:
        raise typer.Exit(_start(nproc, shared))
    from sr_pipeline import launch
    from sr_pipeline.again import Again
    from sr_pipeline.console import console_for
    from sr_pipeline.loading import to_run
    from sr_pipeline.packcommands import collect_garbage
    from sr_pipeline.registry import load_packs
    from sr_pipeline.run import run as run_graph
    from sr_pipeline.signals import stop_on_signals

    again = Again(named=run_dir is not None, resumes=resume)
    registry = load_packs(pack or ())
    collect_garbage()
    order = to_run(graph, registry, settings or (), allow_folder or (), run_dir, resume)
    leads = launch.rank() == 0
    for warning in order.warnings if leads else ():
        typer.echo(f"warning: {warning}; the bits may be others", err=True)
    options: dict[str, Any] = {
        "steps": steps,
        "device": device,
        "precision": precision,
        "memory_format": memory_format,
        "capture": capture,
        "deterministic": deterministic,
        "threads": threads,
        "seed": seed,
        "only": only,
        "checkpoint_every": checkpoint_every,
        "best": best,
        "on_nan": on_nan,
        "tensorboard": tensorboard,
    }
    given = {name for name in options if _is_given(context, name)}
    options |= {name: value for name, value in order.settings.items() if name not in given}
    shown = console_for(sys.stdout) if leads else nullcontext(lambda event: None)
    with stop_on_signals() as caught, shown as console, again:
        result = run_graph(
            order.graph,
            registry=registry,
            run_dir=order.run_dir,
            resume=resume,
            allow_changed=allow_changed,
            **options,
            sinks=[console, again],
            stop=lambda: bool(caught),
        )
    if result.interrupted and leads:
        typer.echo(again.command() or "there was no state to save")
    if result.interrupted:
        raise typer.Exit(128 + (caught[0] if caught else signal.SIGTERM))
    if leads:
        typer.echo(f"run folder: {result.run_dir}")


@app.command()
def validate(
    graphs: Annotated[list[str], typer.Argument(metavar="GRAPH...", help="Graph files or names of shipped graphs.")],
    allow_folder: AllowOption = None,
    pack: PackOption = None,
) -> None:
    """Check graphs, and report all faults of all of them."""
    from sr_pipeline.errors import GraphError, NodeDeclarationError
    from sr_pipeline.loading import load
    from sr_pipeline.plan import compile_plan
    from sr_pipeline.registry import load_packs

    registry, faulty = load_packs(pack or ()), False
    for name in graphs:
        try:
            plan = compile_plan(load(name, registry, folders=allow_folder or ()), registry)
        except (GraphError, NodeDeclarationError) as error:
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
    allow_folder: AllowOption = None,
    pack: PackOption = None,
) -> None:
    """Show what a graph compiles to: phases, order, what changes what, gradients."""
    from sr_pipeline import plan as plans
    from sr_pipeline.loading import load
    from sr_pipeline.registry import load_packs

    registry = load_packs(pack or ())
    loaded = load(graph, registry, settings or (), allow_folder or ())
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
    from sr_pipeline.jsontext import strict_json
    from sr_pipeline.registry import load_packs

    registry = load_packs(pack or ())
    if name is not None and name not in registry:
        raise UsageError(f"nodes {name}", "there is no such node", nearest(name, registry))
    chosen = {name: registry[name]} if name else registry
    if markdown:
        typer.echo(catalogue.markdown(registry), nl=False)
    elif as_json:
        typer.echo(strict_json({n: catalogue.describe_node(t) for n, t in chosen.items()}))
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
    from sr_pipeline.jsontext import strict_json
    from sr_pipeline.registry import load_packs

    typer.echo(strict_json(json_schema(load_packs(pack or ()))))


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="The address; any but loopback asks each request for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is a free one.")] = 8188,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the editor in a browser.")] = False,
    folder: Annotated[Path, typer.Option(help="Works in it: runs/, input/ (uploads), user/ (workflows).")] = Path(),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    token: TokenOption = None,
    allow_host: Annotated[
        Optional[list[str]], typer.Option(metavar="NAME", help="A name by which the server may be called.")
    ] = None,
    allow_folder: ServedOption = None,
    pack: PackOption = None,
) -> None:
    """Serve ComfyUI's graph editor and its protocol: graphs run here, one after another, and are watched there."""
    _serve(
        host,
        port,
        folder=folder,
        device=device,
        packs=pack or (),
        token=token,
        hosts=allow_host or (),
        allowed=allow_folder or (),
        browser=open_browser,
    )


@app.command(name="open")
def open_(
    graph: GraphArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the server is, or is started.")] = 8188,
    folder: Annotated[Path, typer.Option(help="Where a server that is started works.")] = Path(),
    token: TokenOption = None,
    allow_folder: ServedOption = None,
    pack: PackOption = None,
) -> None:
    """Show a graph in the editor: by the server that runs on this machine, or by one that is started."""
    import webbrowser
    from urllib.parse import urlencode

    from sr_pipeline.server.opening import give, keep, workflow_to_open

    name, workflow = workflow_to_open(graph, pack or ())
    address, query = f"http://127.0.0.1:{port}/", f"template={name}"
    if give(address, name, workflow, token):
        url = f"{address}?{query}" + (f"&{urlencode({'token': token})}" if token else "")
        typer.echo(url)
        webbrowser.open(url)
    else:
        keep(folder, name, workflow)
        given = {"folder": folder, "packs": pack or (), "allowed": allow_folder or (), "token": token}
        _serve("127.0.0.1", port, **given, browser=True, query=query)


def _start(processes: int | None, shared: dict[str, str]) -> int:
    """Run this command line in several processes, which torchrun starts; its exit code."""
    from sr_pipeline import launch
    from sr_pipeline.errors import UsageError

    given = [f"{name} {value}" for name, value in shared.items()]
    if processes is None:
        raise UsageError(given[0], "how many processes each machine has is not said", "give --nproc")
    if "--nnodes" in shared and "--rdzv-endpoint" not in shared:
        raise UsageError(given[0], "the machines have to meet", "give --rdzv-endpoint HOST:PORT on each")
    if "--nnodes" not in shared and shared.keys() - {"--max-restarts"}:
        raise UsageError(given[0], "how many machines meet is not said", "give --nnodes on each")
    own, theirs, words = iter(sys.argv[1:]), [], []
    for word in own:
        name, equals, value = word.partition("=")
        if name in launch.OPTIONS:
            theirs += [name, value if equals else next(own)]
        else:
            words.append(word)
    return launch.start(processes, theirs, words)


def _serve(host: str, port: int, **options: Any) -> None:
    from sr_pipeline.errors import UsageError
    from sr_pipeline.packcommands import collect_garbage

    try:
        from sr_pipeline.server.serve import serve as serve_graphs
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sr_pipeline"):
            raise
        what = f"the package {error.name} is missing"
        raise UsageError("serve", what, "pip install 'sr-pipeline[server,ui]'") from None
    collect_garbage()
    serve_graphs(host, port, **options, say=typer.echo)


def _end(number: int, _: object) -> None:
    """Ctrl-C while nothing is to be saved: before a run and after it. An exception would be lost in whatever is being
    imported, and told by a traceback."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def main() -> None:
    """The command: exit codes are 0 done, 1 failed, 2 bad graph or arguments, 130 interrupted."""
    gc.disable()
    signal.signal(signal.SIGINT, _end)
    from sr_pipeline.errors import NodeRunError, PipelineError, RunFolderError
    from sr_pipeline.packcommands import add_pack_commands

    # Threads that wait asleep. Those that spin, OpenMP's default, make a step ten times slower where another program
    # has one of the cores. It is read when torch is imported, which is not yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "RANK" in os.environ:  # then DDP warns in C++ that it looks for unused parameters, which there may be
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    add_pack_commands(app)
    try:
        app()
    except SystemExit as end:
        if "RANK" not in os.environ or not isinstance(end.code, (int, type(None))):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)  # all is written; torch's threads that still listen would abort an ordinary end
    except PipelineError as error:
        if os.environ.get("RANK", "0") != "0" and not isinstance(error, NodeRunError):
            time.sleep(3)  # the first of the processes says the same, and then all are ended
        _print_error(error)
        sys.exit(1 if isinstance(error, (NodeRunError, RunFolderError)) else 2)


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _print_error(error: PipelineError) -> None:
    notes: list[str] = getattr(error, "__notes__", [])
    typer.secho("\n".join([str(error), *notes]), fg="red", err=True)


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
        cadences = sorted({0 if 0 in g else lcm(*g) for g in op["every"]})
        if cadences != [1]:
            notes.append(" or ".join(f"every {n}" if n else "after the last" for n in cadences))
    if op["grad"]:
        notes.append("gradients")
    if op["training"]:
        notes.append("training mode")
    if op["crosses"]:
        notes.append(f"only crossed: {', '.join(op['crosses'])}")
    if op["detached"]:
        notes.append(f"no gradient to: {', '.join(op['detached'])}")
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
