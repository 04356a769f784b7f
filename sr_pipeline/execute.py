"""Execute a plan's nodes: bind their inputs, call them in the right gradient scope, keep and drop values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sr_pipeline.digraph import reached
from sr_pipeline.errors import NodeRunError, PipelineError
from sr_pipeline.events import Channel, NodeReporter, NodeStarted, Warned
from sr_pipeline.node import NodeType
from sr_pipeline.plan import Op, Plan
from sr_pipeline.plan.cadence import ALWAYS, Demand, fires
from sr_pipeline.precision import Mode, as_float32
from sr_pipeline.sockets import SeedSource
from sr_pipeline.world import ALONE, World


@dataclass(frozen=True)
class Context:
    """What a run gives to the nodes that ask for it."""

    run_dir: Path
    seed: int
    device: torch.device
    channel: Channel
    mode: Mode = field(default_factory=Mode)
    world: World = ALONE


@dataclass(slots=True)
class Bound:
    """An op with everything that is the same at each call."""

    op: Op
    function: Callable[..., Any]
    constants: dict[str, Any]
    seed: SeedSource
    step: str | None = None
    rng: str | None = None

    def arguments(self, values: list[Any], step: int) -> dict[str, Any]:
        found = dict(self.constants)
        for name, slot in self.op.links:
            found[name] = values[slot]
        if self.step:
            found[self.step] = step
        if self.rng:
            found[self.rng] = self.seed.rng(step)
        return found


Around = Callable[[Op, dict[str, Any], Callable[[dict[str, Any]], Any]], Any]
"""Called in a node's place with its op, its arguments, and what runs it."""


