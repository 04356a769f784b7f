"""Memsets of a CUDA graph as kernels. What follows a memset waits 5 to 15 us for it, and for a kernel one; cuDNN and
cuBLAS clear a counter or a sum before every other convolution."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from typing import Any

import torch

_SOURCE = b"""
extern "C" __global__ void fill(unsigned int *words, unsigned int value, unsigned long long count) {
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride)
        words[i] = value;
}
"""
_THREADS, _BLOCKS = 256, 1024


def as_kernels(graph: torch.cuda.CUDAGraph, device: torch.device) -> int:
    """Put a kernel in the place of each memset of one row of whole words, with the same neighbours; tell of how many.

    The graph was made with ``keep_graph`` and is not instantiated. Nothing happens without NVIDIA's ``cuda.bindings``
    of CUDA 13, which torch brings where it was built for that, or where they make no kernel.

    Raises:
        RuntimeError: CUDA does not do what it is told.
    """
    if not _has_bindings() or (filler := _filler(device)) is None:
        return 0
    from cuda.bindings import driver

    raw = driver.CUgraph(graph.raw_cuda_graph())
    _, number = _done(driver.cuGraphGetNodes(raw))
    nodes, _ = _done(driver.cuGraphGetNodes(raw, number))
    kinds = driver.CUgraphNodeType
    memsets = [node for node in nodes if _kind(node) == kinds.CU_GRAPH_NODE_TYPE_MEMSET]
    return sum(_replaced(raw, node, filler) for node in memsets)


def _replaced(graph: Any, node: Any, function: Any) -> bool:
    from cuda.bindings import driver

    (memset,) = _done(driver.cuGraphMemsetNodeGetParams(node))
    count, left = divmod(memset.width * memset.elementSize, 4)
    if memset.height != 1 or not count or left or int(memset.dst) % 4:
        return False
    before = _neighbours(driver.cuGraphNodeGetDependencies, node)
    after = _neighbours(driver.cuGraphNodeGetDependentNodes, node)
    kernels = [n for n in (*after, *before) if _kind(n) == driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL]
    bits = 8 * memset.elementSize
    value = sum((memset.value & ((1 << bits) - 1)) << shift for shift in range(0, 32, bits))
    params = driver.CUDA_KERNEL_NODE_PARAMS()
    params.func = function
    params.gridDimX, params.gridDimY, params.gridDimZ = min(_BLOCKS, -(-count // _THREADS)), 1, 1
    params.blockDimX, params.blockDimY, params.blockDimZ = _THREADS, 1, 1
    params.sharedMemBytes = 0
    given = (int(memset.dst), value, count)
    params.kernelParams = (given, (ctypes.c_void_p, ctypes.c_uint, ctypes.c_ulonglong))
    (kernel,) = _done(driver.cuGraphAddKernelNode(graph, before, len(before), params))
    if kernels:
        priority = driver.CUkernelNodeAttrID.CU_LAUNCH_ATTRIBUTE_PRIORITY
        (urgency,) = _done(driver.cuGraphKernelNodeGetAttribute(kernels[0], priority))
        _done(driver.cuGraphKernelNodeSetAttribute(kernel, priority, urgency))
    _done(driver.cuGraphAddDependencies(graph, [kernel] * len(after), after, None, len(after)))
    _done(driver.cuGraphDestroyNode(node))
    return True


def _neighbours(ask: Any, node: Any) -> list[Any]:
    """The nodes before or after one."""
    *_, number = _done(ask(node))
    return list(_done(ask(node, number))[0])[:number]


def _kind(node: Any) -> Any:
    from cuda.bindings import driver

    return _done(driver.cuGraphNodeGetType(node))[0]


def _done(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call gave beside its result, which is zero where it did what it was told."""
    result, *given = answer
    if int(result):
        raise RuntimeError(f"CUDA says {result.name} of a recorded step's memset")
    return tuple(given)


@cache
def _has_bindings() -> bool:
    try:
        from cuda import bindings
    except ImportError:
        return False
    return int(bindings.__version__.partition(".")[0]) >= 13


@cache
def _filler(device: torch.device) -> Any:
    """The kernel, for a device; None where none is made, which is told once."""
    from cuda.bindings import driver

    try:
        with torch.cuda.device(device):
            (module,) = _done(driver.cuModuleLoadData(_compiled(torch.cuda.get_device_capability(device))))
            return _done(driver.cuModuleGetFunction(module, b"fill"))[0]
    except Exception as error:  # noqa: BLE001  whatever a compiler says
        reason = str(error).strip().partition("\n")[0]
        what = "memsets of recorded steps stay, and take a few percent of them"
        warnings.warn(f"CUDA makes no kernel that fills memory ({reason}); {what}", RuntimeWarning, stacklevel=2)
        return None


def _compiled(capability: tuple[int, int]) -> bytes:
    """The kernel's code for a device."""
    from cuda.bindings import nvrtc

    (program,) = _done(nvrtc.nvrtcCreateProgram(_SOURCE, b"fill.cu", 0, [], []))
    try:
        options = [b"--gpu-architecture=sm_%d%d" % capability]
        _done(nvrtc.nvrtcCompileProgram(program, len(options), options))
        (size,) = _done(nvrtc.nvrtcGetCUBINSize(program))
        code: bytes = b" " * size
        _done(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return code
