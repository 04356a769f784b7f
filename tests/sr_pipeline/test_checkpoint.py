"""Checkpoints: whole, exact, and refused where one byte of them is not as it was written."""

from __future__ import annotations

import json
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import toys
from sr_pipeline.checkpoint import Saved, digest, latest, read, snapshot, step_of, write
from sr_pipeline.errors import CheckpointError, DamagedCheckpointError


class Holder:
    """An object whose state is whatever it was given."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def save(folder: Path, step: int, state: dict[str, Any], unchanged: dict[str, str] | None = None) -> Path:
    path = folder / f"step-{step:09d}.safetensors"
    write(path, snapshot(step, state, unchanged or {}))
    return path


def again(tmp_path: Path, state: Any) -> Any:
    """A state as it comes back from a file."""
    return read(save(tmp_path, 1, {"x": Holder(state)})).objects["x"]


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
    saved = read(save(tmp_path, 7, {name: Holder(value) for name, value in state.items()}, {"vgg": "12"}))
    assert same(saved.objects, state)
    assert saved == Saved(
        7, saved.objects, dict.fromkeys(state, "Holder"), {name: {} for name in state}, {"vgg": "12"}, None
    )


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its Adam after a step."""
    network = toys.network(rng=torch.Generator().manual_seed(0))
    optimizer = toys.adam(network)
    torch.autograd.backward(network(torch.eye(3)).square().mean())
    optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


def test_a_snapshot_does_not_change_with_what_it_was_taken_of(tmp_path: Path) -> None:
    network, optimizer = trained()
    then = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    taken = snapshot(1, {"net": network, "opt": optimizer}, {})
    torch.autograd.backward(network(torch.eye(3)).square().mean())
    optimizer.step()
    write(tmp_path / "step-000000001.safetensors", taken)
    saved = read(tmp_path / "step-000000001.safetensors")
    assert same(saved.objects["net"], then)
    assert saved.objects["opt"]["state"][0]["step"] == 1


def test_tensors_that_share_memory_and_views_come_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "same": whole, "turned": whole.T, "part": whole[1:, ::2], "wide": whole[0].expand(2, 4)}
    assert same(again(tmp_path, state), state)


def test_keys_of_one_spelling_do_not_collide(tmp_path: Path) -> None:
    one, two, three = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)
    state = {1: one, "1": two, "a.b": one, "a": {"b": two, "b'": three}, "1'": three}
    assert same(again(tmp_path, state), state)


