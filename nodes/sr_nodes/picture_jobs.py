"""Which pictures a job is of, where each result goes, and files that are never half written."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import PIL.Image

from sr_nodes.assets import resolve
from sr_nodes.picture_files import KINDS, PIPE
from sr_nodes.pictures import SUFFIXES, find_pictures
from sr_pipeline.files import written_beside
from sr_pipeline.processes import is_running

Format = Literal["same", "png", "jpg", "webp", "tiff", "avif"]

_TEMPORARY = re.compile(r"\.sr-pipeline-(\d+)-[0-9a-f]{8}\.part")


class Place(NamedTuple):
    """A picture file, and the file that its result is to be."""

    source: Path
    target: Path


def places(inputs: Sequence[str], output: str, format: Format = "same", suffix: str = "") -> list[Place]:
    """Each picture of the inputs, in their order, with the place of its result.

    An input is a file, a folder (with the folders in it), a pattern with ``*``, ``?`` or ``[``, or ``-``. The output is
    a folder, in which the structure of the inputs is kept; for one file, it can be a file or ``-`` too. With a suffix,
    a picture whose name is that of another one's result is that result, and not enlarged again.

    Raises:
        ValueError: a text is empty, a folder or pattern holds no picture, or the output cannot take so many or is of
            another format.
    """
    if not all(text.strip() for text in inputs):
        raise ValueError("one of the inputs (IN) is empty; give a file, a folder, a pattern such as photos/*.jpg, or -")
    if not output.strip():
        raise ValueError("the output (OUT) is empty; give a folder, or for one picture a file or -; . is this folder")
    found = [(source, name) for text in inputs for source, name in _sources(text, Path(output))]
    one = len(inputs) == 1 and len(found) == 1 and found[0][0] == resolve(inputs[0])
    if one and (Path(output) == PIPE or _is_file_name(output)):
        return [Place(found[0][0], _checked(Path(output), format))]
    if Path(output) == PIPE or any(source == PIPE for source, _ in found):
        raise ValueError("'-' is one picture to one file or to '-'; give a name such as out.png for the result")
    if Path(output).is_file():
        raise ValueError(_no_folder(output, len(found), one))
    placed = [Place(source, Path(output) / _named(name, format, suffix)) for source, name in found]
    results = {place.target.resolve() for place in placed} if suffix else set()
    return [place for place in placed if place.source.resolve() not in results]


def _no_folder(output: str, count: int, one: bool) -> str:
    if count > 1:
        return f"{output!r} is a file, and there are several pictures; give a folder"
    if one:
        return f"{output!r} is a file, and its name is no picture's; give a folder, or a name with {' '.join(KINDS)}"
    return f"{output!r} is a file, and a folder or pattern is to be enlarged; give a folder"


def _sources(text: str, output: Path) -> Iterator[tuple[Path, Path]]:
    """Files, each with its name below the output folder."""
    path = resolve(text)
    if path.is_dir():
        yield from _below_root(path, find_pictures(path), output)
    elif glob.has_magic(text) and not path.exists():
        every = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 (of absolute patterns too)
        found = [p for p in every if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not found:
            raise ValueError(f"no picture matches {text!r}; its suffix would be one of {' '.join(sorted(SUFFIXES))}")
        yield from _below_root(_fixed_part(path), found, output)
    else:
        yield path, Path(path.name)


def _below_root(root: Path, found: list[Path], output: Path) -> Iterator[tuple[Path, Path]]:
    # A result folder inside the input folder must not be enlarged again by the next call.
    inside = _below(output, root) and not _below(root, output)
    return ((p, p.relative_to(root)) for p in found if not (inside and _below(p, output)))


def _below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first part with magic."""
    return next(p for p in pattern.parents if not glob.has_magic(str(p)))


def _is_file_name(output: str) -> bool:
    path = Path(output)
    if path.is_dir() or output.endswith(os.sep) or path.suffix.lower() not in PIL.Image.registered_extensions():
        return False
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"{output!r} is of a format that is not written; write one of {' '.join(KINDS)}")
    return True


def _checked(target: Path, format: Format) -> Path:
    kind = KINDS.get(target.suffix.lower())
    if target != PIPE and format != "same" and kind != KINDS[f".{format}"]:
        raise ValueError(f"the name {str(target)!r} and the format {format} contradict each other; leave one out")
    return target


def _named(name: Path, format: Format, suffix: str) -> Path:
    own = name.suffix if name.suffix.lower() in KINDS else ".png"
    return name.with_name(f"{name.stem}{suffix}{own if format == 'same' else '.' + format}")


def refusal(place: Place, sources: Collection[Path], taken: Mapping[Path, Path], overwrite: bool) -> str:
    """Why the result must not be written, or nothing; makes its folder."""
    source, target = place
    if target == PIPE:
        return ""
    whole = target.resolve()
    if whole in taken:
        # Where only the endings differ, a format made the results alike.
        alike = {source.suffix.lower(), taken[whole].suffix.lower()}
        mend = "use --format same" if len(alike) == 2 and alike <= set(KINDS) else "give it an output of its own"
        return f"its result would be {target}, as that of {taken[whole]} is; {mend}, or rename it"
    if source.resolve() == whole and not overwrite:
        return "its result would take its place; give another output, a suffix, or --overwrite"
    if source.resolve() != whole and whole in sources:
        return f"its result would be {target}, which is one of the pictures to enlarge; give another output or a suffix"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK):
        return f"the folder {target.parent} cannot be written to; give another output"
    return ""


def write_bytes(target: Path, data: bytes) -> None:
    """Write a file beside its place, force it to the disk, and rename it: never half of it. ``-`` is stdout."""
    if target == PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with written_beside(target) as beside:
        beside.write_bytes(data)


def remove_stale(folder: Path, recursive: bool) -> None:
    """Remove the temporary files of runs that were killed; those of running ones are left."""
    for path in (folder.rglob if recursive else folder.glob)(".sr-pipeline-*.part"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            with suppress(OSError):  # gone, or on Windows still open
                path.unlink()
