"""The kernels that recorded networks launch compile for a GPU of Hopper's kind: Triton needs none to do it.

What they compute is tested by Triton's interpreter (interpreted_kernels.py), which takes what its compiler refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import getmembers
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sr_nodes import fused
from sr_nodes.discriminators import SRGANDiscriminator
from sr_nodes.features import vgg19
from sr_nodes.srresnet import SRResNet

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("sr_nodes._fused.kernels")
SHARED = 227 * 1024
"""Bytes of memory that a program may have at most."""
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}


class Launched:
    """In a kernel's place: keeps what it is launched with, and does nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *given, **options: self.calls.append((given, options))

    def compiled(self, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """As Triton specialises it: constants, None and 1 are compiled in, and what 16 divides is known to be so."""
        signature, constants, attributes = {}, {}, {}
        for number, (parameter, value) in enumerate(zip(self.kernel.params, given, strict=True)):
            if parameter.is_constexpr or value is None or (type(value) in (bool, int) and value in (0, 1)):
                signature[parameter.name] = "constexpr"
                constants[(number,)] = value
                continue
            kind = TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"
            signature[parameter.name] = kind
            if isinstance(value, Tensor) or value % 16 == 0:
                attributes[(number,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, signature, constants, attributes)
        hopper = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        return triton.compile(source, target=hopper, options=options)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Launched]]:
    """Amid what the networks take for a recorded step in bf16."""
    public = [(name, kernel) for name, kernel in getmembers(kernels) if hasattr(kernel, "params") and name[0] != "_"]
    found = {name: Launched(kernel) for name, kernel in public}
    for name, kernel in found.items():
        monkeypatch.setattr(kernels, name, kernel)
    monkeypatch.setattr(fused, "_is_mixed", lambda x: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda *given: F.conv2d(*given).relu())
    with torch.autocast("cpu", torch.bfloat16):
        yield found


@pytest.mark.parametrize("slopes", [False, True])
def test_kernels_of_the_papers_networks_compile(slopes: bool, launched: dict[str, Launched]) -> None:
    """At the paper's channels and rows of the generator, and with fewer; of each kernel, each way in which it is
    launched."""
    generator = SRResNet(4, 1, 64, prelu="channel" if slopes else "layer")
    others = SRResNet(2, 1, 32), SRResNet(2, 1, 16)
    for net, batch, side in ((generator, 16, 24), (SRGANDiscriminator(96), 2, 96), *((net, 2, 24) for net in others)):
        net.to(memory_format=torch.channels_last)
        net(torch.rand(batch, 3, side, side)).float().sum().backward()
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    vgg19("22").requires_grad_(False)(image).float().sum().backward()
    assert {name for name, kernel in launched.items() if not kernel.calls} == set()
    ways = {
        (name, tuple(str(x) if not isinstance(x, Tensor) else x.dtype for x in given)): (kernel, given, options)
        for name, kernel in launched.items()
        for given, options in kernel.calls
    }
    for kernel, given, options in ways.values():
        assert kernel.compiled(given, options).metadata.shared <= SHARED
