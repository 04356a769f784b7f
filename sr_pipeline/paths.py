"""Where a graph may read and write: paths that travel with a pack, names in the run's folder, folders allowed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from glob import has_magic
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

PACKS = "sr_pipeline.packs"
"""The entry points by which packages announce packs."""
OWN_FILES = frozenset({"graph.json", "run.json", "events.jsonl", "metrics.csv", "checkpoints", "tensorboard", ".lock"})
"""What the run itself keeps in its folder."""


def announced(group: str) -> list[EntryPoint]:
    """The entry points of a group that installed packages announce, as they were when first asked for any."""
    return list(_announced().select(group=group))


@lru_cache
def _announced() -> Any:  # of another type in Python 3.11 than after
    """All of them: each look reads a file of every package, which takes a hundredth of a second."""
    return entry_points()


def resolve(text: str) -> Path:
    """A path as given, or ``PACK:NAME``, a file or folder that travels with an installed pack.

    >>> resolve("photos/cat.png").as_posix()
    'photos/cat.png'
    >>> resolve("sr_nodes:samples").is_dir()
    True

    Raises:
        ValueError: the name leads out of its pack.
    """
    pack, colon, name = text.partition(":")
    root = _packs().get(pack) if colon else None
    if root is None:
        try:
            return Path(text).expanduser()
        except RuntimeError:  # ~name, and there is nobody of that name
            return Path(text)
    path = root / name
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{text!r} leads out of the pack {pack}; name a file that travels with it")
    return path


@lru_cache
def _packs() -> dict[str, Path]:
    """The folder of each installed pack."""
    specs = {point.name: find_spec(point.value) for point in announced(PACKS)}
    return {name: Path(spec.origin).resolve().parent for name, spec in specs.items() if spec and spec.origin}


def inside(folder: Path, name: str) -> Path:
    """The path of a file or folder that a node writes in the run's folder.

    >>> inside(Path("runs/cats"), "previews/cat.png").as_posix()
    'runs/cats/previews/cat.png'

    Raises:
        ValueError: the name leads out of the folder, or is of a file that the run keeps there.
    """
    path = folder / name
    found = no_name(name)
    if not found and not path.resolve().is_relative_to(folder.resolve()):  # by a link in the folder
        found = "is outside of the run's folder"
    if found:
        raise ValueError(f"{name!r} {found}; give a path in it")
    return path


def no_name(text: str) -> str:
    """Why a text cannot name a file in the run's folder on any system, or nothing."""
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if posix.is_absolute() or windows.anchor or ".." in windows.parts:
        return "is outside of the run's folder"
    if not windows.parts or "\0" in text:
        return "is no name"
    if windows.parts[0].casefold().rstrip(". ") in OWN_FILES:
        return "is the run's own"
    return ""


def out_of_reach(text: str, folders: Sequence[Path]) -> str:
    """Why a graph that may read only from these folders, and from what ships with packs, may not read a path; or "".

    Links are followed before it is decided, and those inside a folder that is read may not lead out of it.
    """
    drive = PureWindowsPath(text).drive.casefold()
    if drive and drive not in {folder.drive.casefold() for folder in folders}:
        return "names a drive or a share"  # told before the disk is asked, which would tell the share's server
    try:
        path = resolve(text).resolve()
        if text.partition(":")[0] in _packs():
            return ""
        if has_magic(text):
            if ".." in Path(text).parts:
                return "is a pattern that goes up"
            path = next(parent for parent in path.parents if not has_magic(str(parent)))
        if not any(path.is_relative_to(folder.resolve()) for folder in folders):
            return "is outside of the folders that this graph may read"
        leading_out = _link_out(path)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        return f"is no path that can be followed ({error})"
    return f"holds a link that leads out of it ({leading_out.name})" if leading_out else ""


def _link_out(folder: Path) -> Path | None:
    for root, folders, files in os.walk(folder):  # which follows no link itself
        for path in (Path(root, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(folder):
                return path
    return None