@dataclass
class Executor:
    """The values of one run, and the calls that make them."""

    plan: Plan
    context: Context
    cache: Any = None
    values: list[Any] = field(default_factory=list)
    reducers: dict[str, Any] = field(default_factory=dict)
    around: dict[str, Around] = field(default_factory=dict)
    """By node: what is called in its place."""
    instead: Callable[[int, bool], None] | None = None
    """Called in place of all nodes of a step, with its number and whether it is the last."""
    begun: list[Bound] = field(default_factory=list, init=False)
    """What was called in this step so far."""

    def __post_init__(self) -> None:
        self.values = [None] * len(self.plan.slots)
        self._mixed = self.context.mode.precision == "bf16"
        leads = self.context.world.leads
        self._elsewhere: frozenset[str] = frozenset() if leads else writing(self.plan)
        self._drawn_apart = frozenset() if leads else {op.node for op in self.plan.steps}
        self.steps = [self.bind(op) for op in self.plan.steps if op.type.kind != "stream"]
        self._stream = next((self.bind(op) for op in self.plan.steps if op.type.kind == "stream"), None)
        self._set_up = False
        self._unproved = {op.node for op in self.plan.steps if op.grad and not op.type.backward}
        """Nodes of which it is not known yet that what they make has a gradient."""

    def setup(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Run the nodes that run once before the steps, and free what no step trains of gradients.

        False where ``stop()`` was true before all had run.
        """
        keys = self.cache.keys_of(self.plan) if self.cache is not None else {}
        for op in self.plan.setup:
            if stop():
                return False
            self._announce(op, "setup")
            if op.type.kind == "reducer":
                self.reducers[op.node] = op.type.function()
                self._call(self.bind(op), 0)
                self._store(op, self._reduced(op, 0))
            else:
                self._store(op, self._cached(op, keys.get(op.node)))
            self._drop(op)
        torch.set_grad_enabled(False)
        self.context.mode.lay_out(self.values)
        self._free_of_gradients()
        self.reducers |= {name: self.plan.wiring.types[name].function() for name in self.plan.reducers}
        self._set_up = True
        return True

    def _free_of_gradients(self) -> None:
        """The weights of models that no step trains, unless one that is trained has them too."""
        models = {name: self.values[slot] for name, slot in {**self.plan.state, **self.plan.unchanged}.items()}
        others = [m for name, m in models.items() if name not in self.plan.untrained and isinstance(m, nn.Module)]
        trained = {id(p) for model in others for p in model.parameters()}
        for p in (p for name in self.plan.untrained for p in models[name].parameters() if id(p) not in trained):
            p.requires_grad_(False)

    def _cached(self, op: Op, key: str | None) -> Any:
        if self.cache is None or key is None:
            return self._call(self.bind(op), 0)
        if key not in self.cache:
            self.cache[key] = self._call(self.bind(op), 0)
        return self.cache[key]

    def stream(self, start: int) -> Generator[Any, None, None]:
        """The items from position ``start`` on; an error in it names its node.

        A stream that takes no ``Start`` begins anew: its first items are passed over.
        """
        bound = self._stream
        if bound is None:
            return
        extra = {name: start for name, what in bound.op.type.injected.items() if what == "start"}
        position = start if extra else 0
        try:
            for item in bound.function(**bound.arguments(self.values, start), **extra):
                position += 1
                if position > start:
                    yield item
        except PipelineError:
            raise
        except Exception as error:
            raise self._failure(bound, position) from error

    def step(self, item: Any, step: int, last: bool, only: Collection[str] | None = None) -> None:
        """Run one step on an item of the stream: all nodes that are due, or those of ``only`` among them."""
        assert self._stream is not None
        self.begun.clear()
        self._store(self._stream.op, item)
        with self.context.mode.rounded_once(self.context.device):
            if self.instead is not None and only is None:
                self.instead(step, last)
            else:
                self.run_due(self.steps, step, last, only)
        self.begun.clear()
        torch.set_grad_enabled(False)

    def run_due(self, nodes: Iterable[Bound], step: int, last: bool, only: Collection[str] | None = None) -> None:
        """Of some nodes run those that are due."""
        fired: dict[Demand, bool] = {ALWAYS: True}
        for bound in nodes:
            self.begun.append(bound)
            demand = bound.op.demand
            if demand not in fired:
                fired[demand] = fires(demand, step, last)
            if fired[demand] and (only is None or bound.op.node in only):
                self._store(bound.op, self._call(bound, step))
            self._drop(bound.op)

    def is_sound(self) -> bool:
        """Whether the state is that of a step's end, also after an error: nothing reached can have changed it."""
        return self._set_up and not any(self._changes(bound.op) for bound in self.begun)

    def _changes(self, op: Op) -> bool:
        modules = [value for _, slot in op.links if isinstance(value := self.values[slot], nn.Module)]
        buffers = op.training and any(next(module.buffers(), None) is not None for module in modules)
        return buffers or bool(op.type.mutations) or op.type.kind == "reducer"

    def finish(self, step: int) -> None:
        """Close the reducers, and run what depends on them."""
        for op in self.plan.steps:
            if op.type.kind == "reducer":
                self._store(op, self._reduced(op, step))
        for op in self.plan.finish:
            self._announce(op, "finish")
            self._store(op, self._call(self.bind(op), step))
            self._drop(op)
        torch.set_grad_enabled(False)

    def state(self) -> dict[str, Any]:
        """The objects that the steps change, by name."""
        return {name: self.values[slot] for name, slot in self.plan.state.items()} | self.reducers

    def unchanged(self) -> dict[str, nn.Module]:
        return {name: self.values[slot] for name, slot in self.plan.unchanged.items()}

    def outputs(self) -> dict[str, Any]:
        """What the targets returned last: the one output, or a tuple of them."""
        found = {}
        for op in self.plan.ops:
            if op.node in self.plan.targets and op.outputs:
                values = tuple(self.values[slot] for slot in op.outputs)
                found[op.node] = values if op.type.returns_tuple else values[0]
        return found

    def release(self) -> None:
        """Let go of all values: whoever knows the executor keeps no model in memory."""
        self.values = [None] * len(self.values)
        self.reducers, self.around, self.instead = {}, {}, None
        self.begun.clear()

    def bind(self, op: Op) -> Bound:
        shared = op.type.kind == "stream" or op.node not in self._drawn_apart
        seed = SeedSource(self.context.seed, op.node if shared else f"{op.node}@{self.context.world.rank}")
        given = {
            "run_dir": self.context.run_dir,
            "device": self.context.device,
            "seed": seed,
            "training": op.training,
            "retain_graph": op.retain_graph,
            "report": NodeReporter(self.context.channel, op.node),
            "world": self.context.world,
        }
        injected = {name: given[what] for name, what in op.type.injected.items() if what in given}
        ask = {what: name for name, what in op.type.injected.items()}
        function = self._reduce(op) if op.type.kind == "reducer" else op.type.function
        if op.node in self._elsewhere:
            function = partial(_nothing, len(op.outputs) if op.type.returns_tuple else 0)
        return Bound(op, function, op.literals | injected, seed, ask.get("step"), ask.get("rng"))

    def _reduce(self, op: Op) -> Callable[..., Any]:
        return lambda **arguments: self.reducers[op.node](**arguments)

    def _reduced(self, op: Op, step: int) -> Any:
        closing = replace(op, links=(), drop=(), grad=False)
        return self._call(Bound(closing, self.reducers[op.node].result, {}, SeedSource()), step)

    def _call(self, bound: Bound, step: int) -> Any:
        arguments = bound.arguments(self.values, step)
        for name in bound.op.detached:
            if isinstance(arguments[name], Tensor):
                arguments[name] = arguments[name].detach()
        if torch.is_grad_enabled() != bound.op.grad:
            torch.set_grad_enabled(bound.op.grad)
        try:
            if bound.op.frozen:
                with _without_gradients(arguments[name] for name in bound.op.frozen):
                    return self._run(bound, arguments)
            return self._run(bound, arguments)
        except PipelineError:
            raise
        except Exception as error:
            raise self._failure(bound, step, arguments) from error

    def _run(self, bound: Bound, arguments: dict[str, Any]) -> Any:
        around = self.around.get(bound.op.node)
        made = around(bound.op, arguments, partial(self._compute, bound)) if around else self._compute(bound, arguments)
        if self._unproved and bound.op.node in self._unproved:
            self._prove(bound.op, made)
        return made

    def _prove(self, op: Op, made: Any) -> None:
        """Warn, once, of a node on the way of a gradient that lets none pass: nothing before it would learn."""
        self._unproved.discard(op.node)
        leaves = tree_leaves(made)
        numbers = all(isinstance(leaf, (Tensor, float, int)) for leaf in leaves)
        if not numbers or any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            return
        what = f"gives {brief(made)}, which has no gradient, on the way from a model to its loss: it teaches nothing"
        fix = "compute it by torch from what it is given, without item(), detach() or no_grad()"
        self.context.channel.emit(Warned(self.plan.wiring.where(op.node), f"{what}; {fix}"))

    def _compute(self, bound: Bound, arguments: dict[str, Any]) -> Any:
        if not self._mixed:
            return bound.function(**arguments)
        if bound.op.grad and not bound.op.type.backward:
            with self.context.mode.autocast(self.context.device):
                result = as_float32(bound.function(**arguments))
        else:
            result = bound.function(**arguments)
        if bound.op.type.mutations:
            torch.clear_autocast_cache()
        return result

    def _failure(self, bound: Bound, step: int, arguments: dict[str, Any] | None = None) -> NodeRunError:
        error = sys.exc_info()[1]
        inputs = bound.arguments(self.values, step) if arguments is None else arguments
        shown = ", ".join(f"{n}={brief(v)}" for n, v in inputs.items() if n not in bound.op.type.injected)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        where = self.plan.wiring.where(bound.op.node)
        at = f" at step {step + 1}" if any(one is bound for one in (self._stream, *self.begun)) else ""
        what = f"{bound.op.type.name} failed{at}: {kind}{error}"
        mend = "make the batch, the crops or the tiles smaller; " if _out_of_memory(error) else ""
        return NodeRunError(where, what, mend + (shown and f"its inputs: {shown}"))

    def _store(self, op: Op, result: Any) -> None:
        if op.type.kind == "reducer" and result is None:
            return
        if op.type.returns_tuple:
            for slot, value in zip(op.outputs, result, strict=True):
                self.values[slot] = value
        elif op.outputs:
            self.values[op.outputs[0]] = result

    def _drop(self, op: Op) -> None:
        for slot in op.drop:
            self.values[slot] = None

    def _announce(self, op: Op, phase: str) -> None:
        self.context.channel.emit(NodeStarted(op.node, phase))


def writing(plan: Plan) -> frozenset[str]:
    """The nodes that write files, and what needs them: of the processes that share a run only the first runs them."""
    writers = {op.node for op in plan.ops if _writes(plan.wiring.types[op.node])}
    return frozenset(reached(plan.wiring.successors, writers))


def _writes(made: NodeType) -> bool:
    return "run_dir" in made.injected.values() or any(i.type.path in ("name", "write") for i in made.inputs.values())


def _nothing(outputs: int, **_: Any) -> tuple[None, ...] | None:
    return (None,) * outputs if outputs else None


def _out_of_memory(error: BaseException | None) -> bool:
    """The host's memory says it in words alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def _without_gradients(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Parameters do not require gradients inside: a forward pass then saves nothing for them."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):  # whose text would read numbers from a device
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}(...)"
