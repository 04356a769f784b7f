"""Files of weights: read without running what is in them, and without taking more memory than they hold. No nodes."""

from __future__ import annotations

import math
import mmap
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sr_nodes.memory import Budget
from sr_nodes.modules import nearest_file

MAX_HEADER = 16 * 2**20
"""Bytes of a safetensors header; that of ten thousand tensors has two million."""
MAX_TENSORS = 20_000
MAX_NAME = 200
MAX_LAYER = 1000
"""The greatest number of a layer in a tensor's name, of which programs conclude how many layers to build."""
_ROOM = 64 * 2**20
_PICKLED = (".pth", ".pt", ".ckpt", ".tar", ".bin")
_WRAPPERS = (
    "params_ema", "params", "ema_state_dict", "generator", "net_g", "model_state_dict", "state_dict", "model",
)  # fmt: skip
"""Keys under which training programs put the weights; the first that is there is taken."""
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch.load raises for one or another file that is none of its own."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors or a torch file, on the CPU, and the metadata of the former.

    A torch file is read with ``weights_only``: nothing in it is executed. Of a training program's file these are the
    generator's weights, the averaged ones where it has both.

    Raises:
        ValueError: there is no such file, or it is damaged, of another format or suffix, a pickle of more than
            tensors, or one that asks for more memory than its size.
    """
    if path.suffix.lower() in _PICKLED and path.is_file() and not _is_safetensors(path):
        tensors, metadata = _read_pickled(path), dict[str, str]()
    else:
        tensors, metadata = _read_safetensors(path)
    _check_plain(tensors, path)
    return tensors, metadata


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, the length of a header and the brace that begins it: an export has the name it was given."""
    with path.open("rb") as file:
        length, brace = file.read(8), file.read(1)
    return brace == b"{" and int.from_bytes(length, "little") < path.stat().st_size


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of is refused below
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} {_why(error)}") from error
    tensors = _unwrapped(loaded)
    if not tensors:
        inside = f" with the keys {repr(list(loaded)[:6])[1:-1][:200]}" if isinstance(loaded, dict) else ""
        raise ValueError(f"{path} holds no tensors but a {type(loaded).__name__}{inside}; give a dictionary of tensors")
    return tensors


def _room(path: Path) -> int:
    """Bytes that a file's content may take."""
    return 4 * path.stat().st_size + _ROOM


class _Bomb(ValueError):  # noqa: N818 - it names what was met
    """A small file that would fill the memory."""


def _check_archive(path: Path) -> None:
    """Refuse what torch.load would inflate: packed archives, and the one allowed call that makes bytes of a number."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            if path.stat().st_size and mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(b"bytearray") >= 0:
                raise _Bomb("asks for room that is no tensor's")
            return
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _room(path):  # torch packs no tensors
                raise _Bomb("is an archive that unpacks to more than its size")
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
            if any(b"bytearray" in archive.read(entry) for entry in pickles):
                raise _Bomb("asks for room that is no tensor's")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata.

    Raises:
        ValueError: there is no such file, or it is damaged or of another format.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a weights file, {nearest_file(path / 'generator.safetensors')}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; {nearest_file(path)}")
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise ValueError(f"{len(names)} tensors, and at most {MAX_TENSORS} are read")
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, *UNREADABLE) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); give a whole .safetensors file") from error


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, path.stat().st_size):
        raise ValueError(f"a header of {length} bytes")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As read_safetensors, of any suffix: an export has the name that it was given."""
    try:
        return read_safetensors(path)
    except ValueError as error:
        if path.suffix.lower() == ".safetensors" or not path.is_file():
            raise
        known = f".safetensors, {', '.join(_PICKLED)}"
        raise ValueError(f"{path} has the suffix {path.suffix!r}; give a weights file: {known}") from error


def _why(error: Exception) -> str:
    """Why torch did not load a file; torch's own words advise to run what is in it, so they are not repeated."""
    text = str(error)
    more = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, _Bomb):
        return f"is refused: it {text}; save the tensors alone: torch.save(model.state_dict(), 'weights.pth')"
    if isinstance(error, pickle.UnpicklingError) and (more or "Can only " in text or "Trying to " in text):
        return (
            f"is refused: it pickles more than tensors, which could run any program{f' ({more[1]})' if more else ''}; "
            "with the code that made it, save the tensors alone: torch.save(model.state_dict(), 'weights.pth')"
        )
    if "TorchScript" in text:
        return "is a TorchScript program, not weights; give the weights that it was made of"
    if isinstance(error, PermissionError):
        return "may not be read; change its permissions"
    return "is damaged, or no file of torch's; copy or fetch it again"


def _unwrapped(loaded: object) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
        loaded = inner
    return {}


def _check_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that would take more memory once they are copied, or tell of a network that cannot be."""
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{path} holds {len(tensors)} tensors, and at most {MAX_TENSORS} are read")
    for name, tensor in tensors.items():
        if len(name) > MAX_NAME:
            raise ValueError(f"{path} holds {name[:80]!r}..., a name of {len(name)} characters; give a state dict")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
            raise ValueError(f"{path} holds {name[:80]!r}, which is no plain tensor; save it as float32")
        if any(part.isdecimal() and (len(part) > 6 or int(part) > MAX_LAYER) for part in name.split(".")):
            raise ValueError(f"{path} holds {name[:80]!r}; at most {MAX_LAYER} layers of a kind are read")
        if not math.prod(tensor.shape) and any(side > 1 for side in tensor.shape):
            raise ValueError(f"{path} holds {name[:80]!r} of {list(tensor.shape)}, which is empty; give a whole file")
    asked = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
    if asked > _room(path):  # one storage may serve several names, but not any number
        raise ValueError(f"{path} is refused: its tensors ask for {asked / 1e9:.1f} GB, which it does not hold")


def budget_of(tensors: Mapping[str, Tensor], where: str) -> Budget:
    """Room for a network of these tensors in float32, and for what it computes while it is built."""
    room = 4 * sum(tensor.nbytes for tensor in tensors.values()) + _ROOM
    return Budget(room, f"{where} describes a network larger than itself; give a whole file")
