"""How far a pixel of the SR looks in the LR, told from the network itself by where a NaN goes. No nodes."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from sr_nodes.modules import CPU, mode
from sr_nodes.types import Generator

_GRIDS = (1, 2, 4, 8, 16)
_THIN = 16
"""Height of a probe: the reach along a row is the same however few rows there are."""
_MARGIN = 64
"""What a probe is wider than twice the reach: the largest grid more than ``_moves_along`` leaves out at the ends."""
_TOLERANCE = 1e-4


class Field(NamedTuple):
    """What tiles need to know of a network, both in LR pixels."""

    radius: int
    """No SR pixel depends on an LR pixel farther than this from its own, along either axis."""
    grid: int
    """Moving the LR by this moves the SR along with it: 1 for convolutions, more where pixels are folded."""


def receptive_field(generator: Generator, limit: int = 512) -> Field | None:
    """The generator's receptive field in eval mode; ``None`` where it is unbounded or farther than ``limit``.

    A NaN in an LR pixel reaches every SR pixel that depends on it, whatever the weights, because NaN times zero is
    NaN; so the reach is exact for all phases of the scale, and an upper bound where the grid is not 1. Attention and
    global pooling carry it everywhere: ``None``. So are networks that no shift of 1, 2, 4, 8 or 16 pixels leaves as
    they are. It runs on the CPU on probes of 16 rows; the generator is left as it was.

    >>> from sr_nodes.srresnet import srresnet
    >>> receptive_field(srresnet(blocks=2, channels=4))
    Field(radius=12, grid=1)
    """
    network = copy.deepcopy(generator).to(CPU, torch.float32)
    with torch.no_grad(), mode(network, training=False):
        rows, columns = (_along(network, transposed, limit) for transposed in (False, True))
    if rows is None or columns is None:
        return None
    return Field(max(rows.radius, columns.radius), max(rows.grid, columns.grid))


def receptive_radius(generator: Generator, limit: int = 512) -> int | None:
    """The radius of ``receptive_field`` in LR pixels, or ``None``: 40 for the paper's SRResNet.

    >>> from sr_nodes.rrdbnet import rrdbnet
    >>> receptive_radius(rrdbnet(blocks=1, channels=4, growth=2))
    19
    """
    field = receptive_field(generator, limit)
    return field.radius if field else None


def _along(network: Generator, transposed: bool, limit: int) -> Field | None:
    """The field along rows, or along columns: on probes that grow, because most networks need a small one."""
    reach = 0
    while reach < limit:
        reach = min(max(64, 2 * reach), limit)
        width = 2 * reach + _MARGIN
        for grid in _GRIDS:
            radius = _reach(network, width, grid, transposed)
            if radius is None or radius > reach:
                break
            if _moves_along(network, width, Field(radius, grid), transposed):
                return Field(radius, grid)
    return None


def _run(network: Generator, lr: Tensor, transposed: bool) -> Tensor:
    """The SR of [1, 3, _THIN, W]; with ``transposed``, the picture stands upright meanwhile."""
    sr: Tensor = network(lr.mT.contiguous()).mT if transposed else network(lr)
    return sr


def _reach(network: Generator, width: int, grid: int, transposed: bool) -> int | None:
    """How far ``grid`` NaN pixels in the middle reach, from the far end of them; ``None`` if to the border."""
    first = width // 2 // _GRIDS[-1] * _GRIDS[-1]
    lr = torch.zeros(1, 3, _THIN, width)
    lr[..., _THIN // 2, first : first + grid] = torch.nan
    columns = _run(network, lr, transposed).isnan().any(dim=(0, 1, 2))
    reached = columns.reshape(width, network.scale).any(dim=1).nonzero().flatten()
    if not len(reached):
        return 0
    low, high = int(reached[0]), int(reached[-1])
    if low == 0 or high == width - 1:
        return None
    return max(high - first, first + grid - 1 - low)


def _moves_along(network: Generator, width: int, field: Field, transposed: bool) -> bool:
    """Whether the SR of an LR without its first ``grid`` columns is the SR without them, away from the borders."""
    lr = torch.rand(1, 3, _THIN, width, generator=torch.Generator().manual_seed(0))
    whole = _run(network, lr, transposed)[..., network.scale * field.grid :]
    moved = _run(network, lr[..., field.grid :], transposed)
    away = network.scale * (field.radius + _GRIDS[-1])  # some networks mirror the picture's end to a multiple of 16
    whole, moved = whole[..., away:-away], moved[..., away:-away]
    return bool((whole - moved).abs().max() <= _TOLERANCE * whole.abs().max())
