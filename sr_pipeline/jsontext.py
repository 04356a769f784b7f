"""JSON as its standard has it, whatever numbers came out."""

from __future__ import annotations

import json
import math
from typing import Any


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


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
