"""Whatever happens to the worker or the server, the next run starts and what was saved can be gone on with."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from server.conftest import Server, serving, wait_for
from server.pack import training


def dying(how: str) -> dict[str, Any]:
    return training(steps=5, die={"class_type": "die", "inputs": {"tick": ["ticks", 0], "how": how, "at": 3}})


@pytest.mark.parametrize(
    ("how", "message", "traceback"),
    [
        ("raise", "graph: die: die failed at step 3: too blue", "ValueError: too blue"),
        pytest.param("exit", "exit code 7", "exit code 7", marks=pytest.mark.full),
        ("kill", "ended by SIGKILL; the system may have been out of memory", "SIGKILL"),
        ("segfault", "ended by SIGSEGV", "in die"),
    ],
)
def test_a_crash_fails_its_run_and_the_next_one_starts(server: Server, how: str, message: str, traceback: str) -> None:
    with server.socket() as ear:
        id_ = server.queued(dying(how))
        after = server.queued(training(steps=1))
        told = ear.until("execution_error", prompt_id=id_)["data"]
        assert message in told["exception_message"]
        assert traceback in "\n".join(told["traceback"])
        assert told["node_id"] == ("die" if how == "raise" else "ticks")
        assert ear.until("executing")["data"]["node"] is None
    assert server.ended(after)["status"] == "completed"
    failed = server.job(id_)
    assert (failed["status"], failed["execution_error"]["node_id"]) == ("failed", told["node_id"])
    entry = server.http.get(f"/history/{id_}").json()[id_]
    assert entry["status"]["status_str"] == "error"
    assert [kind for kind, _ in entry["status"]["messages"]][-1] == "execution_error"
    if how != "raise":  # what crashes a process may not crash it again
        assert id_ in [run["prompt_id"] for run in server.http.get("/resume").json()["runs"]]


def test_asked_twice_a_run_is_ended_at_once(server: Server) -> None:
    long = training(steps=2, made={"class_type": "slow_setup", "inputs": {"seconds": 50.0}})
    with server.socket() as ear:
        id_ = server.queued(long)
        ear.until("executing", node="made")
        server.http.post("/interrupt")
        server.http.post("/interrupt")
        ear.until("execution_interrupted", prompt_id=id_)
    assert server.ended(id_)["status"] == "cancelled"
    assert server.ended(server.queued(training(steps=1)))["status"] == "completed"


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGKILL])
def test_what_ran_when_the_server_stopped_is_offered_and_ends_with_the_same_bits(
    server: Server, tmp_path: Path, how: int
) -> None:
    prompt = training(steps=12, seconds=0.2)
    whole = server.queued(prompt)
    with serving(tmp_path) as first, first.socket() as ear:
        id_ = first.queued(prompt)
        waiting = first.queued(training(steps=1))
        ear.until("preview", node_id="shade")
        first.process.send_signal(how)
        first.process.wait(60)
    with serving(tmp_path) as second:
        offered = {run["prompt_id"]: run for run in second.http.get("/api/resume").json()["runs"]}
        assert list(offered) == [id_]
        assert second.job(waiting)["status"] == "cancelled"
        with second.socket() as ear:
            assert ear.until("notification")["data"]["id"] == id_
        wait_for(lambda: not _held(second.folder / "runs" / offered[id_]["run_dir"]))
        assert second.http.post("/resume", json={"prompt_id": id_}).status_code == 200
        assert wait_for(lambda: job if (job := second.job(id_))["status"] == "completed" else None)
        resumed = torch.load(second.run_dir(id_) / "weights.pt", weights_only=True)
    server.ended(whole)
    expected = torch.load(server.run_dir(whole) / "weights.pt", weights_only=True)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def _held(run_dir: Path) -> bool:
    """Whether the worker of the killed server is still saving there."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(fd.readlink().is_relative_to(run_dir) for fd in (process / "fd").iterdir()):
                return True
        except OSError:
            continue
    return False
