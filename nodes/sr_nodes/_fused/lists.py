"""Kernels over lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sr_nodes._fused.maps import up
from sr_nodes._fused.streams import Beside

_PIECE, _PIECES, _CHUNK = 8192, 288, 65536
"""Numbers of a piece at least, about how many pieces, and what torch's kernels give a multiprocessor at once."""
_MANY = 64
"""Pieces that torch's kernel copies at once."""


def cast_all(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """All in another type, by few kernels beside each other; they are dense."""
    made = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if made:
        into, of = ([piece for pieces in cut(kind) for piece in pieces] for kind in (made, tensors))
        beside = Beside(made[0].device, up(_PIECES, _MANY), calm=False)
        for first in range(0, len(into), _MANY):
            some = slice(first, first + _MANY)
            beside(partial(torch._foreach_copy_, into[some], of[some]))
        beside.join()
    return made


def cut(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of each dense tensor views of its numbers as they lie in memory, so many in all that they keep a GPU at work:
    torch's kernels over lists give a multiprocessor many numbers of one tensor, and take few tensors at once."""
    piece = min(max(_PIECE, up(sum(tensor.numel() for tensor in tensors), _PIECES)), _CHUNK)
    return [list(torch.split(tensor.as_strided((tensor.numel(),), (1,)), piece)) for tensor in tensors]
