"""What do more processes gain? One graph, one global batch, by one process and by several, in turn.

    python benchmarks/processes.py [--graph train_srresnet] [--processes 2] [--steps 12] [--rounds 3] [--sync 1]
                                   [--json] [--quick] [--out FOLDER]

Each process has one thread (or one GPU). The seconds of a step are the median of those from the end of one step to
that of the next, by the run's own events, without the first three and the last. ``--sync 0``: BatchNorm over each
process's own part. The speed is the median over the rounds of one process's seconds by those of several. On a CPU
``most`` is the same of as many trainings that know nothing of each other, each on its part of the batch, by the slowest
of them, for whom the others would wait: what the machine gives where nothing is said. ``of_fastest_steps`` are both by
the fastest step of all rounds each: what others do on the machine can only make a step longer, so that these had the
cores for themselves, or nearly. It exits with 1 where the speed is less than 0.9 times the number of processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from measure import DATA, Seconds, arguments, device_of, machine, publish, ratio, short, spread, tell

GOAL = 0.9
QUICK = ["hr.batch=4", "hr.size=48", "generator.blocks=4"]
CRITICS = {"train_srgan"}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--graph", default="train_srresnet")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sync", type=int, default=1, choices=(0, 1))
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    options.threads = 1
    device, settings = device_of(options), [f"generator.sync_batch_norm={str(bool(options.sync)).lower()}"]
    settings.append("content_loss.every=1")
    if options.graph in CRITICS:
        settings += [f"discriminator.sync_batch_norm={str(bool(options.sync)).lower()}"]
    if options.quick:
        settings += [*QUICK, *(["discriminator.crop=48"] if options.graph in CRITICS else [])]
    elif (DATA / "photos").is_dir():
        settings.append(f"photos.folder={DATA / 'photos'}")
    words = [
        "run",
        options.graph,
        "--steps",
        str(40 if options.quick else options.steps),
        "--threads",
        "1",
        "--device",
        device.type,
    ]
    words += ["--precision", options.precision, *(word for setting in settings for word in ("--set", setting))]
    alone, shared = [*words, "--nproc", "1"], [*words, "--nproc", str(options.processes)]
    part = [*alone, "--set", f"hr.batch={(4 if options.quick else 16) // options.processes}"]
    ways = {"one": [alone], "several": [shared]}
    if device.type == "cpu":
        ways["apart"] = [part] * options.processes
    seconds: Seconds = {name: [] for name in ways}
    fastest: Seconds = {name: [] for name in ways}
    for turn in range(1 if options.quick else options.rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            found = trained(ways[name])
            seconds[name].append(max(map(statistics.median, found)))
            fastest[name].append(max(map(min, found)))
            tell(f"round {turn + 1}: {name:<8} {seconds[name][-1]:7.3f} s a step, {fastest[name][-1]:.3f} the fastest")
    least = {name: min(took) for name, took in fastest.items()}
    speed = ratio(seconds, "one", "several")
    most = {"most": ratio(seconds, "one", "apart")} if "apart" in ways else {}
    result = {
        "speed": speed["median"],
        "speed_spread": speed,
        **most,
        "of_fastest_steps": {
            **{name: short(least["one"] / took) for name, took in least.items() if name != "one"},
            "seconds": {name: short(took) for name, took in least.items()},
        },
        "seconds_per_step": {name: spread(took) for name, took in seconds.items()},
        "processes": options.processes,
        "graph": options.graph,
        "sync_batch_norm": bool(options.sync),
        "precision": options.precision,
        "steps": options.steps,
        "machine": machine(device),
    }
    publish("processes", result, options)
    return int(speed["median"] < GOAL * options.processes and not options.quick)


def trained(commands: list[list[str]]) -> list[list[float]]:
    """Seconds of each step of runs that go on side by side."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / f"run-{number}" for number in range(len(commands))]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "sr_pipeline", *words, "--run-dir", folder], stdout=subprocess.DEVNULL
            )
            for words, folder in zip(commands, folders, strict=True)
        ]
        if any(process.wait() for process in started):
            raise RuntimeError("a run failed")
        return [step_seconds(folder) for folder in folders]


def step_seconds(folder: Path) -> list[float]:
    """Of a run, from its events."""
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    told = {event["step"]: event["time"] for event in events if event["type"] == "scalar"}
    ends = sorted({time: step for step, time in sorted(told.items())}.items())  # of steps told together, the last
    ends = ends[2:-1] if len(ends) > 4 else ends  # the last one validates too
    return [(after - before) / (step - last) for (before, last), (after, step) in pairwise(ends)]


if __name__ == "__main__":
    sys.exit(main())
