"""What a command must not pay for: modules that only one node in a hundred runs needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("torchvision", "torch._dynamo", "torch._inductor", "sympy", "matplotlib", "spandrel", "torchmetrics", "onnx")


def test_the_packs_are_loaded_without_what_is_slow_to_load() -> None:
    """torchvision alone takes three seconds, because its models load torch's compiler."""
    code = f"import sys; from sr_pipeline.registry import load_packs; import sr_pipeline.run; load_packs(); \
print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


COLLECTS = """
import gc
from sr_pipeline.node import node

@node(output=True)
def collects() -> str:
    return f"{gc.isenabled()} {gc.get_freeze_count() > 100_000}"

@node(output=True)
def tell(text: str) -> None:
    print(text)
"""


def test_garbage_is_collected_while_nodes_run(tmp_path: Path) -> None:
    """But not while modules are imported, and of them nothing."""
    (tmp_path / "collects.py").write_text(COLLECTS)
    nodes = '{"c": {"class_type": "collects", "inputs": {}}, "t": {"class_type": "tell", "inputs": {"text": ["c", 0]}}}'
    (tmp_path / "graph.json").write_text(nodes)
    words = [sys.executable, "-m", "sr_pipeline", "run", "graph.json", "--pack", "collects.py", "--run-dir", "run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ)
    assert "True True" in done.stdout.splitlines()
