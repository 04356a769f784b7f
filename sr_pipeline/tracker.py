"""What has been heard of a run, in words."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from math import isfinite

from sr_pipeline.events import (
    Done,
    Event,
    ImageWritten,
    NodeProgress,
    NodeStarted,
    Progress,
    Resumed,
    RunStarted,
    Scalar,
    Warned,
)

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, with days before.

    >>> duration(3725), duration(200000)
    ('1:02:05', '2 d 7:33:20')
    """
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


def rate(per_second: float) -> str:
    """Steps a second, or seconds a step where that is more than one.

    >>> rate(2.5), rate(0.125)
    ('2.5 steps/s', '8 s/step')
    """
    return f"{per_second:.3g} steps/s" if per_second >= 1 else f"{1 / max(per_second, 1e-9):.3g} s/step"


def sparkline(values: list[float], width: int = 32) -> str:
    """The course of a number, as means of equal parts; a part that is not finite is a blank.

    >>> sparkline([0, 1, 2, 3], 4)
    '▁▃▆█'
    >>> sparkline([1.0, float("nan"), 2.0])
    '▁ █'
    """
    parts = min(width, len(values))
    cuts = [n * len(values) // parts for n in range(parts + 1)] if parts else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    finite = [m for m in means if isfinite(m)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def bar(mean: float) -> str:
        if not isfinite(mean):
            return " "
        return _BARS[round((mean - low) / (high - low) * 7) if high > low else 3]

    return "".join(map(bar, means))


class Tracker:
    """What has been heard of a run so far."""

    def __init__(self) -> None:
        self.title = ""
        self.doing = ""
        self.progress: Progress | None = None
        self.scalars: dict[str, deque[float]] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.title = f"{event.graph}  on {event.device} ({event.mode})  seed {event.seed}  into {event.run_dir}"
        elif isinstance(event, NodeStarted):
            self.doing = f"{event.phase}: {event.node}"
        elif isinstance(event, NodeProgress):
            self.doing = f"{event.node}: {event.done}/{event.total}"
        elif isinstance(event, Progress):
            self.progress, self.doing = event, ""
        elif isinstance(event, Done):
            self.doing = ""
        elif isinstance(event, Scalar):
            self.scalars.setdefault(event.name, deque(maxlen=2000)).append(event.value)

    def status(self) -> str:
        """Step, rate and time left, in words."""
        if self.progress is None:
            return self.doing
        step, total, speed = self.progress.step, self.progress.total, self.progress.rate
        of = f"/{total}" if total is not None else ""
        left = f"  {duration((total - step) / speed)} left" if total is not None else ""
        return f"step {step}{of}  {rate(speed)}{left}"


def notice(event: Event) -> str:
    """The line that an event deserves by itself, if any."""
    if isinstance(event, Warned):
        return f"warning: {event.where}: {event.text}"
    if isinstance(event, Resumed):
        return f"resumed from step {event.step}"
    if isinstance(event, ImageWritten):
        return f"wrote {event.path}"
    if isinstance(event, Done):
        word = "interrupted" if event.interrupted else "done"
        return f"{word} after step {event.step}, {duration(event.seconds)}" if event.step else word
    return ""
