"""Setup values kept between runs of one process."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

from sr_pipeline.check import Value
from sr_pipeline.plan import Op, Plan


class SetupCache(dict[str, Any]):
    """Results of setup nodes that no step changes, by type, code, literals, files named and ancestors.

    Give the same one to several calls of ``run``. Holds all it was given: clear it to free memory.
    """

    def __init__(self, device: str = "", seed: int = 0) -> None:
        super().__init__()
        self.device, self.seed = device, seed

    def key(self, op: Op, plan: Plan) -> str | None:
        """The key of a node's result; None for one that must be made anew: an output, a mutator, a value that steps
        change, or anything built from these."""
        return self._key(op.node, plan, {})

    def _key(self, node: str, plan: Plan, seen: dict[str, str | None]) -> str | None:
        if node not in seen:
            seen[node] = None
            made = plan.wiring.types[node]
            changed = any(plan.slots.get(Value(node, n)) in plan.state.values() for n in range(len(made.outputs)))
            if changed or made.is_output or made.mutations or "run_dir" in made.injected.values():
                return None
            sources = {name: (self._key(v.node, plan, seen), v.output) for name, v in plan.wiring.links[node].items()}
            if any(key is None for key, _ in sources.values()):
                return None
            literals = plan.wiring.literals[node]
            named = node if {"rng", "seed"} & set(made.injected.values()) else ""
            code, files = _code(made.function), _files(literals)
            parts = [made.name, code, repr(literals), files, sources, self.device, self.seed, named]
            seen[node] = hashlib.blake2b(json.dumps(parts).encode()).hexdigest()
        return seen[node]


def _code(function: Any) -> str:
    return hashlib.blake2b(Path(inspect.getfile(function)).read_bytes()).hexdigest()


def _files(literals: dict[str, Any]) -> list[Any]:
    """The time and size of each file that a literal names, so that a changed file is read again."""
    paths = [Path(v) for v in literals.values() if isinstance(v, (str, Path)) and v and "\0" not in str(v)]
    named = [p for path in paths if path.exists() for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in named]
