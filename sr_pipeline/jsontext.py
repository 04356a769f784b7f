"""JSON as its standard has it, whatever numbers came out."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def strict_json(value: Any) -> str:
    """The JSON text of a value, indented; infinities and NaN, which JSON has not, are null.

    >>> print(strict_json({"psnr": [30.5, float("inf")]}))
    {
      "psnr": [
        30.5,
        null
      ]
    }
    """
    return json.dumps(_with_null(value), indent=2, allow_nan=False)


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text, all of whose numbers are finite.

    >>> read_json("[1e999]")
    Traceback (most recent call last):
    ...
    ValueError: 1e999 is too large for a number

    Raises:
        ValueError: it is no JSON, or holds NaN or a number beyond all floats.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_number, parse_float=_finite)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{text[:40]} is too large for a number")
    return found


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
