"""Resuming: from the newest whole checkpoint, with what fits, and with nothing loaded where something does not."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import toys
from sr_pipeline.checkpoint import checkpoints, digest, read, snapshot, write
from sr_pipeline.errors import CheckpointError, DamagedCheckpointError
from sr_pipeline.events import Resumed, Warned
from sr_pipeline.resume import CHANGED, restore

CASES = max(200, settings().max_examples)


class Holder:
    """An object with a state of any kind."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def network(seed: int = 0, **options: Any) -> nn.Module:
    return toys.undisturbed(torch.Generator().manual_seed(seed), **options)


def save(folder: Path, step: int, state: dict[str, Any], unchanged: dict[str, str] | None = None) -> Path:
    path = folder / f"step-{step:09d}.safetensors"
    write(path, snapshot(step, state, unchanged or {}))
    return path


# damage


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two checkpoints, of the steps 3 and 5."""
    folder = tmp_path_factory.mktemp("two")
    for step in (3, 5):
        net = network(step)
        save(folder, step, {"net": net, "opt": toys.adam(net), "x": Holder(step)}, {"vgg": "12"})
    return folder


def regions(whole: bytes) -> dict[str, tuple[int, int]]:
    """Each part of a checkpoint's file: from where to where."""
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    found = {"length": (0, 8), "header": (8, header), "data": (header, len(whole))}
    for name in ("format", "content", "digest"):
        value = json.dumps(json.loads(whole[8:header])["__metadata__"][name]).encode()
        assert whole.count(value) == 1
        found[name] = (whole.index(value) + 1, whole.index(value) + len(value) - 1)
    return found


