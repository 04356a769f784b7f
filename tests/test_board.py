"""Sums through memory that processes share: right however the processes are late, and never waited for in vain."""

from __future__ import annotations

import os
import platform
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from sr_pipeline import board

SIZE = 3


def join(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)


def leave() -> None:
    board.forget()
    dist.destroy_process_group()


def sum_late(rank: int, folder: Path) -> None:
    """Whole numbers, whose sums have no rounding; each process knows those of all, and some come late."""
    join(rank, folder)
    rng, dawdler = np.random.default_rng(0), random.Random(rank)
    for length in [*range(1, 400), 9000, 5]:
        numbers = rng.integers(-1000, 1000, (SIZE, length)).astype(float)
        if dawdler.random() < 0.1:
            time.sleep(dawdler.random() / 50)
        assert (board.summed(numbers[rank]) == numbers.sum(0)).all(), length
    named = [path.name for path in Path("/dev/shm").glob(f"sr-pipeline-{os.getpid()}-*")]
    (folder / str(rank)).write_text(f"{named} {board._board(dist.group.WORLD) is not None}")
    leave()


def sum_without(rank: int, folder: Path) -> None:
    """As on another system, or where that memory is full: by messages."""
    board._SHARED = folder / "none"
    sum_late(rank, folder)


@pytest.mark.parametrize("do", [sum_late, sum_without])
def test_each_process_has_the_sum_of_all(do: object, tmp_path: Path) -> None:
    spawn(do, (tmp_path,), SIZE)  # type: ignore[no-untyped-call]
    here = platform.system() == "Linux" and platform.machine() == "x86_64"
    for rank in range(SIZE):
        assert (tmp_path / str(rank)).read_text() == f"[] {here and do is sum_late}"


def lose_one(rank: int, folder: Path) -> None:
    join(rank, folder)
    for _ in range(3):
        board.summed(np.ones(4))
    if rank == SIZE - 1:
        os._exit(0)
    try:
        board.summed(np.ones(4))
    except RuntimeError as error:
        (folder / str(rank)).write_text(type(error).__name__)
    os._exit(0)  # a group with a lost process cannot be left


def test_a_process_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    spawn(lose_one, (tmp_path,), SIZE)  # type: ignore[no-untyped-call]
    for rank in range(SIZE - 1):
        assert (tmp_path / str(rank)).read_text() in ("DistError", "RuntimeError")
