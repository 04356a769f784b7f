"""The server's end of the worker process: it is started, told, heard, and its death is noticed."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sr_pipeline.server.worker import Order, Stop, work

GONE = "gone"
Told = tuple[str, str, dict[str, Any], bytes]
"""What a worker says: its kind (ready, event, done, failed), the job, the content, and the bytes of a picture."""


class WorkerProcess:
    """One worker. What it says goes through ``read`` in a thread, then to ``heard`` in the event loop; ``died`` is
    called there with why it ended."""

    def __init__(
        self,
        packs: tuple[str, ...],
        device: str,
        runs: Path,
        read: Callable[[Told], Told],
        heard: Callable[[Told], None],
        died: Callable[[str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.read, self.heard, self.died = read, heard, died
        self.folder = tempfile.TemporaryDirectory(prefix="sr-pipeline-server-")
        self.crash_file = Path(self.folder.name) / "crash.txt"
        context = get_context("spawn")  # a fork would take over the server's threads and sockets
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=work, args=(theirs, packs, device, str(runs), str(self.crash_file)), name="sr-pipeline worker"
        )
        self.process.start()
        theirs.close()
        self.outbox: SimpleQueue[Order | Stop | str] = SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, told: Order | Stop | str) -> None:
        """Give an order, or say free or exit. It is sent by a thread, because a pipe may be full."""
        self.outbox.put(told)

    def _send(self) -> None:
        with suppress(OSError):  # it is gone, and the listener says so
            while (told := self.outbox.get()) != GONE:
                self.connection.send(told)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._in_loop(self.heard, self.read(self.connection.recv()))
        self.tell(GONE)
        self.process.join()
        why = self._why()
        self.folder.cleanup()
        self._in_loop(self.died, why)

    def _in_loop(self, function: Callable[[Any], None], told: Any) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, told)

    def _why(self) -> str:
        code = self.process.exitcode or 0
        crash = self.crash_file.read_text(errors="replace").strip() if self.crash_file.exists() else ""
        if code >= 0:
            return f"the worker process ended with exit code {code}\n{crash}".strip()
        name = signal.Signals(-code).name
        hint = "; the system may have been out of memory" if name == "SIGKILL" else ""
        return f"the worker process was ended by {name}{hint}\n{crash}".strip()

    def kill(self) -> None:
        self.process.kill()

    async def close(self, patience: float) -> None:
        """Let it end its step and save; after so many seconds, end it."""
        self.tell("exit")
        await asyncio.to_thread(self.process.join, patience)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)
