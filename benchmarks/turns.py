"""A pack with one node, by which processes.py lets trainings take turns, a step at a time."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import lru_cache

from sr_nodes.types import Generator
from sr_pipeline.node import node

PLACE = "SR_PIPELINE_TURNS"
"""The variable that names the socket of who gives the turns."""


@node(category="benchmark", output=True)
def turn(generator: Generator) -> None:
    """Say that a step is over, and wait until the next one may begin.

    Args:
        generator: the generator that the step has changed.
    """
    link = _link()
    with suppress(BrokenPipeError):
        link.sendall(b"x")
    link.recv(1)  # nothing, once nobody gives turns any more


@lru_cache(maxsize=1)
def _link() -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.connect(os.environ[PLACE])
    return link
