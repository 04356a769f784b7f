"""Where the processes that share a run come from: torchrun starts them, and each joins the others."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from sr_pipeline.errors import UsageError
from sr_pipeline.world import ALONE, World

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""At 1, torchrun's processes meet at a new place after each restart; else they find old addresses there."""
OPTIONS = {"--nproc": "--nproc-per-node"} | {
    name: name for name in ("--max-restarts", "--nnodes", "--rdzv-endpoint", "--rdzv-id")
}
"""Those of ``sr-pipeline run`` that are torchrun's, and its own names of them."""
STARTED_BY = "SR_PIPELINE_LAUNCH"
"""What ``start`` was given of them, for its processes to tell."""


def rank() -> int:
    """This process's number among those that torchrun started; 0 where it started none."""
    return int(os.environ.get("RANK", "0")) if is_shared() else 0


def launch_id() -> str | None:
    """The name of the job that torchrun started this process for, through all its restarts."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "none") if is_shared() else None


def is_restart(of: str | None) -> bool:
    """Whether torchrun started this process to go on with a run of the job ``of``.

    Its count of restarts is of one machine; where another one was lost, it stays. A job without a name has no other.
    """
    if not is_shared() or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or of != launch_id():
        return False
    return of != "none" or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def check_restarts(has_folder: bool) -> None:
    """Refuse restarts that could not go on with the run.

    Raises:
        UsageError: torchrun may restart these processes, but they would not find the run, or one another.
    """
    if not is_shared() or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    if not has_folder:
        what = "a process that is lost is replaced, and has to find the run"
        raise UsageError("--run-dir", what, "give the run's folder, or torchrun --max-restarts 0")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        what = "torchrun would give the processes of a restart the addresses of those before"
        raise UsageError("torchrun --max-restarts", what, f"export {OWN_STORE}=1 first")


def processes() -> int:
    """How many share the run."""
    return int(os.environ["WORLD_SIZE"]) if is_shared() else 1


def is_shared() -> bool:
    """Whether torchrun started this process, with others or alone."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def own_device(device: torch.device) -> torch.device:
    """The device of this process, where each of one machine has one of its own: ``cuda`` is ``cuda:LOCAL_RANK``, and
    for srun's processes, which share no run, their number on the machine, by turns where there are fewer devices."""
    if device.type != "cuda":
        return device
    if not is_shared():
        by_turns = str(device) == "cuda" and "SLURM_LOCALID" in os.environ
        return (
            torch.device("cuda", int(os.environ["SLURM_LOCALID"]) % torch.cuda.device_count()) if by_turns else device
        )
    if str(device) != "cuda":
        raise UsageError(f"--device {device}", "the processes of a run each need a device of their own", "give cuda")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        what = f"process {number + 1} of this machine has none of its {torch.cuda.device_count()} CUDA devices"
        raise UsageError("torchrun", what, "start as many processes on it as it has devices, or give --device cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def joined() -> Iterator[World]:
    """The processes that share the run, which talk inside; ``ALONE`` where torchrun did not start this one.

    A group that the program has made is used, and left as it is. After an error the group is left to the end of the
    process: to take leave of the others, NCCL would wait for what they wait for.
    """
    import torch.distributed as dist

    if not dist.is_available() or not (is_shared() or dist.is_initialized()):
        yield ALONE
        return
    from sr_pipeline import board

    own = not dist.is_initialized()
    if own:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        calm_gloo()
    size = dist.get_world_size()
    try:
        yield World(dist.get_rank(), size) if size > 1 else ALONE
    finally:
        board.forget()
    if own:
        dist.destroy_process_group()


def calm_gloo() -> None:
    """Schedule gloo's listening thread as a batch job, where the system can: it pushes nobody off a core.

    It asks again and again for a lock that gloo's sending thread holds; on one core that thread then waits for its
    turn, and a message of 1 KB between two busy processes takes 2.5 ms in place of 0.7 (measured).
    """
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError, AttributeError):  # it ended; it may not; there is no such schedule
            if (task / "comm").read_text().startswith("gloo_tcp_loop"):
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))


def start(processes: int, options: Sequence[str], arguments: Sequence[str]) -> int:
    """Run ``sr-pipeline`` with these arguments in so many processes of this machine; its exit code.

    ``options`` are names and values of ``OPTIONS``. Without ``--nnodes`` this machine is alone.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    os.environ[OWN_STORE] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))  # torchrun's own is 1
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes say what happened
    os.environ[STARTED_BY] = shlex.join(options)
    own = ["--rdzv-backend", "c10d"] if "--nnodes" in options else ["--standalone"]
    own += [OPTIONS.get(word, word) for word in options]
    try:
        run(get_args_parser().parse_args([*own, "-m", "sr_pipeline", *arguments]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        return next((f.exitcode for f in error.failures.values() if f.exitcode > 0), 1)
    except SignalException as error:
        return 128 + error.sigval
    return 0
