"""Work recorded as one CUDA graph, its jobs on streams of their own where they need not wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from sr_pipeline.memsets import as_kernels
from sr_pipeline.streams import joining, recorded, there_since

T = TypeVar("T")


class CudaGraph:
    """One CUDA graph. Its warm-up runs on the stream that it is recorded on, as torch asks for."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.side = device, _urgent(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.streams = [self.side]
        """One after the other is used; none serves two branches, because autograd comes back to each."""
        self.used = 0
        self.done: list[torch.cuda.Event] = []
        """By job."""
        self.settled: tuple[torch.cuda.Event, ...] = ()
        """Since all of these, models and optimizers are as they are."""
        self.ends: dict[int, torch.cuda.Stream] = {}
        """By the last job of each stream that another job may go on with."""

    def warm_up(self, work: Callable[[], None]) -> None:
        main = torch.cuda.current_stream(self.device)
        self.side.wait_stream(main)
        with torch.cuda.stream(self.side), recorded():
            work()
        main.wait_stream(self.side)

    def record(self, work: Callable[[], T], fed: Iterable[Tensor]) -> T:
        self.clear()
        with torch.cuda.device(self.device), _settings():
            graph, made = self._recorded(work, fed)
        self.graph = graph
        return made

    def _recorded(self, work: Callable[[], T], fed: Iterable[Tensor]) -> tuple[torch.cuda.CUDAGraph, T]:
        main, graph = torch.cuda.current_stream(self.device), torch.cuda.CUDAGraph(keep_graph=True)
        try:
            # Of this thread's calls alone: the one that writes checkpoints may use the device meanwhile.
            with torch.cuda.graph(graph, stream=self.side, capture_error_mode="thread_local"):
                _begin(self.device)
                self.began = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self.began.record()
                self.used, self.done, self.ends, self.settled = 0, [], {}, (self.began,)
                with there_since(self.began, fed), recorded(), joining(self.side, self.settled):
                    made = work()
                for event in self.done:
                    self.side.wait_event(event)
        finally:
            torch.cuda.set_stream(main)  # which torch leaves undone where the recording failed
        as_kernels(graph, self.device)
        graph.instantiate()
        return graph, made

    @contextmanager
    def job(self, after: Collection[int], read: Iterable[Tensor]) -> Iterator[None]:
        """On the stream of a job that it follows and that nothing went on from, else on another."""
        free = next((n for n in after if n in self.ends), None)
        stream = self._another() if free is None else self.ends.pop(free)
        stream.wait_event(self.began)
        for n in after:
            stream.wait_event(self.done[n])
        for tensor in (tensor for tensor in read if tensor.is_cuda):
            tensor.record_stream(stream)  # so that whoever made it does not use its memory again before
        with torch.cuda.stream(stream), joining(stream, self.settled):
            yield
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        self.ends[len(self.done)] = stream
        self.done.append(event)

    def changed(self) -> None:
        """All that follows on any stream waits: autograd comes back to the streams of forward passes, and makes new
        gradients in the memory of those that the job before may still read."""
        self.settled += (self.done[-1],)  # which need not follow the change before
        self.ends.clear()
        for stream in self.streams[: self.used]:
            stream.wait_event(self.done[-1])

    def _another(self) -> torch.cuda.Stream:
        self.used += 1
        if self.used > len(self.streams):
            self.streams.append(_urgent(self.device))
        return self.streams[self.used - 1]

    def replay(self) -> None:
        assert self.graph is not None
        self.graph.replay()

    def clear(self) -> None:
        self.graph = None


def _begin(device: torch.device) -> None:
    """One kernel that all branches follow: CUDA begins those of a graph with several roots one after the other."""
    torch.zeros((), device=device)


def _urgent(device: torch.device) -> torch.cuda.Stream:
    """A stream whose work goes before that of what nodes do ``beside`` it, and that before other streams'."""
    return torch.cuda.Stream(device, priority=-2)  # type: ignore[no-untyped-call]


@contextmanager
def _settings() -> Iterator[None]:
    """Weights are rounded anew by each node that reads them, because what one branch had rounded another would read too
    soon; and autograd does not warn of weights that two branches read: it waits for both."""
    cached = torch.is_autocast_cache_enabled()
    warn = torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch
    torch.set_autocast_cache_enabled(False)
    warn(False)
    try:
        yield
    finally:
        warn(True)
        torch.set_autocast_cache_enabled(cached)
