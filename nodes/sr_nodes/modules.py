"""What the nodes that hold a network share: drawn weights, modes, and weight files. No nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sr_pipeline.errors import nearest

CPU = torch.device("cpu")


@contextmanager
def seeded(rng: torch.Generator | None) -> Iterator[None]:
    """Draw torch's initial weights from ``rng``, and leave torch's own CPU generator as it was.

    ``None`` leaves torch's own generator in use. No other device's generator is touched: build on the CPU, then move.

    >>> with seeded(torch.Generator().manual_seed(1)):
    ...     first = torch.rand(3)
    >>> with seeded(torch.Generator().manual_seed(1)):
    ...     assert torch.equal(first, torch.rand(3))
    """
    if rng is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), generator=rng)))
        yield


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Set the module's mode, and give every submodule its own mode back at the end."""
    before = [(m, m.training) for m in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for submodule, was in before:
            submodule.training = was


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
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); give a whole .safetensors file") from error


def nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"nor is there a folder {path.parent}"
    return f"in its folder: {nearest(path.name, (p.name for p in path.parent.iterdir() if p.is_file()))}"


def check_fits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError that names the tensors of ``found`` that are missing, unexpected or of another shape."""
    shared = [name for name in wanted if name in found]
    faults = [
        _listed("missing", (n for n in wanted if n not in found)),
        _listed("unexpected", (n for n in found if n not in wanted)),
        _listed(
            "of another shape",
            (
                f"{n} {list(found[n].shape)} instead of {list(wanted[n].shape)}"
                for n in shared
                if found[n].shape != wanted[n].shape
            ),
        ),
        _listed("not numbers of the same kind", (n for n in shared if _kind(found[n]) != _kind(wanted[n]))),
    ]
    if any(faults):
        raise ValueError(f"the weights in {where} do not fit the network: " + "; ".join(filter(None, faults)))


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _listed(what: str, names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return f"{what}: {', '.join(every[:3])}{more}" if every else ""
