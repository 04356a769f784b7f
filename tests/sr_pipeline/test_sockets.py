"""What fits what, and how strictly literals are read."""

from __future__ import annotations

import json
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from torch import Tensor, nn

from sr_pipeline.sockets import (
    INJECTABLE,
    Backward,
    Device,
    Every,
    InputPath,
    Loss,
    Model,
    Mutates,
    Optimizer,
    OutputName,
    OutputPath,
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
    World,
    socket_type,
)

Image = Annotated[Tensor, Socket("Image")]
Logits = Annotated[Tensor, Socket("Logits")]
M = TypeVar("M", bound=nn.Module)
Anything = TypeVar("Anything")


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


class Size(BaseModel):
    width: int


TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "path": Path,
    "none": None,
    "literal": Literal["a", "b"],
    "tensor": Tensor,
    "image": Image,
    "logits": Logits,
    "loss": Loss,
    "model": Model,
    "optimizer": Optimizer,
    "linear": nn.Linear,
    "of_module": M,
    "list": list[int],
    "union": Image | float | None,
}
names = st.sampled_from(sorted(TYPES))


def marked(mark: Any, annotation: Any) -> Any:
    return mark[annotation]


def fits(wanted: Any, given: Any) -> bool:
    return socket_type(wanted).accepts(socket_type(given))


@pytest.mark.parametrize("name", TYPES)
def test_a_type_fits_itself_and_anything(name: str) -> None:
    assert fits(TYPES[name], TYPES[name])
    assert fits(Any, TYPES[name])
    assert fits(Anything, TYPES[name])


@given(names, names, names)
def test_a_union_is_given_where_each_member_fits_and_takes_what_a_member_takes(a: str, b: str, c: str) -> None:
    one, two, other = (TYPES[name] if TYPES[name] is not None else type(None) for name in (a, b, c))
    assert fits(other, one | two) == (fits(other, one) and fits(other, two))
    if fits(one, other) or fits(two, other):
        assert fits(one | two, other)


@pytest.mark.parametrize("name", TYPES)
def test_marks_do_not_change_what_fits(name: str) -> None:
    assert fits(marked(Mutates, TYPES[name]), TYPES[name])
    assert fits(TYPES[name], marked(Backward, TYPES[name]))


@pytest.mark.parametrize(
    ("wanted", "given", "does"),
    [
        (float, int, True),
        (int, float, False),
        (float, bool, False),
        (int, bool, False),
        (bool, int, False),
        (str, Literal["a", "b"], True),
        (Literal["a", "b"], str, False),
        (Literal["a", "b"], Literal["a", "c"], False),
        (Path, str, False),
        (Image, Logits, False),
        (Loss, Image, False),
        (Loss, Tensor, False),
        (Tensor, Loss, True),
        (Model, nn.Linear, True),
        (Model, nn.Module, False),
        (nn.Module, Model, True),
        (nn.Linear, Model, False),
        (nn.Linear, nn.Conv2d, False),
        (Model, Optimizer, False),
        (M, nn.Linear, True),
        (M, Model, True),
        (M, Image, False),
        (Image | None, Image, True),
        (Image, Image | None, False),
        (Loss | float, int, True),
        (Every, int, True),
    ],
)
def test_what_fits_what(wanted: Any, given: Any, does: bool) -> None:
    assert fits(wanted, given) is does


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Loss | float, "Loss or float"),
        (float | None, "float or nothing"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (tuple[int, ...], "list"),
        (list[int] | tuple[int, ...], "list"),
        (Any, "anything"),
        (M, "Module"),
        (Mutates[Model], "Model"),
        (Annotated[int, Field(ge=1)], "int"),
    ],
)
def test_a_type_in_words(annotation: Any, text: str) -> None:
    assert str(socket_type(annotation)) == text


def test_what_the_plan_reads_of_a_type() -> None:
    assert socket_type(Mutates[Model]).marks == {"mutates"}
    assert socket_type(Backward[Loss]).marks == {"backward"}
    assert socket_type(Every).marks == {"every"}
    assert socket_type(marked(Mutates, M)).is_a(nn.Module)
    assert not socket_type(Optimizer).is_a(nn.Module)
    assert socket_type(Loss | float).differentiable
    assert not socket_type(Model).differentiable
    assert (socket_type(M).variable, socket_type(Model).variable) == ("M", None)


@pytest.mark.parametrize("annotation", [Step, Start, RunDir, Rng, Seed, Device, Training, RetainGraph, Report])
def test_an_injected_type_is_known_inside_an_optional_too(annotation: Any) -> None:
    what = socket_type(annotation).injected
    assert what in INJECTABLE
    assert socket_type(annotation | None).injected == what


def test_the_engine_knows_no_other_injected_type() -> None:
    kinds = (Step, Start, RunDir, Rng, Seed, Device, Training, RetainGraph, Report, World)
    assert {socket_type(kind).injected for kind in kinds} == INJECTABLE
    assert socket_type(int).injected is None


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


