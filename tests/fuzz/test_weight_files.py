"""Mutated weight files: each is loaded, or refused in our own words."""

from __future__ import annotations

import importlib
import io
import json
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from conftest import FULL
from fuzz.limits import no_growth, no_hang
from fuzz.mutations import NUMBERS, TEXTS, mutated_bytes
from public_codes import BasicMSRResNet, Lornatang, Rrdbs, shaken
from sr_nodes.features import vgg19
from sr_nodes.generators import export_generator, load_generator
from sr_nodes.spandrel_nets import load_upscaler
from sr_nodes.srresnet import srresnet
from sr_nodes.types import Generator

pytest.importorskip("spandrel", reason="the extra 'spandrel' is not installed")
FILES = 2000 if FULL else 250
State = dict[str, Tensor]
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]


class Base(NamedTuple):
    """A network's tensors, and files of them."""

    state: State
    safetensors: bytes
    zipped: bytes
    old: bytes


@pytest.fixture(scope="module")
def bases() -> list[Base]:
    compact, span = (importlib.import_module(f"spandrel.architectures.{name}") for name in ("Compact", "SPAN"))
    torch.manual_seed(0)
    networks = [
        BasicMSRResNet(),
        Lornatang(),
        Rrdbs(Rrdbs.NEW, "rdb", growth=32),
        compact.Compact(num_feat=8, num_conv=3, upscale=4),
        span.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
    ]
    states = [dict(shaken(network).state_dict()) for network in networks]
    return [Base(state, save(state), pickled(state), pickled(state, zipped=False)) for state in states]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What export_generator writes."""
    folder = tmp_path_factory.mktemp("export")
    export_generator(srresnet(scale=2, blocks=1, channels=4), "a.safetensors", run_dir=folder)
    return (folder / "a.safetensors").read_bytes()


def pickled(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def changed(state: State, rng: Random) -> Any:
    """The same tensors with one to three of them renamed, dropped, or of another shape or kind; or in a wrapper."""
    made: dict[str, Any] = OrderedDict(state)
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(list(made))
        if not isinstance(tensor := made[name], Tensor):
            continue
        match rng.randrange(9):
            case 0:
                del made[name]
            case 1:
                digits = [part for part in name.split(".") if part.isdigit()] or ["weight"]
                number = rng.choice(["0", "7", "99", "999", "100000", "1" * 12, "²", *TEXTS[:3]])
                made[name.replace(rng.choice(digits), number, 1)] = made.pop(name)
            case 2:
                made[name] = tensor.to(rng.choice(DTYPES))
            case 3:
                made[name] = tensor.reshape(rng.choice([[-1], [1, -1], [-1, 1, 1, 1], [1, 1, 1, -1]]))
            case 4:
                sides = [rng.choice([0, 1, 3, 64, 10**4, 10**9]) for _ in range(rng.randrange(3))]
                made[name] = torch.zeros(()).expand(sides) if 0 not in sides else torch.zeros(sides)
            case 5:
                made[name] = torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor * 0
            case 6:
                made[rng.choice([*TEXTS, "body.5.x"])] = tensor
            case 7:
                made[name] = rng.choice(
                    [tensor.to_sparse(), tensor.to("meta"), tensor.reshape(-1)[:0], torch.tensor(1.0)]
                )
            case _:
                made[name] = rng.choice([None, 1, "text", [tensor], {"a": tensor}])
        if not made:
            break
    return rng.choice([made, made, {"params": made}, {"state_dict": made, "epoch": 3}, [made], nest(made, 100)])


def nest(content: Any, depth: int) -> Any:
    for _ in range(depth):
        content = {"model": content}
    return content


def header_changed(data: bytes, rng: Random) -> bytes:
    """A safetensors file with another header: its shapes, kinds, places, names or metadata."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    name = rng.choice([n for n in header if n != "__metadata__"])
    entry, metadata = header[name], header.get("__metadata__", {})
    match rng.randrange(8):
        case 0:
            entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(6))]
        case 1:
            entry["shape"] = [rng.choice([0, 10**6, 10**12, 2**62]), 0, 3, 3]
            entry["data_offsets"][1] = entry["data_offsets"][0]
        case 2:
            entry["dtype"] = rng.choice(["F16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "C64", "", "X"])
        case 3:
            entry["data_offsets"] = [rng.choice([0, 8, len(data), 2**40, 2**64 - 1]) for _ in range(2)]
        case 4:
            header[rng.choice([*TEXTS, "blocks.999999999.body.0.weight"])] = header.pop(name)
        case 5:
            config = json.loads(metadata.get("config", "{}"))
            option = rng.choice([*config, "blocks", "channels"])
            value: Any = rng.choice([*NUMBERS, *TEXTS, True, None, [], 256, 1024])
            metadata["config"] = json.dumps({**config, option: value})
        case 6:
            metadata[rng.choice(["format", "version", "architecture", "config"])] = rng.choice(
                [*TEXTS, "rrdbnet", "msrresnet", "spandrel/SwinIR", "[" * 5000, "NaN", '{"blocks": 1e999}']
            )
        case 7:
            header = {**header, "__metadata__": rng.choice([1, [], {"a": 1}, None, {"a" * 10**5: "b"}])}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def repacked(data: bytes, rng: Random) -> bytes:
    """A torch file's archive with its entries packed, dropped, twice or swapped."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is there twice
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as made:
            at, other = rng.randrange(len(entries)), rng.randrange(len(entries))
            content = rng.choice([b"", entries[other][1], b"\0" * 10**6, mutated_bytes(entries[at][1] or b"a", rng)])
            entries[at] = (rng.choice([entries[at][0], entries[other][0], "a/../../x"]), content)
            for name, entry in entries if rng.random() < 0.8 else entries[1:]:
                made.writestr(name, entry)
    return out.getvalue()


def case(number: int, bases: list[Base], export: bytes) -> tuple[str, bytes]:
    """A mutated file of weights and its suffix: each region of each kind of file in turn."""
    rng = Random(f"weights {number}")
    state, plain, new, old = rng.choice(bases)
    plain = rng.choice([export, plain])
    header = 8 + int.from_bytes(plain[:8], "little")
    start = new.find(b"PK\x01\x02")
    makes: list[tuple[str, Callable[[], bytes]]] = [
        (".safetensors", lambda: mutated_bytes(plain, rng, range(8))),
        (".safetensors", lambda: mutated_bytes(plain, rng, range(8, header))),
        (".safetensors", lambda: mutated_bytes(plain, rng, range(header, len(plain)))),
        (".safetensors", lambda: header_changed(plain, rng)),
        (".safetensors", lambda: header_changed(export, rng)),
        (".pth", lambda: mutated_bytes(new, rng, range(start, len(new)))),
        (".pth", lambda: mutated_bytes(new, rng, range(min(2000, len(new))))),
        (".pth", lambda: mutated_bytes(new, rng)),
        (".pth", lambda: mutated_bytes(old, rng, range(min(4000, len(old))))),
        (".pth", lambda: mutated_bytes(old, rng)),
        (".pth", lambda: pickled(changed(state, rng), zipped=rng.random() < 0.7)),
        (".pth", lambda: pickled(changed(state, rng))),
        (".pth", lambda: repacked(new, rng)),
        (rng.choice([".pth", ".safetensors", ".ckpt"]), lambda: rng.choice([plain, old, new])),
    ]
    suffix, make = makes[number % len(makes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of sparse tensors
        return suffix, make()


def checked(generator: Generator) -> None:
    assert generator.scale >= 1
    assert all(not tensor.is_meta for tensor in generator.state_dict().values())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of memory to be read")
@pytest.mark.filterwarnings("default")
def test_a_mutated_weight_file_is_loaded_or_refused(bases: list[Base], export: bytes, tmp_path: Path) -> None:
    came = Counter[str]()
    with no_growth():
        for number in range(FILES):
            suffix, data = case(number, bases, export)
            path = tmp_path / f"a{suffix}"
            path.write_bytes(data)
            for load in (load_generator, load_upscaler):
                with no_hang(f"case {number}"):
                    try:
                        checked(load(str(path)))
                        came[f"{load.__name__}: loaded"] += 1
                    except ValueError as error:
                        told = str(path) in str(error) and len(str(error)) < 3000
                        came[f"{load.__name__}: refused" if told else f"case {number}: {str(error)[:300]}"] += 1
                    except Exception as error:
                        raise AssertionError(f"case {number}: {type(error).__name__}: {error}") from error
    print(f"{FILES} files: {dict(sorted(came.items()))}")  # noqa: T201
    assert set(came) == {f"load_{what}: {end}" for what in ("generator", "upscaler") for end in ("loaded", "refused")}
    assert min(came.values()) > FILES // 20


# bombs, each by hand


def refused(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    assert len(content) < 4 * 2**20
    for load in (load_generator, load_upscaler, lambda file: vgg19("11", file)):
        with no_growth(), no_hang(words), pytest.raises(ValueError, match=words):
            load(str(path))


class Bytes:
    """Pickled as the call ``bytearray(number)``, which ``weights_only`` allows."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return bytearray, (self.number,)


@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_of_a_number_are_refused(tmp_path: Path, zipped: bool) -> None:
    content = pickled({"a": Bytes(3 * 10**9), "b": torch.ones(1)}, zipped)
    refused(tmp_path / "a.pth", content, "is refused: it asks for room that is no tensor's")


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(pickled({"a": torch.zeros(25_000_000)}))) as plain,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    refused(tmp_path / "a.pth", file.getvalue(), "is refused: it is an archive that unpacks to more than its size")


def test_wrappers_in_wrappers_are_no_recursion(tmp_path: Path) -> None:
    depth, key = 20_000, b"X\5\0\0\0model"
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(pickled({}))) as plain, zipfile.ZipFile(file, "w") as deep:
        for name in plain.namelist():
            nested = b"\x80\2" + (b"}" + key) * depth + b"}" + b"s" * depth + b"."
            deep.writestr(name, nested if name.endswith("data.pkl") else plain.read(name))
    refused(tmp_path / "a.pth", file.getvalue(), r"a\.pth holds no tensors but a dict with the keys 'model'; give")


