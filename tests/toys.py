"""Toy nodes: the smallest of each kind that the engine treats in its own way, and what tests do with them."""

from __future__ import annotations

import ast
import copy
import json
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn

from sr_pipeline.events import Event, Scalar
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.plan import Plan, compile_plan
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.runner import Result
from sr_pipeline.sockets import (
    SILENT,
    Backward,
    Every,
    Loss,
    Model,
    Mutates,
    Optimizer,
    Report,
    RetainGraph,
    Rng,
    RunDir,
    Seed,
    SeedSource,
    Socket,
    Start,
    Step,
    Training,
)

Batch = Annotated[Tensor, Socket("Batch")]
HERE, UNSEEDED, WIDTH = Path(), SeedSource(), 3


@node
def batches(
    steps: Annotated[int, Field(ge=1)] = 6, size: int = 4, start: Start = 0, seed: Seed = UNSEEDED
) -> Iterator[Batch]:
    """A stream that says how long it is."""
    for position in range(start, steps):
        yield torch.randn(size, WIDTH, generator=seed.rng(position))


@node
def count(number: int = 5, fail_at: int = -1, start: Start = 0) -> Iterator[Batch]:
    """A stream that ends without having said when: position + 1, again and again; fails after ``fail_at`` items."""
    for position in range(start, number):
        if position == fail_at:
            raise OSError("the disk is gone")
        yield torch.full((1, WIDTH), position + 1.0)


@node
def forgetful() -> Iterator[Batch]:
    """An endless stream that cannot start elsewhere."""
    position = 0
    while True:
        position += 1
        yield torch.full((1, WIDTH), float(position))


def drawn(rng: torch.Generator, batch_norm: bool = True, width: int = WIDTH) -> nn.Module:
    """A network with weights from ``rng``."""
    layers = [nn.Linear(WIDTH, width), *([nn.BatchNorm1d(width)] if batch_norm else []), nn.Linear(width, WIDTH)]
    with torch.no_grad():
        network = nn.Sequential(*layers)
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) / 3)
    return network


def undisturbed(rng: torch.Generator, **options: Any) -> nn.Module:
    """As ``drawn``, and torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return drawn(rng, **options)


@node
def network(
    batch_norm: bool = True, width: int = WIDTH, weights: str = "", rng: Rng | None = None, report: Report = SILENT
) -> Model:
    """A small network; reports that it was made."""
    report.scalar("made", 1)
    return undisturbed(rng or UNSEEDED.rng(0), batch_norm=batch_norm, width=width)


@node
def load(model: Mutates[Model], value: float = 0.5) -> Model:
    """Changes a model in setup, as one that loads weights does."""
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
    return model


@node
def duplicate(model: Model) -> Model:
    return copy.deepcopy(model).requires_grad_(False)


@node
def average(model: Model, copied: Mutates[Model], every: Every = 1) -> Model:
    """Moves a copy halfway to the model."""
    ours, theirs = copied.state_dict(), model.state_dict()
    for name, tensor in ours.items():
        tensor.copy_((tensor + theirs[name]) / 2)
    return copied


@node
def adam(model: Model, rate: float = 0.1) -> Optimizer:
    return torch.optim.Adam(model.parameters(), rate)


@node
def sgd(model: Model, rate: float = 0.1, momentum: float = 0.5) -> Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=momentum)


@node
def halving(first: float = 0.1, step: Step = 0) -> float:
    """A value of each step that reads no item."""
    return first * 0.5**step


@node
def forward(model: Model, x: Batch, training: Training = False, report: Report = SILENT) -> Batch:
    """Runs the model in the mode that the plan gives; reports mode, gradients, and whether its weights want one."""
    report.scalar("training", training)
    report.scalar("grad", torch.is_grad_enabled())
    report.scalar("wanted", all(p.requires_grad for p in model.parameters()))
    model.train(training)
    try:
        result: Tensor = model(x)
    finally:
        model.eval()
    return result


@node
def features(model: Model, x: Batch) -> Batch:
    """Runs a model as it is, like one that nothing trains."""
    result: Tensor = model.eval()(x)
    return result


@node
def number() -> int:
    return 2


@node
def judge(model: Model, x: Batch, hint: Batch, training: Training = False) -> Batch:
    """Reads two values beside its model."""
    return forward(model, x + hint, training)


@node
def noisy(x: Batch, rng: Rng | None = None) -> Batch:
    return x + torch.randn(x.shape, generator=rng)


@node
def double(x: Batch) -> Batch:
    return 2 * x


@node
def widened(x: Batch) -> Batch:
    return torch.cat([x, x], 1)


@node
def either(x: Batch, y: Batch) -> Batch:
    return x + y


@node(differentiable=False)
def rounded(x: Batch) -> Batch:
    return x.round()


@node
def size(x: Batch) -> Loss:
    """The mean square."""
    return x.square().mean()


@node(differentiable=False)
def hard_size(x: Batch) -> Loss:
    return x.detach().square().mean()


@node
def distance(a: Batch, b: Batch) -> Loss:
    return (a - b).square().mean()


@node
def total(a: Loss, b: Loss) -> Loss:
    return a + b


class Stepped(NamedTuple):
    model: Model
    optimizer: Optimizer


@node
def optimizer_step(
    loss: Backward[Loss],
    model: Mutates[Model],
    optimizer: Mutates[Optimizer],
    rate: float | None = None,
    every: Every = 1,
    retain_graph: RetainGraph = False,
) -> Stepped:
    """As the pack's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    torch.autograd.backward(loss, inputs=parameters, retain_graph=retain_graph)
    if rate is not None:
        optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return Stepped(model, optimizer)


