"""Memory is counted to the byte, and an error that says it ran out is told from others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sr_nodes import memory
from sr_nodes.discriminators import discriminator
from sr_nodes.memory import Budget, Peak, bytes_per_pixel, free_bytes, is_out_of_memory


def test_the_peak_is_what_lives_at_once() -> None:
    with Peak() as peak:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second.view(10, 100)  # no memory of its own
        third.mul_(2)
        del second, third
        last = torch.zeros(1500)
    assert peak.bytes == 8000
    assert last.shape == (1500,)


def test_bytes_for_each_pixel() -> None:
    # [1, 3] in, [1, 8] and [1, 8] alive together after that, in float32; then the input, 8 and 2.
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert bytes_per_pixel(net) == 4 * (3 + 8 + 8)


@pytest.mark.skipif(sys.platform != "linux", reason="compared with /proc/meminfo")
def test_the_free_memory_is_some_of_this_machine() -> None:
    total = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1])
    assert 0 < free_bytes() <= total * 1024


@pytest.mark.parametrize(("limit", "free"), [("max", 1 << 62), ("1000", 400), ("500", 0)])
def test_a_containers_limit_counts(tmp_path: Path, limit: str, free: int) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("600\n")
    assert memory._container(tmp_path) == free


def test_cached_files_are_not_in_use(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 350\ninactive_file_other 1\ninactive_file 150\nactive_file 100\n")
    assert memory._container(tmp_path) == 550


@pytest.mark.parametrize(("limit", "free"), [("9223372036854771712", 1 << 62), ("1000", 550), ("300", 0)])
def test_a_containers_limit_of_the_first_version(tmp_path: Path, limit: str, free: int) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(limit + "\n")
    (folder / "memory.usage_in_bytes").write_text("600\n")
    (folder / "memory.stat").write_text("inactive_file 20\ntotal_inactive_file 150\n")
    assert memory._container(tmp_path) == free


@pytest.mark.parametrize(("folder", "line"), [("", "0::"), ("memory", "7:cpu,memory:")], ids=["v2", "v1"])
def test_the_tightest_limit_of_the_groups_around_counts(tmp_path: Path, folder: str, line: str) -> None:
    """A job of SLURM lies some groups deep, and the root of v2 has no limit."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if folder else ("memory.max", "memory.current")
    for group, limit in (
        ("slurm", "max" if not folder else str(2**63)),
        ("slurm/job_1", "900"),
        ("slurm/job_1/step", "1000"),
    ):
        at = tmp_path / folder / group
        at.mkdir(parents=True)
        for name, number in zip(names, (limit, "600"), strict=True):
            (at / name).write_text(f"{number}\n")
    own = tmp_path / "own"
    own.write_text(f"3:pids:/\n{line}/slurm/job_1/step\n")
    assert memory._container(tmp_path, own) == 300


def test_without_a_container_there_is_no_limit(tmp_path: Path) -> None:
    assert memory._container(tmp_path) == 1 << 62


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes"), True),
        (RuntimeError("expected 3 channels"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, out: bool) -> None:
    assert is_out_of_memory(error) is out


def test_torchs_own_error_is_known() -> None:
    with pytest.raises(RuntimeError, match="you tried to allocate") as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: torch.zeros(10, 10), 400),
        (lambda: torch.empty(100, dtype=torch.float64), 800),
        (lambda: torch.rand(5, 2), 40),
        (lambda: nn.Conv2d(3, 4, 5), 4 * (3 * 4 * 25 + 4)),
        (lambda: nn.Linear(7, 3, bias=False), 84),
        (lambda: torch.full((9,), 2.0), 36),
    ],
)
def test_a_budget_is_kept_to_the_byte(make: Callable[[], object], size: int) -> None:
    with Budget(size, "too much"):
        make()
    with pytest.raises(ValueError, match=r"^too much$"), Budget(size - 1, "too much"):
        make()


def test_a_network_larger_than_the_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(
        ValueError, match=r"^this network's weights need more than the [\d.]+ GB that are free; make it"
    ):
        discriminator(crop=1024, channels=1024, dense=65536)
