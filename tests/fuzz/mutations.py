"""Mutations of files: of their bytes, and of what they mean. Each depends on its random source alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

TEXTS = [
    *(
        "",
        "a",
        "..",
        "../../etc/passwd",
        "/dev/zero",
        "sr_nodes:../x",
        "é\u202e\u0000",
        "\ud800",
        "\U0001d518" * 50,
        "x" * 5000,
        "-1",
    ),
]
NUMBERS = [0, 1, -1, 2, 3, 7, 64, 255, 10**6, -(10**9), 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1e-300, 1e300]
RAW = [
    *("NaN", "Infinity", "-Infinity", "1e999", "1" * 500, "tru", "'a'", "[" * 200, "\ufeff", "/**/", "\\u0000"),
    '{"a":' * 200,
]


def mutated_bytes(data: bytes, rng: Random, region: range | None = None) -> bytes:
    """One to four changes of bytes, all of them in a region."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        area = region or range(len(changed))
        if not len(area) or area.stop > len(changed):
            area = range(max(1, len(changed)))
        at, length = rng.choice(area), rng.choice([1, 1, 2, 8, 64])
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([changed[at] ^ (1 << rng.randrange(8))]) if at < len(changed) else b"\0"
            case 1:
                changed[at : at + length] = rng.randbytes(len(changed[at : at + length]))
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = rng.randbytes(length)
            case 4:
                changed[at : at + length] = rng.choice([b"\0", b"\xff", b"9", b"[", b'"']) * length
            case 5:
                del changed[at:]
    return bytes(changed)


def mutated_graph(content: dict[str, Any], others: Sequence[dict[str, Any]], rng: Random, tiny: bool = False) -> str:
    """JSON text of a graph after one to three changes of its nodes, types, links and literals.

    Args:
        tiny: leave out numbers that make a run large, and text that is no JSON.
    """
    changed = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if changed:
            _mutate_graph(changed, others, rng, tiny)
    text = json.dumps(changed)
    if not tiny and rng.random() < 0.2:  # what a dictionary cannot hold: keys twice, numbers that JSON has not
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice([*RAW, text[: rng.randrange(200)], '"inputs": {}, ']) + text[at:]
    return text


def _mutate_graph(graph: dict[str, Any], others: Sequence[dict[str, Any]], rng: Random, tiny: bool) -> None:
    id_ = rng.choice(list(graph))
    entry = graph[id_]
    inputs = entry.get("inputs") if isinstance(entry, dict) else None
    name = rng.choice(list(inputs)) if isinstance(inputs, dict) and inputs else None
    match rng.randrange(9):
        case 0:
            del graph[id_]
        case 1:
            graph[rng.choice([*graph, *TEXTS[:3], "new"])] = graph.pop(id_)
        case 2:  # a node of another graph, or another one of this
            other = rng.choice(others)
            graph[id_] = copy.deepcopy(other[rng.choice(list(other))])
        case 3 if isinstance(entry, dict):
            entry["class_type"] = rng.choice([e.get("class_type", "") for g in others for e in g.values()])
        case 4 if not tiny:
            graph[id_] = _value(graph, rng, tiny)
        case 5 if isinstance(entry, dict) and not tiny:
            entry[rng.choice(["inputs", "class_type", "_meta", "more"])] = _value(graph, rng, tiny)
        case 6 if isinstance(inputs, dict) and name:
            inputs[rng.choice([*inputs, "more"])] = inputs.pop(name)
        case _ if isinstance(inputs, dict) and name:
            inputs[name] = _value(graph, rng, tiny)


def _value(graph: dict[str, Any], rng: Random, tiny: bool) -> Any:
    match rng.randrange(7):
        case 0 | 1:
            return [rng.choice(list(graph)), rng.choice([0, 0, 0, 1, -1, "x", 10**9])]
        case 2:
            return rng.choice(NUMBERS[:6] if tiny else NUMBERS)
        case 3:
            return rng.choice([True, False, None, "false", "auto", "hinge", "54", "bicubic"])
        case 4:
            return rng.choice(TEXTS[:3] if tiny else TEXTS)
        case 5:
            return {"__value__": [rng.choice(NUMBERS[:6]) for _ in range(rng.randrange(4))]}
        case _:
            return _nested(rng.choice([1, 3, 70, 900]) if not tiny else 2)


def _nested(depth: int) -> Any:
    value: Any = 1
    for n in range(depth):
        value = [value] if n % 2 else {"a": value}
    return value
