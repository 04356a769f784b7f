"""What waits for what on CUDA's streams: jobs of a recording and tensors made ahead, by stand-ins for streams and
events that keep what came before."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pytest
import torch

from sr_pipeline import cudagraph, streams
from sr_pipeline.cudagraph import CudaGraph
from sr_pipeline.streams import beside, is_recorded, prefetched, ready_since


class Stream:
    """Knows the jobs after which its next one is done."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.before = set[str]()

    def wait_event(self, event: Event) -> None:
        self.before |= event.before

    def wait_stream(self, other: Stream) -> None:
        self.before |= other.before

    def record_event(self) -> Event:
        event = Event()
        event.record(self)
        return event


class Event:
    waited = 0

    def synchronize(self) -> None:
        Event.waited += 1

    def record(self, stream: Stream | None = None) -> None:
        self.before = set((stream or Cuda.current).before)


class Graph:
    def __init__(self, keep_graph: bool) -> None:
        self.whole = False

    def instantiate(self) -> None:
        self.whole = True


class Cuda:
    """What a recording uses of ``torch.cuda``."""

    current = Stream()

    @staticmethod
    @contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        before, Cuda.current = Cuda.current, stream
        try:
            yield
        finally:
            Cuda.current = before

    @staticmethod
    @contextmanager
    def graph(graph: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        with Cuda.stream(stream):
            yield

    @staticmethod
    @contextmanager
    def device(device: Any) -> Iterator[None]:
        yield

    @staticmethod
    def set_stream(stream: Stream) -> None:
        Cuda.current = stream


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> CudaGraph:
    Cuda.current, Event.waited = Stream(), 0
    monkeypatch.setattr(streams, "_beside", lambda device: Stream())
    monkeypatch.setattr(cudagraph, "_begin", lambda device: None)
    monkeypatch.setattr(cudagraph, "as_kernels", lambda graph, device: None)
    for name, stand_in in {
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": Cuda.graph, "device": Cuda.device,
        "stream": Cuda.stream, "set_stream": Cuda.set_stream, "current_stream": lambda device: Cuda.current,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return CudaGraph(torch.device("cuda"))


Jobs = dict[str, Collection[str]]
"""By name: the jobs that it follows, of those before; of one that changes weights the name ends with "!"."""


def order_of(recording: CudaGraph, jobs: Jobs) -> dict[str, set[str]]:
    """After which jobs each begins."""
    found: dict[str, set[str]] = {}
    names = list(jobs)

    def work() -> None:
        for name, after in jobs.items():
            with recording.job([names.index(other) for other in after], []):
                found[name] = set(Cuda.current.before)
                Cuda.current.before.add(name)
            if name.endswith("!"):
                recording.changed()

    for stream in recording.streams:
        stream.before.clear()  # type: ignore[attr-defined]
    recording.record(work, [])
    return found


SRGAN: Jobs = {
    "lr": [], "sr": ["lr"], "real": [], "fake": ["sr", "real"], "d_loss": ["fake", "real"], "d_step!": ["d_loss"],
    "content": ["sr"], "judged": ["d_step!", "sr"], "perceptual": ["judged", "content"], "g_step!": ["perceptual"],
}  # fmt: skip


def test_branches_of_srgan(recording: CudaGraph) -> None:
    """What the paper's step could do side by side, but that nothing begins before D's new weights are there once they
    are on their way."""
    for _ in range(2):  # a step may be recorded anew
        found = order_of(recording, SRGAN)
        for name, after in SRGAN.items():
            assert found[name] >= set(after)
        assert found["real"] == set()
        assert "real" not in found["sr"]
        assert found["content"] == {"lr", "sr"}
        assert "content" not in found["judged"]
    assert len(recording.streams) <= 5


def test_the_recording_ends_with_all_of_its_jobs(recording: CudaGraph) -> None:
    order_of(recording, {"a": [], "b": [], "c": ["a"], "d": []})
    assert recording.side.before == {"a", "b", "c", "d"}  # type: ignore[attr-defined]


def test_after_a_change_no_stream_goes_on_without_it(recording: CudaGraph) -> None:
    """Autograd comes back to the streams of forward passes."""
    order_of(recording, {"one": [], "other": [], "step!": ["one"]})
    assert all("step!" in stream.before for stream in recording.streams)  # type: ignore[attr-defined]


def test_a_job_ends_with_what_was_done_beside_it(recording: CudaGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody waited for it, as a graph's capture must. It began when weights were changed last."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(streams, "_own", cache(lambda stream: Stream()))
    found = list[set[str]]()

    def work() -> None:
        for step in ("one step!", "another step!"):  # neither follows the other
            with recording.job([], []):
                Cuda.current.before.add(step)
            recording.changed()
        with recording.job([0], []):
            Cuda.current.before.add("job")
            with beside(torch.device("cuda")) as stream:
                assert cast(Any, stream) is Cuda.current
                Cuda.current.before.add("aside")
            assert "aside" not in Cuda.current.before
            found.append(cast(Any, stream).before)
        with recording.job([2], []):
            found.append(Cuda.current.before)

    recording.record(work, [])
    assert found[0] == {"one step!", "another step!", "aside"}
    assert found[1] >= {"job", "aside"}
    with beside(torch.device("cuda")) as stream:
        assert stream is None


def test_what_holds_while_it_is_recorded_and_not_after(recording: CudaGraph) -> None:
    fed, inside = torch.zeros(1), []
    cached, main = torch.is_autocast_cache_enabled(), Cuda.current

    def work() -> None:
        inside.extend([is_recorded(), ready_since(fed) is not None, not torch.is_autocast_cache_enabled()])
        raise ValueError("too blue")

    with pytest.raises(ValueError, match="too blue"):
        recording.record(work, [fed])
    assert inside == [True, True, True]
    assert (is_recorded(), ready_since(fed), torch.is_autocast_cache_enabled()) == (False, None, cached)
    assert Cuda.current is main
    assert recording.graph is None


@dataclass
class Made:
    """A stand-in for a tensor on a device."""

    number: int
    after: set[str]
    used_by: Stream | None = None

    def record_stream(self, stream: Stream) -> None:
        self.used_by = stream


def test_a_tensor_made_ahead_waits_for_nothing_and_is_waited_for(recording: CudaGraph) -> None:
    main, made = Cuda.current, list[Made]()
    main.before.add("copied")

    def tensors() -> Iterator[Any]:
        for number in range(3):
            made.append(Made(number, set(Cuda.current.before)))
            Cuda.current.before.add(f"made {number}")
            yield made[-1]

    for number, tensor in enumerate(prefetched(tensors(), torch.device("cuda"))):
        assert id(tensor) == id(made[number])
        assert len(made) == min(number + 2, 3)
        assert Cuda.current is main
        assert made[number].used_by is main
        expected = {f"{did} {n}" for n in range(number) for did in ("made", "used")}
        assert main.before == {"copied", f"made {number}", *expected}
        main.before.add(f"used {number}")
    assert [one.after for one in made] == [{"copied", *(f"made {n}" for n in range(number))} for number in range(3)]


def test_the_host_does_not_go_far_ahead(recording: CudaGraph) -> None:
    """Of twenty tensors all but the last four must have been used."""
    taken = sum(1 for _ in prefetched((cast(Any, Made(n, set())) for n in range(20)), torch.device("cuda")))
    assert (taken, Event.waited) == (20, 16)


def test_an_error_ahead_is_raised_in_its_turn(recording: CudaGraph) -> None:
    def tensors() -> Iterator[Any]:
        yield Made(0, set())
        raise OSError("torn")

    found = prefetched(tensors(), torch.device("cuda"))
    next(found)
    with pytest.raises(OSError, match="torn"):
        next(found)


def test_on_a_cpu_nothing_is_made_ahead() -> None:
    asked = iter([torch.zeros(1), torch.ones(1)])
    found = prefetched(asked, torch.device("cpu"))
    assert torch.equal(next(found), torch.zeros(1))
    assert torch.equal(next(asked), torch.ones(1))
