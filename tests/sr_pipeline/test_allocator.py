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

BLOCK = 16 * 2**20  # floats: 64 MiB, twice what glibc would ever keep by itself

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(BLOCK)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

found = {"before": faults()}
with kept_memory():
    for _ in range(12):  # aligned blocks wander at first
        torch.ones(BLOCK)
    found["inside"] = faults()
    found["kept"] = resident()
found["given_back"] = found.pop("kept") - resident()
found["after"] = faults()
print(json.dumps(found))
"""


@pytest.mark.skipif(_glibc() is None, reason="the C library is not glibc")
def test_what_is_freed_is_kept_inside_and_given_back_after() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    pages = 4 * 2**26 // 4096  # of the four blocks
    assert found["inside"] < 0.01 * pages
    if found["before"] > 0.5 * pages:  # where pages are not huge ones
        assert found["after"] > 0.5 * pages
    assert found["given_back"] > 0.9 * 2**26
