"""Processes that share a run: what each takes, what all agree on, and gradients of the mean of their losses."""

from __future__ import annotations

import os
import pickle
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from sr_pipeline import launch
from sr_pipeline.again import Again
from sr_pipeline.errors import CheckpointError, Fault, GraphError, NodeRunError, UsageError
from sr_pipeline.world import ALONE, Agreement, World

SIZE = 2
JOB = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


def test_shares_are_together_the_batch() -> None:
    for size in (1, 2, 3, 6):
        rows = [row for rank in range(size) for row in World(rank, size).share(12)]
        assert rows == list(range(12))
    with pytest.raises(ValueError, match="a batch of 5 does not divide by 2 processes; make it a multiple"):
        World(0, 2).share(5)


def test_alone_everything_is_as_without_others() -> None:
    value, weight = torch.ones(2), torch.ones(2, requires_grad=True)
    assert ALONE.mean(value) is value
    assert ALONE.any([True, False]) == [True, False]
    assert ALONE.broadcast(lambda: 3) == 3
    assert ALONE.gather(3) == [3]
    assert Agreement(ALONE)([False, True], 1.0) == [False, True]
    ALONE.backward((3 * weight).sum(), [weight])
    assert weight.grad is not None
    assert weight.grad.tolist() == [3, 3]


@pytest.mark.parametrize(
    "error",
    [
        UsageError("here", "is wrong", "mend it"),
        CheckpointError("file", "is damaged"),
        NodeRunError("node", "failed", "again"),
        GraphError([Fault("a", "b", "c"), Fault("d", "e")]),
    ],
)
def test_an_error_travels_whole(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.faults == error.faults  # type: ignore[attr-defined]


def gradients(world: World) -> list[tuple[float, float | None]]:
    """Of two weights, over four passes: the second is reached late, then in one process alone, then in none."""
    first, second = (nn.Parameter(torch.ones(1)) for _ in range(2))
    found: list[tuple[float, float | None]] = []
    for reached in ((), (0, 1), (1,), ()):
        first.grad = second.grad = None
        loss = (world.rank + 1) * first.sum()
        if world.rank in reached:
            loss = loss + 10 * (world.rank + 1) * second.sum()
        world.backward(loss, [first, second])
        grads: list[Tensor | None] = [first.grad, second.grad]
        assert grads[0] is not None
        found.append((grads[0].item(), None if grads[1] is None else grads[1].item()))
    return found


def agreements(world: World) -> list[int]:
    """After which asking each of two flags, raised by one process each, is told."""
    agree, told = Agreement(world), [-1, -1]
    for asked in range(40):
        raised = [world.rank == 0 and asked >= 3, world.rank == 1 and asked >= 10]
        for flag, up in enumerate(agree(raised, rate=10.0 if world.leads else 1000.0)):
            if up and told[flag] < 0:
                told[flag] = asked
        time.sleep(0.001 * world.rank)
    agree.settle()
    return told


def schedules() -> set[int]:
    """Of gloo's threads that listen."""
    tasks = [task for task in Path("/proc/self/task").glob("*") if (task / "comm").read_text() == "gloo_tcp_loop\n"]
    return {os.sched_getscheduler(int(task.name)) for task in tasks}


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    launch.calm_gloo()
    world = World(rank, SIZE)
    found = {
        "schedules": schedules(),
        "gradients": gradients(world),
        "agreements": agreements(world),
        "mean": world.mean(torch.tensor([rank, 4.0])).tolist(),
        "any": world.any([rank == 1, False]),
        "first": world.broadcast(lambda: rank),
        "all": world.gather(rank),
    }
    try:
        world.broadcast(refuse)
    except UsageError as error:
        found["error"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def refuse() -> None:
    raise UsageError("--run-dir", "holds a run already", "give another")


def test_processes_agree_and_average(tmp_path: Path) -> None:
    spawn(process, (tmp_path,), SIZE)  # type: ignore[no-untyped-call]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(SIZE))
    assert one["all"] == [0, 1]
    assert two["all"] == []
    del one["all"], two["all"]
    assert one["schedules"] == ({os.SCHED_BATCH} if sys.platform == "linux" else set())
    assert one == two
    assert one["gradients"] == [(1.5, None), (1.5, 15), (1.5, 10), (1.5, None)]
    assert one["mean"] == [0.5, 4]
    assert one["any"] == [True, False]
    assert one["first"] == 0
    assert one["error"] == "--run-dir: holds a run already; give another"
    assert 3 < one["agreements"][0] <= 3 + 2 * 2 + 1  # each second asking is a message, and is read by the next one
    assert 10 < one["agreements"][1] <= 10 + 2 * 2 + 1


def test_a_restart_is_told_by_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of restarts stays where another machine lost its process."""

    def restart(of: str | None, **environment: str) -> bool:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return launch.is_restart(of)

    named = JOB | {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert restart("a", **named)
    assert not restart("b", **named)
    assert not restart(None, **named)
    assert not restart("a", **named | {"TORCHELASTIC_MAX_RESTARTS": "0"})
    unnamed = named | {"TORCHELASTIC_RUN_ID": "none"}
    assert not restart("none", **unnamed)
    assert restart("none", **unnamed | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert not restart("a", TORCHELASTIC_RUN_ID="a", TORCHELASTIC_MAX_RESTARTS="3")


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.own_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert launch.own_device(torch.device("cuda")) == torch.device("cuda")
    with monkeypatch.context() as patch:  # srun's processes, which share nothing
        patch.setenv("SLURM_LOCALID", "5")
        patch.setattr(torch.cuda, "device_count", lambda: 4)
        assert launch.own_device(torch.device("cuda")) == torch.device("cuda:1")
    for name, value in (JOB | {"LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert launch.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UsageError, match="process 2 of this machine has none of its 1 CUDA devices; start as many"):
        launch.own_device(torch.device("cuda"))
    with pytest.raises(UsageError, match="--device cuda:0: the processes of a run each need a device of their own"):
        launch.own_device(torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "sr-pipeline run g.json --run-dir a --resume"),
        (JOB | {"GROUP_WORLD_SIZE": "1"}, "sr-pipeline run g.json --run-dir a --resume --nproc 4"),
        (JOB | {"GROUP_WORLD_SIZE": "2"}, "torchrun ... -m sr_pipeline run g.json --run-dir a --resume"),
        (
            JOB | {"GROUP_WORLD_SIZE": "2", launch.STARTED_BY: "--nproc 2 --nnodes 2 --rdzv-endpoint a:1"},
            "sr-pipeline run g.json --run-dir a --resume --nproc 2 --nnodes 2 --rdzv-endpoint a:1",
        ),
    ],
)
def test_the_command_that_goes_on_starts_as_many_processes(
    environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sr-pipeline", "run", "g.json"])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    again = Again(named=False, resumes=False)
    again.folder, again.saved, again.processes = "a", True, 4 if environment else 1
    assert again.command() == f"go on with: {command}"
