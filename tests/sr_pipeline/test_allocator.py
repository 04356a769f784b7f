"""Memory that is freed inside stays with the process; page faults tell."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sr_pipeline.allocator import _glibc

PROGRAM = """
import json, resource
from pathlib import Path
import torch
from sr_pipeline.allocator import kept_memory

BLOCK = 2**24  # floats: 64 MiB, twice what glibc would ever keep by itself

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(BLOCK)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

found = {}
with kept_memory():
    for _ in range(12):  # aligned blocks wander at first
        torch.ones(BLOCK)
    found["faults"] = faults()
    inside = resident()
found["given_back"] = inside - resident()
before = resident()
torch.ones(8 * BLOCK)  # larger than any hole that is left in the heap
found["left"] = resident() - before
print(json.dumps(found))
"""


@pytest.mark.skipif(_glibc() is None, reason="the C library is not glibc")
def test_what_is_freed_is_kept_inside_and_given_back_after() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    block = 4 * 2**24
    assert found["faults"] < 0.01 * 4 * block // 4096
    assert found["given_back"] > 0.9 * block
    assert found["left"] < 0.1 * block
