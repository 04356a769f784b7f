"""The command that goes on with a run that was stopped."""

from __future__ import annotations

import os
import shlex
import sys

from sr_pipeline.events import Event, Resumed, RunStarted, Saved
from sr_pipeline.launch import STARTED_BY


class Again:
    """A sink that knows how to go on with the run that it hears of; a context that adds this to the run's error.

    ``named``: the folder was given on the command line. ``resumes``: so was ``--resume``.
    """

    def __init__(self, named: bool, resumes: bool) -> None:
        self.named, self.resumes = named, resumes
        self.folder, self.saved, self.processes = "", False, 1

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.folder, self.processes = event.run_dir, event.world_size
        self.saved |= isinstance(event, (Saved, Resumed))

    def command(self) -> str:
        """This process's own command with the run's folder and ``--resume``; empty while no state is saved."""
        words = sys.argv[1:]
        words += [] if self.named else ["--run-dir", self.folder]
        words += [] if self.resumes else ["--resume"]
        command = ["sr-pipeline", *words]
        if STARTED_BY in os.environ:
            command += shlex.split(os.environ[STARTED_BY])
        elif int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:  # torchrun's name for the number of machines
            command = ["torchrun", "...", "-m", "sr_pipeline", *words]
        elif self.processes > 1:
            command += ["--nproc", str(self.processes)]
        return f"go on with: {shlex.join(command)}" if self.saved else ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and self.saved:
            error.add_note(self.command())