@node(output=True)
def log(value: Loss | float, every: Every = 1, report: Report = SILENT) -> None:
    report.scalar("", value)


@node(output=True)
def write(x: Batch, every: Every = 1, run_dir: RunDir = HERE, step: Step = 0) -> None:
    """A file that names the step it was written at."""
    (run_dir / f"write-{step + 1}.txt").write_text(str(x.detach().double().sum().item()))


@node(output=True)
def export(model: Model, name: str = "export", every: Every = 0, run_dir: RunDir = HERE) -> None:
    """The weights, where the run may look at them."""
    torch.save(model.state_dict(), run_dir / f"{name}.pt")


@node(output=True)
def show(model: Model) -> None:
    """An output of a model that may be set up, trained or finished."""


@node(output=True)
def fail(x: Batch, at: int, kind: str = "ValueError", scale: float = 1.5, step: Step = 0) -> None:
    kinds: dict[str, type[BaseException]] = {
        "ValueError": ValueError,
        "KeyError": KeyError,
        "KeyboardInterrupt": KeyboardInterrupt,
    }
    if step == at:
        torch.set_grad_enabled(True)
        raise kinds[kind]("too blue")


@node
class MeanOf:
    """The mean of one loss a step."""

    def __init__(self) -> None:
        self.sum, self.number = 0.0, 0

    def __call__(self, value: Loss) -> None:
        self.sum, self.number = self.sum + value.item(), self.number + 1

    def result(self) -> float:
        return self.sum / self.number

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.number = state["sum"], state["number"]


@node(output=True)
def flawed(mean: float) -> None:
    """Fails after the last step."""
    raise ArithmeticError("no")


@node(output=True)
def both(mean: float, x: Batch) -> None:
    """An impossible one where x is of each step and the mean of all."""


NODES = [value for value in list(globals().values()) if "__node__" in getattr(value, "__dict__", {})]
REGISTRY = Registry(NODES)


def graph(text: str, types: Registry = REGISTRY) -> Graph:
    """A graph as its wires read: ``y = forward(net, x)`` a line. Names are links, ``step.optimizer`` a named output."""
    made = Graph()
    for line in ast.parse(textwrap.dedent(text)).body:
        assert isinstance(line, ast.Assign), ast.unparse(line)
        assert isinstance(line.value, ast.Call), ast.unparse(line)
        kind = types[ast.unparse(line.value.func)]
        given = [*zip(kind.inputs, line.value.args, strict=False), *((k.arg, k.value) for k in line.value.keywords)]
        made.add(kind.name, id=ast.unparse(line.targets[0]), **{str(name): _wire(value) for name, value in given})
    return made


def _wire(value: ast.expr) -> Any:
    if isinstance(value, ast.Name):
        return Link(value.id, 0)
    if isinstance(value, ast.Attribute):
        return Link(ast.unparse(value.value), value.attr)
    return ast.literal_eval(value)


REGRESSION = """
    net = network()
    opt = adam(net)
    x = batches(steps=6)
    y = forward(net, x)
    loss = distance(y, x)
    step = optimizer_step(loss, net, opt)
    log = log(loss)
    mean = mean_of(loss)
    report = log(mean)
    export = export(step)
"""
"""A network that learns to give what it is given; its last state is exported, the mean of the losses logged."""


def plan_of(text: str, only: str | Collection[str] | None = None) -> Plan:
    return compile_plan(graph(text), REGISTRY, only)


def run_of(text: str, run_dir: Path, **options: Any) -> Result:
    return run(graph(text), registry=REGISTRY, device="cpu", run_dir=run_dir, **options)


@contextmanager
def files_no_larger() -> Iterator[Callable[[int], None]]:
    """A function that gives each file of this process a largest size in bytes, as a disk that is nearly full."""
    import resource  # which Windows has not

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Heard(list[Event]):
    """A sink that keeps the events."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def scalars(self, name: str) -> dict[int, float]:
        """Step to value."""
        return {e.step: e.value for e in self if isinstance(e, Scalar) and e.name == name}


def stop_after(steps: int) -> Any:
    """A ``stop`` that is true once so many steps are done."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= steps


def state_of(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the newest checkpoint holds: its JSON, and the bytes of its tensors."""
    newest = max((folder / "checkpoints").iterdir())
    with safe_open(newest, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118 (no mapping)
        return json.loads(file.metadata()["content"]), tensors


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