READS: dict[str, tuple[Any, Any]] = {
    "int": (int, lambda v: type(v) is int),
    "positive": (Annotated[int, Field(ge=1)], lambda v: type(v) is int and v >= 1),
    "float": (float, is_number),
    "share": (Annotated[float, Field(ge=0, lt=1)], lambda v: is_number(v) and 0 <= v < 1),
    "bool": (bool, lambda v: type(v) is bool),
    "str": (str, lambda v: type(v) is str),
    "word": (Literal["a", "b"], lambda v: v in ("a", "b")),
    "number": (Literal[1, 2], lambda v: type(v) is int and v in (1, 2)),
    "optional": (float | None, lambda v: v is None or is_number(v)),
    "bounded": (Annotated[float | None, Field(gt=0)], lambda v: v is None or (is_number(v) and v > 0)),
    "list": (list[int], lambda v: type(v) is list and all(type(i) is int for i in v)),
    "object": (dict[str, bool], lambda v: type(v) is dict and all(type(i) is bool for i in v.values())),
    "beside_a_loss": (Loss | float, is_number),
}
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["a", "b", "1", "true", "null", ""])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)


@pytest.mark.parametrize("name", READS)
@given(value=values)
def test_a_literal_is_read_to_its_own_type_or_refused(name: str, value: Any) -> None:
    annotation, right = READS[name]
    kind = socket_type(annotation)
    if not right(value):
        with pytest.raises(ValueError, match=r"write|it should"):
            kind.read(json.dumps(value))
        return
    read = kind.read(json.dumps(value))
    assert read == value
    assert type(read) is type(value) or (type(read) is float and type(value) is int)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_literal_is_infinite(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it should be a finite number$"):
        socket_type(float).read(text)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (InputPath, '"a/b.png"', "a/b.png"),
        (Mode, '"fast"', Mode.FAST),
        (Size, '{"width": 3}', Size(width=3)),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (float, "1", 1.0),
        (Every, "0", 0),
    ],
)
def test_a_literal_becomes_what_python_wants(annotation: Any, text: str, value: Any) -> None:
    read = socket_type(annotation).read(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "mend"),
    [
        (bool, '"false"', "write true or false"),
        (int, "1.5", "write a whole number"),
        (float, '"1"', "write a number"),
        (float | None, '"1"', "write a number"),
        (str, "null", "write a string"),
        (str | float, "null", "write a string or write a number"),
        (OutputName, "3", "write a string"),
        (tuple[int, ...], "3", "write a list"),
        (tuple[int, ...], '[1, "2"]', "item 1: write a whole number"),
        (list[list[int]], "[[1], [2, null]]", "item 1.1: write a whole number"),
        (dict[str, int], "3", "write an object"),
        (Literal["a", "b"], '"c"', "it should be 'a' or 'b'"),
        (Literal[1, 2], "true", "it should be 1 or 2"),
        (Mode, '"c"', "it should be 'fast' or 'slow'"),
        (Annotated[int, Field(ge=1)], "0", "it should be greater than or equal to 1"),
        (Every, "-1", "it should be greater than or equal to 0"),
        (str, r'"\ud800"', "write whole characters: half of a surrogate pair is none"),
    ],
)
def test_a_refusal_says_what_to_write(annotation: Any, text: str, mend: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(mend)}$"):
        socket_type(annotation).read(text)


@pytest.mark.parametrize(
    ("annotation", "is_json"),
    [
        *((kind, False) for kind in (Loss, Model, M, nn.Linear, Model | None, list[Image], Path)),
        *((kind, True) for kind in (Loss | float, float | None, list[int], dict[str, InputPath], Size)),
    ],
)
def test_what_a_file_can_hold(annotation: Any, is_json: bool) -> None:
    assert socket_type(annotation).is_json is is_json


@pytest.mark.parametrize(
    ("annotation", "use"),
    [
        (str, None),
        (InputPath, "read"),
        (OutputName | None, "name"),
        (Annotated[OutputPath | None, Field(max_length=3)], "write"),
        (tuple[InputPath, ...], "read"),
        (Literal["a"] | InputPath, "read"),
        (dict[str, list[InputPath] | None], "read"),
    ],
)
def test_what_is_done_with_a_path(annotation: Any, use: str | None) -> None:
    assert socket_type(annotation).path == use


numbers = st.integers(0, 2**40)


@given(numbers, st.text(max_size=5), numbers)
def test_random_numbers_depend_on_run_node_and_step_alone(run: int, name: str, step: int) -> None:
    def drawn(run: int, name: str, step: int) -> int:
        return int(torch.randint(2**62, (), generator=SeedSource(run, name).rng(step)))

    first = drawn(run, name, step)
    assert first == drawn(run, name, step)
    assert len({first, drawn(run + 1, name, step), drawn(run, name + "x", step), drawn(run, name, step + 1)}) == 4
