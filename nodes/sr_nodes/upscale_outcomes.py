"""What became of the pictures of a job: gathered, counted, and put into words."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sr_pipeline.node import node
from sr_pipeline.sockets import Socket

Status = Literal["upscaled", "skipped", "no picture", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: ``error`` is empty where all went well."""

    source: str
    target: str
    status: Status
    error: str = ""


PendingOutcome = Annotated[Future[Outcome], Socket("Outcome")]
"""What is becoming of a picture: its result is still being written while the next is computed."""

Summary = Annotated[dict[str, Any], Socket("Summary")]
"""``{"upscaled": [{"source": ..., "target": ...}], "skipped": as before, "no_picture": [source],
"failed": [{"source": ..., "error": ...}]}``."""


@node(category="images", output=True)
class Outcomes:
    """Gather what became of each picture of a job.

    Args:
        outcome: of one picture, from upscale_file.
    """

    def __init__(self) -> None:
        self._done: list[Outcome] = []
        self._pending: deque[Future[Outcome]] = deque()

    def __call__(self, outcome: PendingOutcome) -> None:
        self._pending.append(outcome)
        while self._pending and self._pending[0].done():
            self._take()

    def _take(self) -> None:
        self._done.append(self._pending.popleft().result())

    def result(self) -> Summary:
        self._wait()
        return {
            "upscaled": [{"source": o.source, "target": o.target} for o in self._done if o.status == "upscaled"],
            "skipped": [{"source": o.source, "target": o.target} for o in self._done if o.status == "skipped"],
            "no_picture": [o.source for o in self._done if o.status == "no picture"],
            "failed": [{"source": o.source, "error": o.error} for o in self._done if o.status == "failed"],
        }

    def _wait(self) -> None:
        while self._pending:
            self._take()

    def state_dict(self) -> dict[str, Any]:
        self._wait()
        return {"done": [[o.source, o.target, o.status, o.error] for o in self._done]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = [Outcome(*row) for row in state["done"]]
        self._pending.clear()


@node(category="images", output=True)
def upscale_summary(outcomes: Summary, strict: bool = True) -> str:
    """What became of the pictures of a job, in words: how many, and each that failed with its reason.

    Args:
        outcomes: of all pictures, from the node outcomes.
        strict: raise where a picture failed, so that the run fails too; all others are done by then.

    Raises:
        ValueError: a picture failed, and strict is true; its text is the summary.
    """
    upscaled, skipped, others, failed = (outcomes[key] for key in ("upscaled", "skipped", "no_picture", "failed"))
    parts = [f"{len(upscaled)} upscaled"]
    if skipped:
        parts.append(f"{len(skipped)} there already (--overwrite makes them anew)")
    if others:
        parts.append(f"{len(others)} passed over (no picture's suffix)")
    if failed:
        parts.append(f"{len(failed)} failed:")
    summary = "\n".join([", ".join(parts), *(f"  {f['source']}: {f['error']}" for f in failed)])
    if failed and strict:
        raise ValueError(summary)
    return summary
