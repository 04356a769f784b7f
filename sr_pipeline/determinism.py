"""The same bits each time on one machine: torch's deterministic algorithms, and a fixed number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sr_pipeline.errors import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED = (":4096:8", ":16:8")
"""Workspaces with which cuBLAS gives the same bits, by NVIDIA's documentation; it reads them when CUDA starts."""


@contextmanager
def deterministic(on: bool, device: torch.device) -> Iterator[None]:
    """Inside, an operation of torch's gives the same bits each time, or raises where it has no way to; as before after.

    Raises:
        UsageError: CUDA was started with a cuBLAS workspace that does not.
    """
    if not on:
        yield
        return
    if device.type == "cuda" and os.environ.get(WORKSPACE) not in _FIXED:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            what = f"CUDA was started in this process without {WORKSPACE}"
            raise UsageError("--deterministic", what, f"set {WORKSPACE}={_FIXED[0]} before it starts")
        os.environ[WORKSPACE] = _FIXED[0]  # and left so: CUDA reads it once
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn_before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = cudnn_before


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Inside, torch computes with so many threads on the CPU; sums of another number differ in their last bits.

    Raises:
        UsageError: it is no number of threads.
    """
    if number is not None and not 1 <= number <= 1024:
        raise UsageError(f"--threads {number}", "is no number of threads", "give 1 to 1024")
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
