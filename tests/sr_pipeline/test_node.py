"""What the engine reads from a marked function, and what it refuses to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from sr_pipeline.errors import NodeDeclarationError
from sr_pipeline.node import class_type, node, node_type
from sr_pipeline.sockets import Backward, Every, Injected, Loss, Model, Mutates, Optimizer, Rng, Step

M = TypeVar("M", bound=nn.Module)


class Halves(NamedTuple, Generic[M]):
    model: M
    loss: Loss


@node(category="toys")
def scale_by(x: Tensor, factor: Annotated[float, Field(gt=0, description="How much.")] = 2.0, step: Step = 0) -> Tensor:
    """Multiply.

    More of it.

    Args:
        x: what to
            multiply.
        factor: not this text.

    Raises:
        nothing: ever.
    """
    return x * factor + step


@node
def halve(model: Mutates[M], loss: Backward[Loss], every: Every = 3) -> Halves[M]:
    return Halves(model, loss)


@node
def count(up_to: int) -> Iterator[int]:
    yield from range(up_to)


@node(category="toys")
class MeanOfAll:
    """The mean."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, value: float, weight: float = 1.0) -> None:
        self.values.append(value * weight)

    def result(self) -> float:
        return sum(self.values) / len(self.values)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


def test_the_mark_returns_the_function_itself() -> None:
    def twice(x: float) -> float:
        return 2 * x

    assert node(twice) is twice
    assert node(category="toys")(twice) is twice
    assert twice(2.0) == 4.0
    assert torch.equal(scale_by(torch.ones(2), 3.0), torch.full((2,), 3.0))
    mean = MeanOfAll()
    mean(1.0)
    mean(3.0)
    assert mean.result() == 2.0


def test_inputs_have_types_defaults_and_help() -> None:
    made = node_type(scale_by)
    x, factor = made.inputs.values()
    assert (x.name, str(x.type), x.required, x.help) == ("x", "Tensor", True, "what to multiply.")
    assert (factor.name, factor.required, factor.default, factor.help) == ("factor", False, 2.0, "How much.")
    assert made.injected == {"step": "step"}
    assert [(o.name, str(o.type)) for o in made.outputs] == [("tensor", "Tensor")]
    assert (made.name, made.kind, made.options.category) == ("scale_by", "function", "toys")
    assert made.summary == "Multiply."
    assert made.doc.startswith("Multiply.\n\nMore of it.\n\nArgs:\n    x: what to\n")
    assert made.where.endswith("test_node.scale_by")


def test_changes_backward_and_cadence_are_read() -> None:
    made = node_type(halve)
    assert made.mutations == {"model": 0}
    assert made.backward is made.inputs["loss"]
    assert made.cadence is made.inputs["every"]
    assert [i.mutates for i in made.inputs.values()] == [True, False, False]
    assert [o.name for o in made.outputs] == ["model", "loss"]
    assert (made.returns_tuple, node_type(scale_by).returns_tuple) == (True, False)
    assert (node_type(scale_by).backward, node_type(scale_by).cadence) == (None, None)


def test_the_only_output_is_the_only_changed_input_whatever_its_name() -> None:
    @node
    def freeze(network: Mutates[Model]) -> Model:
        return network

    assert node_type(freeze).mutations == {"network": 0}


def test_an_iterator_is_a_stream_of_its_items() -> None:
    made = node_type(count)
    assert (made.kind, str(made.outputs[0].type)) == ("stream", "int")


def test_a_class_is_a_reducer_that_takes_what_it_is_called_with() -> None:
    made = node_type(MeanOfAll)
    assert (made.name, made.kind) == ("mean_of_all", "reducer")
    assert list(made.inputs) == ["value", "weight"]
    assert [str(o.type) for o in made.outputs] == ["float"]


def test_what_returns_nothing_or_says_so_is_an_output() -> None:
    @node
    def show(x: float) -> None: ...

    @node(output=True)
    def measure(x: float) -> float:
        return x

    assert node_type(show).is_output
    assert node_type(show).outputs == ()
    assert node_type(measure).is_output
    assert not node_type(scale_by).is_output


