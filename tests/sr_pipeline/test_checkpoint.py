"""Checkpoints: whole, exact, and refused where they are damaged or of something else."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import toys
from sr_pipeline.checkpoint import digest, latest, restore, save, step_of
from sr_pipeline.errors import CheckpointError


class Holder:
    """An object whose state is whatever it was given."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
TENSORS = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 9),
)
STATES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(0, 3) | st.sampled_from(["0", "1", "a", "a.b", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, and of the same types."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return [*map(repr, a)] == [*map(repr, b)] and all(map(same, a.values(), b.values()))
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


@given(st.dictionaries(st.sampled_from(["g", "g.a", "d"]), STATES, max_size=3))
def test_any_state_comes_back(tmp_path: Path, state: dict[str, Any]) -> None:
    path = save(tmp_path, 7, {name: Holder(value) for name, value in state.items()}, {})
    holders = {name: Holder() for name in state}
    assert restore(path, holders, {}) == 7
    assert same({name: holder.state for name, holder in holders.items()}, state)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its Adam after a step."""
    network = toys.network(rng=torch.Generator().manual_seed(0))
    optimizer = toys.adam(network)
    torch.autograd.backward(network(torch.eye(3)).square().mean())
    optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


def test_adam_comes_back(tmp_path: Path) -> None:
    network, optimizer = trained()
    path = save(tmp_path, 1, {"net": network, "opt": optimizer}, {})
    other = toys.network(rng=torch.Generator().manual_seed(1))
    again = toys.adam(other)
    restore(path, {"net": other, "opt": again}, {})
    assert same(dict(other.state_dict()), dict(network.state_dict()))
    assert same(again.state_dict(), optimizer.state_dict())
    assert list(again.state_dict()["state"]) == [0, 1, 2, 3, 4, 5]


def test_tensors_that_share_memory_and_views_come_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "same": whole, "turned": whole.T, "part": whole[1:, ::2], "wide": whole[0].expand(2, 4)}
    holder = Holder()
    restore(save(tmp_path, 1, {"x": Holder(state)}, {}), {"x": holder}, {})
    assert same(holder.state, state)


def test_keys_of_one_spelling_do_not_collide(tmp_path: Path) -> None:
    one, two, three = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)
    state = {1: one, "1": two, "a.b": one, "a": {"b": two, "b'": three}, "1'": three}
    holder = Holder()
    restore(save(tmp_path, 1, {"x": Holder(state)}, {}), {"x": holder}, {})
    assert same(holder.state, state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {1, 2}}, "x.a: a state of type set cannot be saved; make it a tensor or JSON"),
        ({(1, 2): 0}, "x: a state of type tuple cannot be saved; make it a tensor or JSON"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        save(tmp_path, 1, {"x": Holder(state)}, {})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_beside_even_when_writing_fails(tmp_path: Path) -> None:
    save(tmp_path, 1, {"x": Holder(1)}, {})
    (tmp_path / "step-000000002.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"the state cannot be saved: .*directory"):
        save(tmp_path, 2, {"x": Holder(2)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001.safetensors", "step-000000002.safetensors"]


def test_the_newest_three_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 9, 10, 200):
        save(tmp_path, step, {}, {})
    (tmp_path / "step-best.safetensors").touch()
    assert sorted(step_of(p) for p in tmp_path.glob("step-0*")) == [9, 10, 200]
    newest = latest(tmp_path)
    assert newest is not None
    assert step_of(newest) == 200
    assert latest(tmp_path / "none") is None


# damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    network, optimizer = trained()
    return save(tmp_path_factory.mktemp("whole"), 3, {"net": network, "opt": optimizer}, {"v": "12"}).read_bytes()


def refuses(tmp_path: Path, data: bytes, message: str = "") -> None:
    """The file is refused, and nothing is loaded from it."""
    path = tmp_path / "step-000000003.safetensors"
    path.write_bytes(data)
    network, optimizer = trained()
    with torch.no_grad():
        network.get_parameter("0.bias").zero_()
    before = digest(network)
    with pytest.raises(CheckpointError, match=re.escape(message or str(path))):
        restore(path, {"net": network, "opt": optimizer}, {"v": "12"})
    assert digest(network) == before


@pytest.mark.parametrize("thirtieth", range(30))
def test_a_file_cut_short_is_told(tmp_path: Path, whole: bytes, thirtieth: int) -> None:
    refuses(tmp_path, whole[: len(whole) * thirtieth // 30], "it cannot be read: ")


@given(st.data())
def test_a_flipped_bit_is_told(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    """In the header, which is text, as in the weights."""
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    at = data.draw(st.integers(0, header - 1) | st.integers(header, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    if at < header and blank(whole[at]) and blank(flipped[at]):
        return
    refuses(tmp_path, bytes(flipped))


def blank(byte: int) -> bool:
    return bytes([byte]).isspace()


def test_a_file_of_another_kind_is_told(tmp_path: Path, whole: bytes) -> None:
    refuses(tmp_path, b"", "it cannot be read: ")
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    refuses(tmp_path, struct.pack("<Q", len(header)) + header, "its format is 'pt'; wanted 'sr_pipeline.checkpoint/1'")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape("it cannot be read: ")):
        restore(tmp_path / "none.safetensors", {}, {})


def test_what_does_not_fit_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    network, optimizer = trained()
    path = save(tmp_path, 1, {"net": network, "opt": optimizer, "x": Holder(1)}, {"v": "1"})
    x = Holder()
    fewer = torch.optim.Adam([network.get_parameter("0.bias")])
    cases: list[tuple[dict[str, Any], dict[str, str], str]] = [
        ({"x": x, "net": network, "opt": fewer}, {}, "'opt' is an optimizer of other parameters"),
        ({"x": x, "net": network, "opt": network}, {}, "'opt' has another shape: 0.bias is absent in the file"),
        ({"x": x, "net": optimizer, "opt": optimizer}, {}, "'net' is an optimizer of other parameters"),
        ({"x": x, "net": network, "more": x}, {}, "it is of another graph: not in it: more; left over: opt"),
        ({"x": x, "net": network, "opt": optimizer}, {"v": "2"}, "the weights of 'v' are not those of the run"),
    ]
    for state, unchanged, message in cases:
        with pytest.raises(CheckpointError, match=re.escape(message)):
            restore(path, state, unchanged)
        assert x.state is None
    assert restore(path, {"x": x, "net": network, "opt": optimizer}, {"v": "1"}) == 1


# digests


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked"])
def test_a_digest_knows_every_weight_and_buffer(name: str) -> None:
    network = toys.network(rng=torch.Generator().manual_seed(0))
    before = digest(network)
    assert digest(toys.network(rng=torch.Generator().manual_seed(0))) == before
    with torch.no_grad():
        network.state_dict()[name].view(-1)[-1:].add_(1)
    assert digest(network) != before


def test_a_digest_knows_names_shapes_and_dtypes() -> None:
    made = [
        nn.ParameterDict({n: nn.Parameter(torch.zeros(s, dtype=d))})
        for n, s, d in (
            ("a", (2, 3), torch.float32),
            ("b", (2, 3), torch.float32),
            ("a", (3, 2), torch.float32),
            ("a", (2, 3), torch.bfloat16),
            ("a", (2, 6), torch.bfloat16),
        )
    ]
    assert len({digest(m) for m in made}) == len(made)
