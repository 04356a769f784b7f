"""How a run's steps are captured: what ``--capture`` means on a device, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch import nn

from sr_pipeline.cudagraph import CudaGraph
from sr_pipeline.errors import CaptureError, Fault, UsageError
from sr_pipeline.execute import Executor
from sr_pipeline.plan import Plan
from sr_pipeline.plan.parts import EAGER, parts
from sr_pipeline.precision import Capture
from sr_pipeline.recording import RecordedStep


@contextmanager
def capturing(executor: Executor) -> Iterator[None]:
    """Inside, the executor's steps run as its mode's ``capture`` says."""
    kind, device, compiled = executor.context.mode.capture, executor.context.device, list[nn.Module]()
    recorded = None
    if kind == "graph" or (kind == "compile" and not _unrecordable(executor.plan, device)):
        recorded = RecordedStep(executor, parts(executor.plan), CudaGraph(device))

    def compile_first(step: int, last: bool) -> None:
        compiled.extend({id(value): value for value in executor.values if isinstance(value, nn.Module)}.values())
        for module in compiled:
            module.compile()
        executor.instead = recorded
        if recorded:
            recorded(step, last)
        else:
            executor.run_due(executor.steps, step, last)

    executor.instead = compile_first if kind == "compile" else recorded
    try:
        yield
    finally:
        executor.instead = None
        if recorded:
            recorded.end()
        for module in compiled:  # a cache may give it to another run
            module._compiled_call_impl = None


def chosen_capture(
    name: str, plan: Plan, device: torch.device, alone: bool = True
) -> tuple[Capture, tuple[Fault, ...]]:
    """What ``--capture`` means for a plan on a device, and why it is less than was asked for.

    ``auto`` is a graph on CUDA where the plan allows one, and off elsewhere: compiled networks gain nothing on a CPU. A
    step with compiled networks is recorded as well where it can be.

    Raises:
        UsageError: there is no such capture.
    """
    if name not in (*get_args(Capture), "auto"):
        raise UsageError(f"--capture {name}", "is unknown", f"give one of {', '.join(get_args(Capture))}, auto")
    if name == "off" or (name == "auto" and not (device.type == "cuda" and plan.trains)):
        return "off", ()
    if not alone:
        return "off", (Fault(f"--capture {name}", "several processes share the run", EAGER),)
    refused = _unrecordable(plan, device)
    if name != "compile":
        return ("off", refused) if refused else ("graph", ())
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except (RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        return "off", (Fault("--capture compile", f"torch cannot compile here: {reason}", EAGER),)
    return "compile", refused if device.type == "cuda" else ()


def _unrecordable(plan: Plan, device: torch.device) -> tuple[Fault, ...]:
    """Why a step of the plan cannot be recorded on the device; empty where it can."""
    if device.type != "cuda":
        return (Fault("--capture graph", f"{device} has no CUDA graphs", EAGER),)
    try:
        parts(plan)
    except CaptureError as error:
        return error.faults
    return ()