def test_a_documented_input_ends_where_the_next_begins() -> None:
    def documented(a: int, b: int, c: int) -> int:
        """Add.

        Args:
            a: one: of
                two lines.
            c: last.

        After all.
        """
        return a + b + c

    assert [i.help for i in node_type(documented).inputs.values()] == ["one: of two lines.", "", "last."]


@pytest.mark.parametrize(("name", "kind"), [("PSNRMean", "psnrmean"), ("Mean", "mean"), ("Top5Of", "top5_of")])
def test_a_class_is_named_in_snake_case(name: str, kind: str) -> None:
    assert class_type(type(name, (), {})) == kind


def no_annotation(x) -> int:  # type: ignore[no-untyped-def]
    return int(x)


def no_return(x: int):  # type: ignore[no-untyped-def]
    return x


def many(*images: Tensor) -> Tensor:
    return images[0]


def any_name(**images: Tensor) -> Tensor:
    return images["x"]


def by_place(x: int, /) -> int:
    return x


def unreadable(x: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
    return int(x)


def changes_unseen(model: Mutates[Model], optimizer: Mutates[Optimizer]) -> Model:
    return model


def returns_another(model: Mutates[Model], loss: Loss) -> Loss:
    return loss


def nothing_to_learn(loss: Backward[Loss]) -> Loss:
    return loss


def learns_into_an_optimizer(loss: Backward[Loss], optimizer: Mutates[Optimizer]) -> Optimizer:
    return optimizer


def asks_for_the_moon(moon: Annotated[int, Injected("moon")] = 0) -> int:
    return moon


def generator_of_no_stream(n: int) -> Iterable[int]:
    yield n


class NoReducer:
    def __call__(self, x: float) -> None: ...

    def result(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (no_annotation, "the parameter 'x' has no annotation; annotate it"),
        (no_return, "no return annotation; annotate what it returns, or -> None"),
        (many, "the parameter 'images' has no fixed name; give each input a name of its own"),
        (any_name, "the parameter 'images' has no fixed name; give each input a name of its own"),
        (by_place, "the parameter 'x' has no fixed name; give each input a name of its own"),
        (unreadable, "an annotation cannot be read: name 'Missing' is not defined; import the name"),
        (changes_unseen, "it changes 'optimizer' but has no output of that name; return 'optimizer' by name"),
        (
            returns_another,
            "it changes 'model' but its output 'loss' is of type Loss; return the changed Model",
        ),
        (nothing_to_learn, "a Backward input needs the model whose parameters it is for; add a Mutates[Model] input"),
        (
            learns_into_an_optimizer,
            "a Backward input needs the model whose parameters it is for; add a Mutates[Model] input",
        ),
        (asks_for_the_moon, "'moon' asks for 'moon'; see sockets.INJECTABLE"),
        (generator_of_no_stream, "a generator that is no stream; annotate it -> Iterator[...]"),
        (NoReducer, "a class that is a node is a reducer, and this one has no state_dict; define state_dict"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_a_node_is_refused(target: Callable[..., Any], words: str) -> None:
    where = f"{target.__module__}.{target.__qualname__}"
    with pytest.raises(NodeDeclarationError, match=f"^{re.escape(f'{where}: {words}')}$"):
        node_type(target)


def test_a_random_generator_may_be_left_out_in_plain_python() -> None:
    @node
    def noise(rng: Rng | None = None) -> Tensor:
        return torch.rand(1, generator=rng)

    assert node_type(noise).injected == {"rng": "rng"}
    assert node_type(noise).inputs == {}


def test_a_stream_that_takes_rng() -> None:
    def noise(rng: Rng) -> Iterator[Loss]:
        yield torch.rand((), generator=rng)

    with pytest.raises(NodeDeclarationError, match="a stream's items would depend on where the run started; take Seed"):
        node_type(node(noise))