@st.composite
def damages(draw: st.DrawFn, whole: bytes) -> bytes:
    """The file with bits flipped, bytes set, cut short, or gone on with."""
    first, end = draw(st.sampled_from(list(regions(whole).values())))
    at = draw(st.integers(first, end - 1))
    kind = draw(st.sampled_from(["bit", "byte", "span", "cut", "more", "swap"]))
    if kind == "cut":
        return whole[:at]
    if kind == "more":
        return whole[:at] + draw(st.binary(min_size=1, max_size=9)) + whole[at:]
    changed = bytearray(whole)
    if kind == "bit":
        changed[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "byte":
        changed[at] = draw(st.integers(0, 255))
    elif kind == "span":  # as a disk that lost a sector
        changed[at : min(at + 512, len(whole))] = bytes(min(512, len(whole) - at))
    else:
        other = draw(st.integers(first, end - 1))
        changed[at], changed[other] = changed[other], changed[at]
    return bytes(changed)


@settings(max_examples=CASES)
@given(data=st.data())
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    two: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "checkpoints"
    shutil.copytree(two, folder)
    newest = folder / "step-000000005.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(damaged := data.draw(damages(whole)))
    net, x = network(9), Holder()
    state = {"net": net, "opt": toys.adam(net), "x": x}
    if damaged == whole:
        assert read(newest).step == 5
        return
    with pytest.raises(DamagedCheckpointError, match=re.escape(str(newest))):
        read(newest)
    restored = restore(folder, state, {"vgg": "12"})
    assert (restored.saved.step, x.state, digest(net)) == (3, 3, digest(network(3)))
    (note,) = restored.notes
    assert re.match(r"step-000000005\.safetensors was passed over: it (is damaged|cannot be read): ", note)
    assert sorted(p.name for p in folder.iterdir()) == [
        "damaged-step-000000005.safetensors",
        "step-000000003.safetensors",
    ]


def test_regions_are_found(two: Path) -> None:
    """Otherwise the test above would say little."""
    found = regions((two / "step-000000005.safetensors").read_bytes())
    assert sum(end - first for first, end in found.values()) > 2000
    assert found["digest"][1] - found["digest"][0] == 32
    assert all(found["header"][0] < found[name][0] < found["header"][1] for name in ("format", "content", "digest"))


def test_where_all_are_damaged_all_are_told_and_kept(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(two, folder)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    names = {path.name: path.read_bytes() for path in folder.iterdir()}
    net = network(9)
    message = (
        r"no checkpoint is whole: step-000000005\.safetensors: it .*; step-000000003\.safetensors: it .*; start a new"
    )
    with pytest.raises(CheckpointError, match=message):
        restore(folder, {"net": net, "opt": toys.adam(net), "x": Holder()}, {"vgg": "12"})
    assert digest(net) == digest(network(9))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == names


def test_the_best_is_used_where_the_newest_are_damaged(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    shutil.copytree(two, folder)
    (folder / "step-000000003.safetensors").rename(folder / "best-000000003.safetensors")
    (folder / "step-000000005.safetensors").write_bytes(b"")
    net, x = network(9), Holder()
    assert restore(folder, {"net": net, "opt": toys.adam(net), "x": x}, {"vgg": "12"}).saved.step == 3
    assert x.state == 3


def test_a_run_goes_on_from_the_one_before_to_the_same_end(tmp_path: Path) -> None:
    toys.run_of(toys.REGRESSION, tmp_path / "straight")
    folder = tmp_path / "damaged"
    toys.run_of(toys.REGRESSION, folder, checkpoint_every=2, stop=toys.stop_after(5))
    newest, *_ = checkpoints(folder / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    heard = toys.Heard()
    toys.run_of(toys.REGRESSION, folder, resume=True, sinks=[heard])
    assert [e.step for e in heard if isinstance(e, Resumed)] == [4]
    (warning,) = [e for e in heard if isinstance(e, Warned)]
    assert warning.text.startswith("step-000000005.safetensors was passed over: it is damaged")
    assert toys.state_of(folder) == toys.state_of(tmp_path / "straight")
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "straight" / "metrics.csv").read_bytes()


# what fits


def fitted(saved: dict[str, Any], state: dict[str, Any], folder: Path, **unchanged: str) -> str:
    """Refused, with what of the state fits; nothing is loaded."""
    save(folder, 1, saved, {"vgg": "1"})
    before = {name: str(value.state_dict()) for name, value in state.items()}
    with pytest.raises(CheckpointError) as caught:
        restore(folder, state, unchanged or {"vgg": "1"})
    assert {name: str(value.state_dict()) for name, value in state.items()} == before
    text = str(caught.value)
    assert text.endswith(f"; {CHANGED}")
    return text.partition("it is of another graph: ")[2].removesuffix(f"; {CHANGED}")


def test_what_fits_what_differs_what_is_new_and_what_is_left_over(tmp_path: Path) -> None:
    net, wide, d = network(), network(width=5), network(1)
    saved = {"net": net, "opt": toys.adam(net), "d": d, "opt_d": toys.sgd(d), "x": Holder(1), "old": Holder(2)}
    state = {"net": wide, "opt": toys.adam(wide), "d": d, "opt_d": toys.sgd(d), "x": Holder(), "more": Holder()}
    assert fitted(saved, state, tmp_path) == (
        "fits: d, opt_d, x; differs: net (0.bias is [3] in the file, [5] in the graph), opt (its model is another); "
        "new: more; left over: old"
    )


def test_one_optimizer_is_not_another(tmp_path: Path) -> None:
    net = network()
    few = torch.optim.Adam([net.get_parameter("0.bias")])
    assert fitted({"net": net, "opt": toys.adam(net)}, {"net": net, "opt": toys.sgd(net)}, tmp_path) == (
        "fits: net; differs: opt (Adam in the file, SGD in the graph)"
    )
    assert fitted({"net": net, "opt": toys.adam(net)}, {"net": net, "opt": few}, tmp_path) == (
        "fits: net; differs: opt (an optimizer of other parameters)"
    )


def test_other_unchanged_weights(tmp_path: Path) -> None:
    assert fitted({"x": Holder(1)}, {"x": Holder(2)}, tmp_path, vgg="2") == "fits: x; other weights: vgg"
    restore(tmp_path, {"x": Holder()}, {})  # it is not in use any more


def test_what_fits_is_loaded_on_demand(tmp_path: Path) -> None:
    net, d = network(1), network(2)
    save(tmp_path, 1, {"net": net, "d": d, "x": Holder(1)})
    other, wide, more = network(3), network(4, width=5), Holder(4)
    restored = restore(tmp_path, {"net": other, "d": wide, "more": more}, {}, allow_changed=True)
    assert (digest(other), digest(wide), more.state) == (digest(net), digest(network(4, width=5)), 4)
    assert restored.notes == [
        "the graph was changed: fits: net; differs: d (0.bias is [3] in the file, [5] in the graph); new: more; "
        "left over: x"
    ]
    assert not restored.fit.whole


def test_a_state_that_an_object_does_not_take_is_told(tmp_path: Path) -> None:
    class Strict(Holder):
        def load_state_dict(self, state: Any) -> None:
            self.state = state["key"]

    save(tmp_path, 1, {"x": Strict({"other": 1})})
    with pytest.raises(CheckpointError, match="x does not take its state: 'key'"):
        restore(tmp_path, {"x": Strict()}, {})


def test_a_changed_run_goes_on_and_is_saved_at_once(tmp_path: Path) -> None:
    """So that it can be resumed again, and anew, as the graph that it is now."""
    toys.run_of(toys.REGRESSION, tmp_path, stop=toys.stop_after(3))
    other = toys.REGRESSION.replace("adam(net)", "sgd(net, 0.01)")
    toys.run_of(other, tmp_path, resume=True, allow_changed=True, stop=toys.stop_after(0))
    content, _ = toys.state_of(tmp_path)
    assert (content["step"], content["objects"]["opt"]["kind"]) == (3, "SGD")
    assert toys.run_of(other, tmp_path, resume=True).step == 6


# optimizers


def test_adam_comes_back(tmp_path: Path) -> None:
    net = network()
    optimizer = toys.adam(net)
    torch.autograd.backward(net(torch.eye(3)).square().mean())
    optimizer.step()
    save(tmp_path, 1, {"net": net, "opt": optimizer})
    other = network(1)
    again = toys.adam(other)
    assert restore(tmp_path, {"net": other, "opt": again}, {}).notes == []
    assert digest(other) == digest(net)
    assert list(again.state_dict()["state"]) == [0, 1, 2, 3, 4, 5]
    assert str(again.state_dict()) == str(optimizer.state_dict())


def test_an_option_that_the_graph_changed_has_the_new_value(tmp_path: Path) -> None:
    """What the steps changed is restored: here the rate of the first group, as a schedule leaves it."""
    net = network()
    optimizer = toys.sgd(net, rate=0.1, momentum=0.5)
    optimizer.param_groups[0]["lr"] = 0.025
    save(tmp_path, 1, {"net": net, "opt": optimizer})
    for rate, momentum, expected, notes in (
        (0.1, 0.5, (0.025, 0.5), []),
        (0.1, 0.9, (0.025, 0.9), ["opt: momentum is 0.9 now, and was 0.5"]),
        (0.2, 0.5, (0.2, 0.5), ["opt: lr is 0.2 now, and was 0.1"]),
    ):
        again = toys.sgd(net, rate, momentum)
        assert restore(tmp_path, {"net": net, "opt": again}, {}).notes == notes
        assert (again.param_groups[0]["lr"], again.param_groups[0]["momentum"]) == expected


def test_moments_come_back_in_the_order_of_their_weights_in_memory(tmp_path: Path) -> None:
    """Otherwise a step on channels_last weights is another, slower code path, with bits of its own."""
    made = []
    for _ in range(2):
        conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        made.append((conv, torch.optim.Adam(conv.parameters(), 0.1)))
    (conv, optimizer), (other, again) = made
    torch.autograd.backward(conv(torch.ones(1, 4, 5, 5)).square().mean())
    optimizer.step()
    save(tmp_path, 1, {"net": conv, "opt": optimizer})
    restore(tmp_path, {"net": other, "opt": again}, {})
    kept = optimizer.state[conv.weight]["exp_avg"], again.state[other.weight]["exp_avg"]
    assert torch.equal(*kept)
    assert kept[0].stride() == kept[1].stride() == conv.weight.stride() != torch.empty(4, 4, 3, 3).stride()
