"""What does a GPU do in a recorded step? A replay's time and memory, its kernels, and a picture of them.

    python benchmarks/replay.py [--network srgan] [--rounds 40] [--name replay-srgan] [--json] [--quick] [--out FOLDER]

The step is the paper's in the default mode of ``run``, on synthetic batches. ``replay_ms`` is the CUDA graph alone, by
events around it; ``step_ms`` the engine's whole step, in a row of 60. ``kernels`` are those of one replay under torch's
profiler, under which it takes a few percent longer: how many there are, ``busy`` the share of the time in which any is
at work, and by name how often each runs and how long in all. Kernels that run beside each other share the GPU, so their
sum is more than the replay. With ``--out`` and matplotlib the picture lies beside the JSON: a bar a kernel, a row for
each branch. --quick is a small step. It needs a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from loops import Size
from measure import arguments, device_of, machine, publish, slug, spread, tell, timed
from sr_pipeline.recording import RecordedStep
from step import QUICK, Ours, default_mode, synthetic

STEPS, PROFILED = 60, 3
KINDS = {
    "convolutions and products": ("xmma", "cutlass", "nvjet", "convolve", "gemm", "cudnn"),
    "BatchNorm and activations": ("statistics", "normalise", "gradients", "relu", "shuffle", "pool"),
    "optimizers": ("FusedOpti", "fused_adam"),
    "the rest": ("",),
}
"""By words in a kernel's name, the first that fits."""


class Kernel(NamedTuple):
    """One kernel's run; times are microseconds since the replay began."""

    name: str
    stream: int
    begin: float
    length: float

    @property
    def kind(self) -> str:
        return next(kind for kind, words in KINDS.items() if any(word in self.name for word in words))


def profiled(replay: Callable[[], None]) -> list[Kernel]:
    """The kernels of the last of a few replays."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(PROFILED):
            replay()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    ours = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    ours.sort(key=lambda event: float(event["ts"]))
    last = ours[len(ours) * (PROFILED - 1) // PROFILED :]
    return [Kernel(event["name"], event["args"]["stream"], event["ts"] - last[0]["ts"], event["dur"]) for event in last]


def summary(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """How many there are, for how much of the time any is at work, and what each takes, the longest first."""
    names, busy, until = defaultdict[str, list[float]](list), 0.0, 0.0
    for kernel in sorted(kernels, key=lambda kernel: kernel.begin):
        end = kernel.begin + kernel.length
        busy += max(0.0, end - max(kernel.begin, until))
        until = max(until, end)
        names[short_name(kernel.name)].append(kernel.length)
    by_name = {name: {"times": len(took), "us": round(sum(took), 1)} for name, took in names.items()}
    ranked = dict(sorted(by_name.items(), key=lambda item: -item[1]["us"]))
    return {"number": len(kernels), "us": round(until, 1), "busy": round(busy / until, 3), "by_name": ranked}


def short_name(name: str) -> str:
    """Without namespaces, and of a template's arguments the first few characters.

    >>> short_name("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >(int)")
    'vectorized_elementwise_kernel<4, FillFunctor<float> >(int)'
    """
    plain = name.removeprefix("void ")
    for space in ("at::native::", "(anonymous namespace)::", "cutlass__5x_cudnn::", "cask_plugin__5x_cudnn::"):
        plain = plain.replace(space, "")
    return plain[:72]


def lanes(kernels: Iterable[Kernel], apart: float = 20.0) -> list[list[Kernel]]:
    """Branches of kernels, in few rows: a stream's run of kernels, with no pause of ``apart`` or more, is one."""
    streams = defaultdict[int, list[Kernel]](list)
    for kernel in sorted(kernels, key=lambda kernel: kernel.begin):
        streams[kernel.stream].append(kernel)
    runs: list[list[Kernel]] = []
    for of_one in streams.values():
        runs.append(of_one[:1])
        for before, kernel in pairwise(of_one):
            if kernel.begin - before.begin - before.length > apart:
                runs.append([])
            runs[-1].append(kernel)
    rows: list[list[Kernel]] = []
    for run in sorted(runs, key=lambda run: run[0].begin):
        free = (row for row in rows if row[-1].begin + row[-1].length + apart / 2 < run[0].begin)
        row = next(free, None)
        if row is None:
            rows.append(row := [])
        row.extend(run)
    return rows


def picture(kernels: Sequence[Kernel], title: str, path: Path) -> None:
    """A bar for each kernel, a row for each branch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = lanes(kernels)
    figure = Figure(figsize=(13, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for colour, kind in zip(("#2f6db5", "#e08a2e", "#b5342f", "#9aa5b1"), KINDS, strict=True):
        for number, row in enumerate(rows):
            bars = [(kernel.begin, kernel.length) for kernel in row if kernel.kind == kind]
            axes.broken_barh(bars, (number - 0.4, 0.8), facecolors=colour, label=kind if number == 0 else None)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="microseconds", yticks=[], xlim=(0, max(k.begin + k.length for k in kernels)))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.3 / len(rows)), ncols=4, frameon=False)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def measured(gan: bool, size: Size, rounds: int, device: torch.device) -> tuple[dict[str, Any], list[Kernel]]:
    mode, data = default_mode(device), synthetic(size, device)
    torch.cuda.reset_peak_memory_stats()
    ours = Ours(size, mode, device, gan)
    batches = [next(data) for _ in range(4)]

    def steps(number: int) -> None:
        for n in range(number):
            ours(batches[n % len(batches)])

    steps(8)
    step = ours.executor.instead
    if not isinstance(step, RecordedStep) or step.kept is None:
        raise SystemExit(f"the step is not recorded in the mode {mode}")
    steps(STEPS)
    found = {
        "mode": str(mode),
        "replay_ms": spread([replayed(step.recording.replay) for _ in range(rounds)]),
        "step_ms": spread([1000 * timed(lambda: steps(STEPS), 1, device=device) / STEPS for _ in range(5)]),
        "peak_mib": torch.cuda.max_memory_allocated() >> 20,
        "reserved_mib": torch.cuda.max_memory_reserved() >> 20,
    }
    kernels = profiled(step.recording.replay)
    return found | {"kernels": summary(kernels)}, kernels


def replayed(replay: Callable[[], None]) -> float:
    """Milliseconds of one replay on the device."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    replay()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--network", choices=["srgan", "srresnet"], default="srgan")
    parser.add_argument("--rounds", type=int, default=40)
    options: argparse.Namespace = parser.parse_args()
    device = device_of(options)
    if device.type != "cuda":
        tell(f"{device} records no steps; this is for a CUDA device")
        return 1
    size = QUICK if options.quick else Size()
    found, kernels = measured(options.network == "srgan", size, options.rounds, device)
    name = options.name or f"replay-{options.network}"
    result = {"machine": machine(device), "network": options.network, "size": size.__dict__, **found}
    publish(name, result, options)
    if options.out:
        ms = found["replay_ms"]["median"]
        title = f"One step of {options.network.upper()} on {torch.cuda.get_device_name(device)}: {ms:.2f} ms"
        try:
            picture(kernels, title, options.out / f"{name}.{slug(machine(device))}.png")
        except ImportError:
            tell("no picture: it needs matplotlib, which is in the extra plot")
    return 0


if __name__ == "__main__":
    sys.exit(main())
