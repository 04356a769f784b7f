"""What a command must not pay for: modules that only one node in a hundred runs needs."""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = ("torchvision", "torch._dynamo", "torch._inductor", "sympy", "matplotlib", "spandrel", "torchmetrics", "onnx")


def test_the_packs_are_loaded_without_what_is_slow_to_load() -> None:
    """torchvision alone takes three seconds, because its models load torch's compiler."""
    code = f"import sys; from sr_pipeline.registry import load_packs; import sr_pipeline.run; load_packs(); \
print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