def test_names_that_look_like_a_digest_mislead_nobody(tmp_path: Path) -> None:
    state = {f'"digest":"{"0" * 32}"': torch.ones(1), "digest": f'"digest":"{"1" * 32}"'}
    assert same(again(tmp_path, state), state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {1, 2}}, "x.a: a state of type set cannot be saved; make it a tensor or JSON"),
        ({(1, 2): 0}, "x: a state of type tuple cannot be saved; make it a tensor or JSON"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused(state: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        snapshot(1, {"x": Holder(state)}, {})


def test_nothing_is_left_beside_even_when_writing_fails(tmp_path: Path) -> None:
    save(tmp_path, 1, {"x": Holder(1)})
    (tmp_path / "step-000000002.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"the state cannot be saved: .*directory"):
        save(tmp_path, 2, {"x": Holder(2)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001.safetensors", "step-000000002.safetensors"]


def test_the_newest_is_found_among_steps_and_bests(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    for name in ("step-000000009", "best-000000200", "step-000000200", "step-1000", "damaged-step-000000300"):
        (tmp_path / f"{name}.safetensors").touch()
    newest = latest(tmp_path)
    assert newest is not None
    assert (newest.name, step_of(newest)) == ("step-000000200.safetensors", 200)
    newest.unlink()
    assert latest(tmp_path) == tmp_path / "best-000000200.safetensors"


# what is no number

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("value", "word"), [(NAN, "NaN"), (INF, "infinity"), (-INF, "infinity")])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, dtype: torch.dtype, value: float, word: str) -> None:
    network = toys.network(rng=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        network.get_parameter("2.weight")[1, 2] = value
    message = f"step 4: net.2.weight holds {word}: this state is not saved; the checkpoint before is sound"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}"):
        save(tmp_path, 4, {"net": network})
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_that_holds_no_numbers_is_not_saved(tmp_path: Path) -> None:
    network, optimizer = trained()
    optimizer.state_dict()["state"][3]["exp_avg_sq"].view(-1)[0] = INF
    with pytest.raises(CheckpointError, match=re.escape("opt.state.3.exp_avg_sq holds infinity")):
        save(tmp_path, 4, {"net": network, "opt": optimizer})


def test_a_buffer_may_be_infinite_and_other_state_anything(tmp_path: Path) -> None:
    """A mask, or the least that was seen so far."""
    network = toys.network(rng=torch.Generator().manual_seed(0))
    network.get_buffer("1.running_mean").fill_(-INF)
    save(tmp_path, 1, {"net": network, "x": Holder({"tensor": torch.tensor(NAN), "number": NAN})})
    network.get_buffer("1.running_mean")[0] = NAN
    with pytest.raises(CheckpointError, match=re.escape("net.1.running_mean holds NaN")):
        save(tmp_path, 2, {"net": network})


# damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    network, optimizer = trained()
    return save(tmp_path_factory.mktemp("whole"), 3, {"net": network, "opt": optimizer}, {"v": "12"}).read_bytes()


def refuses(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "step-000000003.safetensors"
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=f"^{re.escape(str(path))}: {message}"):
        read(path)


def test_bytes_all_over_the_header_and_the_tensors_count(tmp_path: Path, whole: bytes) -> None:
    """Blanks of the header too, which no parser would miss. test_resume.py draws others."""
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for at in [*range(8), *range(8, header, 17), *range(header - 8, header), *range(header, len(whole), 17)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        refuses(tmp_path, bytes(flipped), "it is damaged: its digest is another|it cannot be read: ")


@pytest.mark.parametrize("thirtieth", range(30))
def test_a_file_cut_short_is_told(tmp_path: Path, whole: bytes, thirtieth: int) -> None:
    refuses(tmp_path, whole[: len(whole) * thirtieth // 30], "it is damaged: its digest is another|it cannot be read: ")


def sealed(header: bytes, data: bytes = b"") -> bytes:
    """A file whose digest is right, whatever else is wrong."""
    import hashlib

    zeros = header.replace(b"DIGEST", b"0" * 32)
    found = hashlib.blake2b(len(zeros).to_bytes(8, "little") + zeros + data, digest_size=16).hexdigest()
    return len(zeros).to_bytes(8, "little") + header.replace(b"DIGEST", found.encode()) + data


def header(content: Any, tensors: Any = None, format_: str = "sr_pipeline.checkpoint/2") -> bytes:
    metadata = {"format": format_, "content": json.dumps(content), "digest": "DIGEST"}
    return json.dumps({"__metadata__": metadata, **(tensors or {})}, separators=(",", ":")).encode()


GOOD = {"step": 3, "objects": {}, "unchanged": {}, "best": None}
LONG = {"t": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}


def test_the_digest_is_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(sealed(header(GOOD)))
    assert read(path).step == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it cannot be read: a header of 0 bytes in a file of 0"),
        (struct.pack("<Q", 1 << 40), "it cannot be read: a header of 1099511627776 bytes in a file of 8"),
        (struct.pack("<Q", 9) + b"{}", "it cannot be read: a header of 9 bytes in a file of 10"),
        (struct.pack("<Q", 2) + b"{}", "it cannot be read: there is no digest in it"),
        (sealed(header(GOOD, LONG)), "it cannot be read: .*"),
        (sealed(header(GOOD), b"more"), "it cannot be read: .*"),
        (sealed(header({"step": 3})), "it cannot be read: 'objects'"),
        (sealed(header([])), "it cannot be read: list indices must be .*"),
        (sealed(header(None)), "it cannot be read: .*"),
        (sealed(header({**GOOD, "objects": {"x": {"kind": "", "state": {"tensor": "t"}}}})), "it cannot be read: 't'"),
        (sealed(b'"digest":"DIGEST"'), "it cannot be read: .*"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    refuses(tmp_path, data, message)


def test_a_header_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "step-000000003.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # holes: it takes no room
    with pytest.raises(DamagedCheckpointError, match="a header of 100000001 bytes in a file of 200000000"):
        read(path)


def test_another_format_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(sealed(header(GOOD, format_="sr_pipeline.checkpoint/9")))
    message = "its format is 'sr_pipeline.checkpoint/9', wanted 'sr_pipeline.checkpoint/2'; use the version of"
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read(path)
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpointError, match=r"it cannot be read: .*No such file"):
        read(tmp_path / "none.safetensors")


# digests of unchanged weights


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


# on a GPU


@pytest.mark.gpu
def test_a_snapshot_of_a_gpu_is_taken_there_and_written_by_another_thread(tmp_path: Path) -> None:
    """It holds what was there when it was taken, though steps go on before it is written."""
    network = toys.network(rng=torch.Generator().manual_seed(0)).cuda()
    then = {name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}
    taken = snapshot(1, {"net": network}, {})
    assert all(tensor.is_cuda for tensor in taken.tensors.values())
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write, tmp_path / "x", taken).result()
    assert same(read(tmp_path / "x").objects["net"], then)
