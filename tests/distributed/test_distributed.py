"""Several processes do what one does: started by torchrun for real, over gloo."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.multiprocessing.spawn import spawn

from distributed import ranks
from sr_nodes.data import photographs
from sr_nodes.pictures import write_png
from sr_pipeline.graph import Graph, Link
from sr_pipeline.world import World

PACK = Path(__file__).parent / "ranks.py"


def command(graph: Graph, folder: Path, *options: str, processes: int) -> list[str]:
    path = folder.with_suffix(".json")
    graph.save(path)
    words = [sys.executable, "-m", "sr_pipeline", "run", str(path), "--pack", str(PACK), "--device", "cpu"]
    words += ["--run-dir", str(folder), *options]
    return words if processes == 1 else [*words, "--nproc", str(processes)]


def train(graph: Graph, folder: Path, *options: str, processes: int = 1, code: int = 0) -> str:
    """Run a graph in so many processes; what was printed."""
    done = subprocess.run(
        command(graph, folder, *options, processes=processes), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def state(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").glob("step-*.safetensors"))
    with safe_open(newest, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [event for event in lines if event["type"] == kind]


def values(folder: Path, name: str) -> dict[object, object]:
    return {event["step"]: event["value"] for event in events(folder, "scalar") if event["name"] == name}


def assert_alike(one: Path, other: Path, bound: float = 1e-6) -> None:
    """The weights, the statistics and the optimizers' state; and each step's loss."""
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    assert any(tensor.dtype == torch.float64 for tensor in ours.values())
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], bound, bound), name
    scores = [values(folder, "score") for folder in (one, other)]
    assert scores[0].keys() == scores[1].keys()
    assert scores[0] == pytest.approx(scores[1], rel=bound)


def steps_of(folder: Path, rank: int) -> list[int]:
    return [int(line.split()[0]) for line in (folder / f"ticks-{rank}").read_text().splitlines()]


@pytest.mark.parametrize("make", [ranks.srresnet, ranks.srgan])
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.full)])
def test_the_weights_are_those_of_one_process(make: object, processes: int, tmp_path: Path) -> None:
    assert callable(make)
    train(make(20), tmp_path / "one")
    train(make(20), tmp_path / "many", processes=processes)
    assert_alike(tmp_path / "one", tmp_path / "many")
    assert events(tmp_path / "many", "run_started")[0]["world_size"] == processes


def test_the_first_process_tells_of_all_and_writes_alone(tmp_path: Path) -> None:
    (tmp_path / "ticks").mkdir()
    printed = train(ranks.srresnet(6, tmp_path / "ticks"), tmp_path / "run", processes=2)
    told = [(event["where"], event["text"]) for event in events(tmp_path / "run", "warning")]
    assert told == [("told", "the same everywhere"), ("told", "of 0"), ("process 2: told", "of 1")]
    assert printed.count("run folder:") == 1
    assert set(values(tmp_path / "run", "told/rank").values()) == {0.5}
    for rank in (0, 1):
        lines = [line.split() for line in (tmp_path / "ticks" / f"ticks-{rank}").read_text().splitlines()]
        assert [(int(step), int(images)) for step, images, _ in lines] == [(step, 2) for step in range(6)]


def test_numbers_of_a_step_are_drawn_apart(tmp_path: Path) -> None:
    graph = ranks.srresnet(3)
    graph.add("drawn", id="drawn", image=Link("flaw", 0))
    train(graph, tmp_path / "one", "--only", "drawn")
    train(graph, tmp_path / "two", "--only", "drawn", processes=2)
    alone, mean = (values(tmp_path / name, "drawn/first") for name in ("one", "two"))
    assert len(set(alone.values())) == len(set(mean.values())) == 3
    assert not set(alone.values()) & set(mean.values())


def test_a_run_is_resumed_by_other_numbers_of_processes(tmp_path: Path) -> None:
    graph = ranks.srgan(12)
    train(graph, tmp_path / "whole")
    train(graph, tmp_path / "run", "--steps", "4", processes=2)
    train(graph, tmp_path / "run", "--steps", "8", "--resume", processes=4)
    train(graph, tmp_path / "run", "--steps", "12", "--resume")
    assert_alike(tmp_path / "whole", tmp_path / "run")
    assert [e["world_size"] for e in events(tmp_path / "run", "run_started")] == [2, 4, 1]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.full)])
def test_a_process_that_is_killed_is_replaced(kills: int, tmp_path: Path) -> None:
    """Each kill is at a step drawn here, of a process drawn here."""
    steps, rng = 200, random.Random(0)
    (tmp_path / "ticks").mkdir()
    graph = ranks.srresnet(steps, tmp_path / "ticks")
    for step in sorted(rng.sample(range(1, steps - 1), kills)):
        (tmp_path / "ticks" / f"kill-{rng.randrange(2)}-{step}").touch()
    train(ranks.srresnet(steps), tmp_path / "one")
    options = ["--checkpoint-every", "5", "--max-restarts", str(kills)]
    train(graph, tmp_path / "many", *options, processes=2)
    assert not list((tmp_path / "ticks").glob("kill-*"))
    assert_alike(tmp_path / "one", tmp_path / "many")
    rows = [line.split(",")[:2] for line in (tmp_path / "many" / "metrics.csv").read_text().splitlines()[1:]]
    assert [int(step) for step, name in rows if name == "score"] == list(range(1, steps + 1))
    assert len(events(tmp_path / "many", "resumed")) == kills
    for rank in (0, 1):
        backs = [last - first + 1 for last, first in pairwise(steps_of(tmp_path / "ticks", rank)) if first <= last]
        assert len(backs) <= kills
        assert all(back <= 10 for back in backs), backs  # two cadences


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    (tmp_path / "ticks").mkdir()
    graph = ranks.srresnet(10_000, tmp_path / "ticks")
    with subprocess.Popen(
        command(graph, tmp_path / "run", processes=2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        ticks, end = tmp_path / "ticks" / "ticks-1", time.monotonic() + 120
        while time.monotonic() < end and (not ticks.exists() or ticks.read_text().count("\n") < 5):
            time.sleep(0.05)
        os.kill(int(ticks.read_text().split()[2]), signal.SIGTERM)
        printed = running.communicate(timeout=120)[0]
    assert running.returncode == 128 + signal.SIGTERM, printed
    assert "go on with: sr-pipeline run" in printed
    done = events(tmp_path / "run", "done")[0]
    assert done["interrupted"]
    assert steps_of(tmp_path / "ticks", 0)[-1] == steps_of(tmp_path / "ticks", 1)[-1] == int(str(done["step"])) - 1
    train(graph, tmp_path / "run", "--resume", "--steps", str(int(str(done["step"])) + 2), processes=2)


def test_what_is_not_finite_in_one_process_stops_or_is_left_out_in_all(tmp_path: Path) -> None:
    printed = train(ranks.srresnet(6, at=3), tmp_path / "stop", processes=2, code=1)
    assert "not finite at step 4; resume in one process, and the node is named" in printed
    train(ranks.srresnet(6, at=3), tmp_path / "skip", "--on-nan", "skip", processes=2)
    assert [int(str(e["step"])) for e in events(tmp_path / "skip", "done")] == [6]
    assert all(tensor.isfinite().all() for tensor in state(tmp_path / "skip").values())


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_any_process_is_among_the_events(rank: int, tmp_path: Path) -> None:
    graph = ranks.srresnet(9)
    graph.nodes["lr"].inputs["hr"] = Link(graph.add("broken", id="b", image=Link("flaw", 0), at=4, rank=rank).node, 0)
    printed = train(graph, tmp_path / "run", "--checkpoint-every", "2", processes=2, code=1)
    assert "b: broken failed at step 5: it is torn" in printed
    told = {str(event["where"]): str(event["text"]) for event in events(tmp_path / "run", "error")}
    place = f"{tmp_path / 'run.json'}: b"
    assert "broken failed at step 5: it is torn" in told.pop(f"process 2: {place}" if rank else place)
    assert told.keys() <= {"another process"}  # of the first process, where it heard of it before it was ended
    assert "gloo" not in printed
    graph.nodes["b"].inputs["at"] = -1
    graph.save(tmp_path / "run" / "graph.json")
    train(graph, tmp_path / "run", "--resume", "--allow-changed", processes=2)
    assert list(values(tmp_path / "run", "score")) == list(range(1, 10))


def look(rank: int, folders: tuple[Path, Path], found: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{found}/meet", rank=rank, world_size=2)
    try:
        photographs(str(folders[rank]), world=World(rank, 2))
        text = "alike"
    except ValueError as error:
        text = str(error)
    (found / str(rank)).write_text(text)
    dist.destroy_process_group()


def test_processes_that_found_other_pictures_are_refused(tmp_path: Path) -> None:
    folders = tuple(tmp_path / name for name in ("first", "second", "less"))
    for number, folder in enumerate(folders):
        folder.mkdir()
        for picture in range(3 if number < 2 else 2):
            write_png(folder / f"{picture}.png", torch.zeros(3, 8, 9 + picture, dtype=torch.uint8))
    what = "process 2 found 2 pictures, and the first process 3, not the same; give all processes the same files"
    for pair, wanted in ((folders[:2], "alike"), (folders[1:], what)):
        (found := tmp_path / pair[1].name / "found").mkdir()
        spawn(look, (pair, found), 2)  # type: ignore[no-untyped-call]
        assert all((found / str(rank)).read_text().startswith(wanted) for rank in (0, 1))


def test_what_cannot_be_shared_is_refused_once(tmp_path: Path) -> None:
    graph = Graph()
    graph.add("tell", id="told", image=graph.add("unshared", id="items"))
    printed = train(graph, tmp_path / "a", "--only", "told", processes=2, code=2)
    assert printed.count("unshared does not share out its items; run it in one process") == 1
    between = ranks.srresnet(6)
    between.nodes["lr"].inputs["hr"] = Link(between.add("kept", id="kept", image=Link("flaw", 0)).node, 0)
    printed = train(between, tmp_path / "d", processes=2, code=2)
    assert printed.count("kept: it writes files, or needs what does, so that the first process alone would run it") == 1
    printed = train(ranks.srresnet(6, batch=3), tmp_path / "b", processes=2, code=1)
    assert "a batch of 3 does not divide by 2 processes; make it a multiple" in printed
    printed = train(ranks.srresnet(6), tmp_path / "c", "--steps", "0", processes=2, code=2)
    assert printed.count("--steps 0: is no number of steps") == 1


def test_torchrun_itself_with_restarts_asks_for_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    ranks.srresnet(2).save(path)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--max-restarts", "1", "-m", "sr_pipeline", "run", str(path), "--pack", str(PACK)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "--run-dir: a process that is lost is replaced, and has to find the run" in done.stderr
    words += ["--run-dir", "run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 first" in done.stderr
    own = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "generator.safetensors").is_file()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def agent(port: int, graph: Path, folder: Path, ours: bool) -> subprocess.Popen[bytes]:
    """torchrun as one of two machines has it, with a process of its own; all meet at a port."""
    start = ["--nnodes", "2", "--rdzv-id", "a", "--rdzv-endpoint", f"127.0.0.1:{port}", "--max-restarts", "2"]
    words = ["sr_pipeline", "run", str(graph), "--pack", str(PACK), "--run-dir", str(folder)]
    torchrun = ["torch.distributed.run", *start, "--rdzv-backend", "c10d", "--nproc-per-node", "1", "-m", *words]
    words = [sys.executable, "-m", *([*words, *start, "--nproc", "1"] if ours else torchrun)]
    own = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*words, "--checkpoint-every", "4"], env=own, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.full
@pytest.mark.parametrize("lost", ["process", "machine"])
def test_two_machines_share_a_run_and_outlive_the_loss_of(lost: str, tmp_path: Path) -> None:
    """Two agents of torchrun. The process of one is killed; or the agent too, and another one comes in its place, by
    the options of ``run``."""
    (tmp_path / "ticks").mkdir()
    steps = 20 if lost == "process" else 400
    graph, path, folder = ranks.srresnet(steps, tmp_path / "ticks"), tmp_path / "graph.json", tmp_path / "run"
    graph.save(path)
    if lost == "process":
        (tmp_path / "ticks" / "kill-1-12").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [agent(port, path, folder, ours=True)]
    while not is_open(port):  # it is the place where they meet
        time.sleep(0.1)
    agents.append(agent(port, path, folder, ours=False))
    if lost == "machine":
        end = time.monotonic() + 120
        while time.monotonic() < end and not list((folder / "checkpoints").glob("step-0*[1-9]*.safetensors")):
            time.sleep(0.05)
        ended = agents.pop()
        processes = Path(f"/proc/{ended.pid}/task/{ended.pid}/children").read_text().split()
        for number in (ended.pid, *map(int, processes)):
            os.kill(number, signal.SIGKILL)
        ended.communicate()
        agents.append(agent(port, path, folder, ours=True))
    printed = [agent.communicate(timeout=280)[0].decode() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert [e["world_size"] for e in events(folder, "run_started")] == [2, 2]
    assert len(events(folder, "resumed")) == 1
    train(ranks.srresnet(steps), tmp_path / "one")
    assert_alike(tmp_path / "one", folder)
