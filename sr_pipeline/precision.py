"""Numbers and layouts of a run: fp32, tf32 or bf16, and channels last."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sr_pipeline.errors import Fault, UsageError

Precision = Literal["fp32", "tf32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Capture = Literal["off", "graph", "compile"]


@dataclass(frozen=True)
class Mode:
    """How a run computes. The default is torch's own numbers in torch's own order.

    ``bf16`` is mixed precision: where gradients flow, convolutions and matrix products read bfloat16 (8 bits of
    mantissa) and sum in float32; weights, optimizers, losses and whatever lies on a wire stay float32, and so does
    all that no gradient passes, validation for one. ``tf32`` rounds the inputs of float32 products to 10 bits on a
    GPU that can. ``channels_last`` keeps each model's convolutions as [B, H, W, C] in memory: same numbers, summed in
    another order. ``graph`` records a step once, as one CUDA graph, and replays it; ``compile`` has torch compile the
    networks.
    """

    precision: Precision = "fp32"
    memory_format: MemoryFormat = "contiguous"
    capture: Capture = "off"

    def __str__(self) -> str:
        captured = "" if self.capture == "off" else f", capture {self.capture}"
        return f"{self.precision}, {self.memory_format}{captured}"

    def autocast(self, device: torch.device) -> torch.autocast:
        """In which a node runs that gradients flow through."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def rounded_once(self, device: torch.device) -> AbstractContextManager[Any]:
        """Around a step: weights that several nodes read are rounded to bfloat16 once. Whoever changes weights inside
        calls ``torch.clear_autocast_cache``, because what is kept is what they were."""
        return torch.autocast(device.type, enabled=False) if self.precision == "bf16" else nullcontext()

    @contextmanager
    def products(self, device: torch.device) -> Iterator[None]:
        """Inside, float32 products on a GPU are in full or, with tf32, in 10 bits of mantissa; elsewhere as ever."""
        if device.type != "cuda":  # torch refuses its older names for these once the newer ones were used
            yield
            return
        matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before = matmul.fp32_precision, conv.fp32_precision
        matmul.fp32_precision = conv.fp32_precision = "tf32" if self.precision == "tf32" else "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision, conv.fp32_precision = before

    def lay_out(self, values: Iterable[Any]) -> None:
        """Bring the models among some values into the memory format, in place."""
        layout = torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format
        for module in (value for value in values if isinstance(value, nn.Module)):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.dim() == 4:  # Module.to refuses a module that has five-dimensional ones
                    tensor.data = tensor.data.contiguous(memory_format=layout)


def chosen_mode(precision: str, memory_format: str, device: torch.device) -> Mode:
    """The mode of these names; ``auto`` takes what is fastest on the device.

    bf16 where ``is_fast_in_bf16`` says so, else tf32 on a GPU and fp32 on a CPU; channels_last but for fp32 on a GPU,
    whose kernels are for torch's own layout: on an H100 a step is 0.85 of the time in it.

    Raises:
        UsageError: there is no such precision or format.
    """
    for flag, name, known in (
        ("--precision", precision, get_args(Precision)),
        ("--memory-format", memory_format, get_args(MemoryFormat)),
    ):
        if name not in (*known, "auto"):
            raise UsageError(f"{flag} {name}", "is unknown", f"give one of {', '.join(known)}, auto")
    if precision == "auto":
        precision = "bf16" if is_fast_in_bf16(device) else "tf32" if device.type == "cuda" else "fp32"
    if memory_format == "auto":
        memory_format = "contiguous" if precision == "fp32" and device.type == "cuda" else "channels_last"
    return Mode(precision, memory_format)  # type: ignore[arg-type]


def is_fast_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16: CUDA 8.0 and later, and CPUs with AMX.

    With AMX, SRResNet is 2 to 4 times as fast as in fp32. A CPU that has AVX512-BF16 alone takes 1.2 to 2 times as
    long, and one without either 4 times and more. AMX that ``ONEDNN_MAX_CPU_ISA`` forbids is none.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    allowed = limit in ("ALL", "DEFAULT") or "AMX" in limit
    return device.type == "cpu" and allowed and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def slower(mode: Mode, device: torch.device) -> tuple[Fault, ...]:
    """What is to be said of numbers that the device computes more slowly than float32."""
    if mode.precision != "bf16" or is_fast_in_bf16(device):
        return ()
    what = f"this {device.type} has no units for bf16, and a step takes longer in it than in fp32"
    return (Fault("--precision bf16", what, "--precision auto takes what is fastest here"),)


def as_float32(result: Any) -> Any:
    """A node's result with its bfloat16 tensors as float32, which is what lies on a wire."""
    if isinstance(result, Tensor):
        return result.float() if result.dtype == torch.bfloat16 else result
    if isinstance(result, tuple):
        parts = [as_float32(part) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result