def test_one_number_under_a_huge_shape_is_refused(tmp_path: Path) -> None:
    content = pickled({"conv_first.weight": torch.zeros(1).expand(10**6, 10**6)})
    refused(tmp_path / "a.pth", content, "is refused: its tensors ask for 4000.0 GB, which it does not hold")


@pytest.mark.parametrize("tensor", [torch.ones(2).to_sparse(), torch.ones(2, device="meta")])
@pytest.mark.filterwarnings("default")
def test_tensors_that_are_none_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    refused(tmp_path / "a.pth", pickled({"a": tensor}), "holds 'a', which is no plain tensor; save it as float32")


def test_a_network_that_no_file_of_this_size_can_hold_is_refused(tmp_path: Path, export: bytes) -> None:
    length = int.from_bytes(export[:8], "little")
    header = json.loads(export[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    header["__metadata__"]["config"] = json.dumps({**config, "channels": 1024, "blocks": 256})
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + export[8 + length :])
    with no_growth(), no_hang("a"), pytest.raises(ValueError, match="describes a network larger than itself"):
        load_generator(str(path))


def test_thin_tensors_of_a_wide_network_are_refused(tmp_path: Path) -> None:
    """A million channels by a megabyte's shapes: what is built of them would be 10^12 numbers."""
    state = dict(shaken(Rrdbs(Rrdbs.NEW, "rdb", growth=32)).state_dict())
    state["conv_first.weight"] = torch.zeros(10**5, 3, 1, 1)
    path = tmp_path / "a.pth"
    path.write_bytes(pickled(state))
    for load in (load_generator, load_upscaler):
        with no_growth(), no_hang("a"), pytest.raises(ValueError, match=r"a\.pth"):
            load(str(path))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (struct.pack("<Q", 2**63), "a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 17 * 2**20), "a header of 17825792 bytes"),
        (b"\0" * 7, "HeaderTooSmall|header"),
        (struct.pack("<Q", 20_000) + b"[" * 20_000, "invalid JSON|Error while deserializing"),
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes, words: str) -> None:
    refused(tmp_path / "a.safetensors", header, rf"cannot be read as safetensors \(.*({words})")


def test_names_that_count_a_billion_layers_are_refused(tmp_path: Path) -> None:
    content = pickled({"body.1000000000.rdb1.conv1.weight": torch.ones(4, 4, 3, 3)})
    refused(tmp_path / "a.pth", content, r"holds 'body\.1000000000.*'; at most 1000 layers of a kind are read")
