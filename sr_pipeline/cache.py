"""Setup values kept between runs of one process."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from sr_pipeline.check import texts
from sr_pipeline.paths import resolve
from sr_pipeline.plan import Op, Plan


class SetupCache(dict[str, Any]):
    """Results of setup nodes that nothing changes, by type, code, literals, files named and ancestors.

    Give the same one to several calls of ``run``. Holds all it was given: clear it to free memory.
    """

    def __init__(self, device: str = "", seed: int = 0) -> None:
        super().__init__()
        self.device, self.seed = device, seed

    def keys_of(self, plan: Plan) -> dict[str, str]:
        """The key of each setup node's result but of those that must be made anew: an output, a mutator, a value that
        a node changes, or anything built from these."""
        changed = {plan.wiring.links[op.node].get(name) for op in plan.ops for name in op.type.mutations}
        slots = {*plan.state.values(), *(plan.slots[value] for value in changed if value)}
        found: dict[str, str] = {}
        for op in plan.setup:
            sources = plan.wiring.links[op.node]
            pure = op.type.kind == "function" and not (op.type.is_output or op.type.mutations or slots & {*op.outputs})
            if not pure or "run_dir" in op.type.injected.values() or any(v.node not in found for v in sources.values()):
                continue
            if code := _code(op.type.function):
                found[op.node] = self._key(op, code, {name: (found[v.node], v.output) for name, v in sources.items()})
        return found

    def _key(self, op: Op, code: str, sources: dict[str, tuple[str, int]]) -> str:
        named = op.node if {"rng", "seed"} & set(op.type.injected.values()) else ""
        parts = [op.type.name, code, repr(op.literals), _files(op.literals), sources, self.device, self.seed, named]
        return hashlib.blake2b(json.dumps(parts).encode()).hexdigest()


def _code(function: Any) -> str:
    """A hash of the file that defines a function; empty where there is none, as for one typed in at a prompt."""
    path = Path(inspect.getfile(function))
    return hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else ""


def _files(literals: dict[str, Any]) -> list[Any]:
    """The time and size of each file that a literal names, so that a changed file is read again."""
    found: list[Path] = []
    for text in texts(literals):
        with suppress(ValueError):  # it leads out of its pack, which the node tells
            path = resolve(text)
            if os.path.exists(path):  # noqa: PTH110 (Path's own raises where a text is too long)
                found += sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in found]
