"""How a run's steps are captured: what ``--capture`` means on a device, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch import nn

from sr_pipeline.errors import CaptureError, Fault, UsageError
from sr_pipeline.execute import Executor
from sr_pipeline.plan import Plan
from sr_pipeline.plan.parts import EAGER, parts
from sr_pipeline.precision import Capture
from sr_pipeline.recording import CudaGraph, RecordedStep


@contextmanager
def capturing(executor: Executor) -> Iterator[None]:
    """Inside, the executor's steps run as its mode's ``capture`` says."""
    kind, compiled = executor.context.mode.capture, list[nn.Module]()

    def compile_first(step: int, last: bool) -> None:
        compiled.extend({id(value): value for value in executor.values if isinstance(value, nn.Module)}.values())
        for module in compiled:
            module.compile()
        executor.instead = None
        executor.run_due(executor.steps, step, last)

    if kind == "graph":
        executor.instead = RecordedStep(executor, parts(executor.plan), CudaGraph(executor.context.device))
    elif kind == "compile":
        executor.instead = compile_first
    try:
        yield
    finally:
        executor.instead = None
        for module in compiled:  # a cache may give it to another run
            module._compiled_call_impl = None


def chosen_capture(
    name: str, plan: Plan, device: torch.device, alone: bool = True
) -> tuple[Capture, tuple[Fault, ...]]:
    """What ``--capture`` means for a plan on a device, and why it is less than was asked for.

    ``auto`` is a graph on CUDA where the plan allows one, and off elsewhere: compiled networks gain nothing on a CPU.

    Raises:
        UsageError: there is no such capture.
    """
    if name not in (*get_args(Capture), "auto"):
        raise UsageError(f"--capture {name}", "is unknown", f"give one of {', '.join(get_args(Capture))}, auto")
    if name == "off" or (name == "auto" and not (device.type == "cuda" and plan.trains)):
        return "off", ()
    try:
        if not alone:
            raise CaptureError(f"--capture {name}", "several processes share the run", EAGER)
        if name == "compile":
            _check_compiler(device)
            return "compile", ()
        if device.type != "cuda":
            raise CaptureError(f"--capture {name}", f"{device} has no CUDA graphs", EAGER)
        parts(plan)
    except CaptureError as error:
        return "off", error.faults
    return "graph", ()


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except (RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CaptureError("--capture compile", f"torch cannot compile here: {reason}", EAGER) from error
