"""What the nodes that hold a network share: drawn weights, modes, and whether weights fit. No nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_nodes.memory import Budget, free_bytes
from sr_pipeline.errors import nearest

CPU = torch.device("cpu")


@contextmanager
def seeded(rng: torch.Generator | None) -> Iterator[None]:
    """Draw torch's initial weights from ``rng``, and leave torch's own CPU generator as it was.

    ``None`` leaves torch's own generator in use. No other device's generator is touched: build on the CPU, then move.
    Raises a ValueError where the weights would need more memory than is free.

    >>> with seeded(torch.Generator().manual_seed(1)):
    ...     first = torch.rand(3)
    >>> with seeded(torch.Generator().manual_seed(1)):
    ...     assert torch.equal(first, torch.rand(3))
    """
    free = free_bytes()
    with Budget(free, f"this network's weights need more than the {free / 1e9:.1f} GB that are free; make it smaller"):
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


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU if it has none."""
    return next((p.device for p in module.parameters()), CPU)


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
