"""What do more processes gain? One graph, one global batch, by one process and by several, a step in turn.

    python benchmarks/processes.py [--graph train_srresnet] [--processes 2] [--rounds 40] [--sync 1]
                                   [--json] [--quick] [--out FOLDER]

Each way is a ``sr-pipeline run`` of its own, of one thread (or one GPU) a process. All are there at once, and take
turns of one step: a step begins when this one says so (turns.py), and ends when the last process of the way has told
its end; the others sleep meanwhile. So what else the machine does meets all alike. ``--sync 0``: BatchNorm over each
process's own part. The speed is the median over the rounds of one process's seconds by those of several in the same
round. On a CPU ``most`` is the same of as many trainings that know nothing of each other, each on its part of the
batch, by the slowest of them, for whom the others would wait: what the machine gives where nothing is said, and
``of_most`` what of that those have which share the run. ``of_fastest_steps`` are both by the fastest step of all rounds
each: what others do on the machine can only make a step longer, so that these had the cores for themselves, or nearly.
It exits with 1 where the speed is less than 0.9 times the number of processes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import measure
from measure import DATA, HERE, Seconds, arguments, device_of, in_turn, machine, publish, ratio, short, spread
from sr_nodes.assets import graphs
from turns import PLACE

GOAL = 0.9
UNCOUNTED = 3
"""Steps at first that are not timed, in which memory is taken."""
QUICK = ["hr.batch=4", "hr.size=48", "generator.blocks=4"]
CRITICS = {"train_srgan"}


class Way:
    """Runs that do their steps side by side, when told."""

    def __init__(self, commands: list[list[str]], processes: int, place: Path) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(place))
        self.listening.listen(processes)
        self.processes, self.links = processes, list[socket.socket]()
        environment = os.environ | {PLACE: str(place)}
        self.runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for command in commands]

    def begin(self) -> None:
        """Wait for the first step of each."""
        self.listening.settimeout(1.0)
        while len(self.links) < self.processes:
            if any(run.poll() for run in self.runs):
                raise RuntimeError("a run failed")
            try:
                self.links.append(self.listening.accept()[0])
            except TimeoutError:
                continue
        self._hear()

    def __call__(self, times: int) -> float:
        """Seconds of so many steps."""
        began = measure.clock()
        for _ in range(times):
            for link in self.links:
                link.sendall(b"x")
            self._hear()
        return measure.clock() - began

    def _hear(self) -> None:
        if not all(link.recv(1) for link in self.links):
            raise RuntimeError("a run failed")

    def end(self) -> None:
        """Let them go on without turns: they have done their last step, or something failed."""
        for link in self.links:
            link.close()
        self.listening.close()
        for run in self.runs:
            try:
                run.wait(60)
            except subprocess.TimeoutExpired:
                run.terminate()
                run.wait()


@contextmanager
def started(ways: dict[str, list[list[str]]], processes: dict[str, int]) -> Iterator[dict[str, Way]]:
    """They are built side by side."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        made = dict[str, Way]()
        for number, (way, commands) in enumerate(ways.items()):
            folders = [f"--run-dir={name}/run-{number}-{n}" for n in range(len(commands))]
            words = [[*command, folder] for command, folder in zip(commands, folders, strict=True)]
            made[way] = Way(words, processes[way], Path(name) / f"turns-{number}")
            stack.callback(made[way].end)
        for one in made.values():
            one.begin()
        yield made


def in_turns(graph: str, folder: Path) -> Path:
    """A copy of a shipped graph, whose steps wait for their turn, and which makes nothing but steps."""
    content = json.loads((graphs() / f"{graph}.json").read_text(encoding="utf-8"))
    for name in ("preview", "pairs", "validate", "export"):
        del content[name]
    content["turn"] = {"class_type": "turn", "inputs": {"generator": ["g_step" if graph in CRITICS else "step", 0]}}
    path = folder / f"{graph}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--graph", default="train_srresnet")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--sync", type=int, default=1, choices=(0, 1))
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    options.threads, count = 1, options.processes
    rounds = 5 if options.quick else options.rounds
    device, sync = device_of(options), str(bool(options.sync)).lower()
    settings = [f"generator.sync_batch_norm={sync}", "content_loss.every=1"]
    if options.graph in CRITICS:
        settings += [f"discriminator.sync_batch_norm={sync}"]
    if options.quick:
        settings += [*QUICK, *(["discriminator.crop=48"] if options.graph in CRITICS else [])]
    elif (DATA / "photos").is_dir():
        settings.append(f"photos.folder={DATA / 'photos'}")
    with tempfile.TemporaryDirectory() as name:
        graph = in_turns(options.graph, Path(name))
        words = [sys.executable, "-m", "sr_pipeline", "run", str(graph), "--pack", str(HERE / "turns.py")]
        steps = 1 + UNCOUNTED + 1 + rounds  # begin's, the uncounted here and in in_turn, and those that are timed
        words += ["--steps", str(steps), "--threads", "1", "--device", device.type, "--precision", options.precision]
        words += [word for setting in settings for word in ("--set", setting)]
        part = f"hr.batch={(4 if options.quick else 16) // count}"
        ways = {"one": [[*words, "--nproc", "1"]], "several": [[*words, "--nproc", str(count)]]}
        if device.type == "cpu":
            ways["apart"] = [[*words, "--nproc", "1", "--set", part]] * count
        with started(ways, {"one": 1, "several": count, "apart": count}) as contestants:
            for way in contestants.values():
                way(UNCOUNTED)
            seconds: Seconds = in_turn(contestants, rounds)
    result = {"speed": ratio(seconds, "one", "several")["median"], "speed_spread": ratio(seconds, "one", "several")}
    if "apart" in ways:
        result |= {"most": ratio(seconds, "one", "apart"), "of_most": ratio(seconds, "apart", "several")}
    least = {name: min(took) for name, took in seconds.items()}
    result |= {
        "of_fastest_steps": {name: short(least["one"] / took) for name, took in least.items() if name != "one"},
        "seconds_per_step": {name: spread(took) for name, took in seconds.items()},
        "processes": count,
        "graph": options.graph,
        "sync_batch_norm": bool(options.sync),
        "precision": options.precision,
        "rounds": rounds,
        "machine": machine(device),
    }
    publish("processes", result, options)
    return int(result["speed"] < GOAL * count and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
