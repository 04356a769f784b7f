"""Files that travel with the pack. Imports no torch: the command line asks it for graphs."""

from __future__ import annotations

import re
from pathlib import Path

from sr_pipeline.paths import resolve

WEIGHTS = "[A-Za-z0-9_]+_x[0-9]"
_PACKAGE = Path(__file__).resolve().parent


def graphs() -> Path:
    """The folder of the shipped graphs: inside an installed package, at the top of a checkout."""
    inside = _PACKAGE / "graphs"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "graphs"


def weights_file(text: str) -> Path:
    """A file of weights by the name of one that ships ("srresnet_x4"), by path, or by ``sr_nodes:NAME``."""
    shipped = _PACKAGE / "weights" / f"{text}.safetensors"
    return shipped if re.fullmatch(WEIGHTS, text) and shipped.is_file() else resolve(text)


def shipped_weights() -> list[str]:
    """The names of the generators that ship."""
    files = (path.stem for path in (_PACKAGE / "weights").glob("*.safetensors"))
    return sorted(name for name in files if re.fullmatch(WEIGHTS, name))
