"""What would many GPUs gain? A model: the bytes and the messages of a step over the links, against the step's time.

    python benchmarks/scale_model.py [--network srgan] [--step-ms 4] [--json]

Each GPU computes the paper's batch of 16 in ``--step-ms``; so the global batch grows with their number. Gradients are
averaged by a ring: each GPU sends and receives 2 (N - 1) / N times their bytes, at most beside the backward pass, which
is half of the step. BatchNorm over the joined batch sends two small messages a layer and pass, and each waits for the
slowest link; nothing is computed meanwhile. The links are nominal: NVLink 4 inside a machine of 8, and InfiniBand NDR,
one port a GPU, between machines.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from torch import nn

from sr_nodes.discriminators import discriminator
from sr_nodes.srresnet import srresnet

INSIDE, BETWEEN = 450e9, 50e9
"""Bytes a second and GPU, in one direction."""
HOP_INSIDE, HOP_BETWEEN = 10e-6, 5e-6
"""Seconds of a small message: all that is inside one machine; and each doubling of the number of machines."""
PASSES = {"generator": 1, "discriminator": 3}
"""Training passes a step: the discriminator judges HR, SR, and SR again for the generator."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=("srresnet", "srgan"), default="srgan")
    parser.add_argument("--step-ms", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    networks: dict[str, nn.Module] = {"generator": srresnet()}
    if options.network == "srgan":
        networks["discriminator"] = discriminator()
    rows = [row(networks, number, options.step_ms / 1000) for number in (1, 8, 64, 512)]
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    return 0


def row(networks: dict[str, nn.Module], number: int, step: float) -> dict[str, Any]:
    sent = 4 * sum(p.numel() for net in networks.values() for p in net.parameters())
    norms = {name: sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for name, net in networks.items()}
    messages = sum(2 * PASSES[name] * count for name, count in norms.items())
    ring = 2 * (number - 1) / number * sent / (INSIDE if number <= 8 else BETWEEN)
    hop = 0.0 if number == 1 else HOP_INSIDE + HOP_BETWEEN * math.ceil(math.log2(max(number / 8, 1)))
    left, waits = max(0.0, ring - step / 2), messages * hop
    found = {"gpus": number, "gradient_mb": sent / 1e6, "ring_ms": 1e3 * ring, "norm_messages": messages}
    found |= {"norm_ms": 1e3 * waits, "efficiency": step / (step + left + waits), "without_sync": step / (step + left)}
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(f"{value:g}" for value in row.values()) + " |" for row in rows)])


if __name__ == "__main__":
    sys.exit(main())
