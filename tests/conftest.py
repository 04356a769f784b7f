"""What all tests share: counts, and where the data beside the project is."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, for the tests of --deterministic
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # --precision auto is fp32 on every machine

import pytest
import torch
from hypothesis import HealthCheck, settings

from sr_pipeline.registry import Registry, load_packs

FULL = bool(os.environ.get("SR_PIPELINE_FULL"))
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("full", max_examples=500, deadline=None, suppress_health_check=SLOW)
settings.load_profile("full" if FULL else "quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "full" in item.keywords and not FULL:
            item.add_marker(pytest.mark.skip(reason="only in make test-full"))


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All installed nodes."""
    return load_packs()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data that is not shipped; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder
