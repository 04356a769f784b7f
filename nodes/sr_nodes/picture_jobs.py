"""Which pictures a job is of, where each result goes, and files that are never half written."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from sr_nodes.picture_files import PIPE, WRITTEN
from sr_nodes.pictures import KINDS, find_files, find_pictures, is_picture
from sr_pipeline.files import written_beside
from sr_pipeline.paths import resolve

Format = Literal["same", "png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "avif"]
"""Of a result: as its source, or a suffix."""


class Place(NamedTuple):
    """A picture file, and the file that its result is to be; or a file of a folder that is no picture."""

    source: Path
    target: Path
    is_picture: bool = True


def places(inputs: Sequence[str], output: str, format: Format = "same", suffix: str = "") -> list[Place]:
    """Each picture of the inputs, in their order, with the place of its result; and files that are no pictures.

    An input is a file, a folder (with the folders in it), a pattern with ``*``, ``?`` or ``[``, or ``-``. What a folder
    or a pattern finds is a picture if its suffix says so; a file that is named is taken for one. The output is a
    folder, in which the structure of the inputs is kept; for one file, it can be a file or ``-`` too. With a suffix, a
    picture whose name is that of another one's result is that result, and not enlarged again.

    Raises:
        ValueError: a text is empty, a folder or pattern holds no picture, or the output cannot take so many, is of
            another format, or has a suffix that is no picture's.
    """
    if not all(text.strip() for text in inputs):
        raise ValueError("one of the inputs (IN) is empty; give a file, a folder, a pattern such as photos/*.jpg, or -")
    if not output.strip():
        raise ValueError("the output (OUT) is empty; give a folder, or for one picture a file or -; . is this folder")
    if set(suffix) & {"/", os.sep, "\0"}:
        raise ValueError(f"the suffix {suffix!r} would lead into another folder; give one without {os.sep}")
    output = os.path.expanduser(output)  # noqa: PTH111 (Path's own would take the slash off its end)
    found = [found for text in inputs for found in _sources(text, Path(output))]
    one = len(inputs) == 1 and len(found) == 1 and found[0][0] == resolve(inputs[0])
    if one and (Path(output) == PIPE or _is_file_name(output)):
        return [Place(found[0][0], _checked(Path(output), format))]
    if Path(output) == PIPE or any(source == PIPE for source, _, _ in found):
        raise ValueError("'-' is one picture to one file or to '-'; give a name such as out.png for the result")
    if Path(output).is_file():
        raise ValueError(_no_folder(output, sum(known for _, _, known in found), one))
    if not one and Path(output).suffix.lower() in WRITTEN and not _is_folder(output):
        raise ValueError(f"{output!r} is one picture's name; give a folder, or {output}{os.sep} if it is to be one")
    placed = [Place(source, Path(output) / _named(name, format, suffix), known) for source, name, known in found]
    results = {place.target.resolve() for place in placed} if suffix else set()
    return [place for place in placed if place.source.resolve() not in results]


def _no_folder(output: str, count: int, one: bool) -> str:
    if count > 1:
        return f"{output!r} is a file, and there are several pictures; give a folder"
    if one:
        return f"{output!r} is a file, and its name is no picture's; give a folder, or a name with {' '.join(WRITTEN)}"
    return f"{output!r} is a file, and a folder or pattern is to be enlarged; give a folder"


def _sources(text: str, output: Path) -> Iterator[tuple[Path, Path, bool]]:
    """Files, each with its name below the output folder, and whether it is taken for a picture."""
    path = resolve(text)
    if path.is_dir():
        find_pictures(path)  # which tells that there are none
        yield from _below_root(path, find_files(path), output)
    elif glob.has_magic(text) and not path.exists():
        every = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 (of absolute patterns too)
        found = [p for p in every if p.is_file()]
        if not any(map(is_picture, found)):
            raise ValueError(f"no picture matches {text!r}; its suffix would be one of {' '.join(sorted(KINDS))}")
        yield from _below_root(_fixed_part(path), found, output)
    else:
        yield path, Path(path.name), True


def _below_root(root: Path, found: list[Path], output: Path) -> Iterator[tuple[Path, Path, bool]]:
    # A result folder inside the input folder must not be enlarged again by the next call.
    inside = _below(output, root) and not _below(root, output)
    return ((p, p.relative_to(root), is_picture(p)) for p in found if not (inside and _below(p, output)))


def _below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first part with magic."""
    return next(p for p in pattern.parents if not glob.has_magic(str(p)))


def _is_folder(output: str) -> bool:
    return Path(output).is_dir() or output.endswith(("/", os.sep))


def _is_file_name(output: str) -> bool:
    """Whether the output of one file is a file, as its suffix says; a folder that is not there yet has none."""
    path = Path(output)
    if _is_folder(output) or not path.suffix:
        return False
    if path.suffix.lower() not in WRITTEN and not path.is_file():
        raise ValueError(
            f"{output!r} ends in {path.suffix!r}, a format that is not written; write one of {' '.join(WRITTEN)}, or "
            f"{output}{os.sep} if it is to be a folder"
        )
    return path.suffix.lower() in WRITTEN


def _checked(target: Path, format: Format) -> Path:
    kind = WRITTEN.get(target.suffix.lower())
    if target != PIPE and format != "same" and kind != WRITTEN[f".{format}"]:
        raise ValueError(f"the name {str(target)!r} and the format {format} contradict each other; leave one out")
    return target


def _named(name: Path, format: Format, suffix: str) -> Path:
    own = name.suffix if name.suffix.lower() in WRITTEN else ".png"
    return name.with_name(f"{name.stem}{suffix}{own if format == 'same' else '.' + format}")


def refusal(place: Place, sources: Collection[Path], taken: Mapping[Path, Path], overwrite: bool) -> str:
    """Why the result must not be written, or nothing; makes its folder."""
    source, target, _ = place
    if target == PIPE:
        return ""
    whole = target.resolve()
    if whole in taken:
        # Where only the endings differ, a format made the results alike.
        alike = {source.suffix.lower(), taken[whole].suffix.lower()}
        mend = "use --format same" if len(alike) == 2 and alike <= set(WRITTEN) else "give it an output of its own"
        return f"its result would be {target}, as that of {taken[whole]} is; {mend}, or rename it"
    if source.resolve() == whole and not overwrite:
        return "its result would take its place; give another output, a suffix, or --overwrite"
    if source.resolve() != whole and whole in sources:
        return f"its result would be {target}, which is one of the pictures to enlarge; give another output or a suffix"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK):
        return f"the folder {target.parent} cannot be written to; give another output"
    return ""


def share_of(text: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which share of a job is this process's, (K, N) with K of 1 to N: by ``K/N``, or by what started it.

    torchrun numbers its processes, and so does srun; where neither did, or only one was started, it is all of it.

    >>> share_of("2/3", {}), share_of(None, {"RANK": "3", "WORLD_SIZE": "4"}), share_of(None, {})
    ((2, 3), (4, 4), (1, 1))

    Raises:
        ValueError: the text is no share.
    """
    if text is not None:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        number, shares = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= shares:
            raise ValueError(f"the share {text!r} is not K/N with K from 1 to N; give 1/3 to the first of three")
        return number, shares
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in environment and size in environment:
            own, of = environment[rank], environment[size]
            if not (own.isdecimal() and of.isdecimal() and int(own) < int(of)):
                raise ValueError(f"{rank} is {own!r} and {size} {of!r}, no share of a job; give --share K/N")
            return int(own) + 1, int(of)
    return 1, 1


def shared_out(found: Sequence[Place], number: int, shares: int) -> list[int]:
    """The positions that are one share of a job: by turns, and pictures apart from other files, which cost nothing."""
    pictures = [position for position, place in enumerate(found) if place.is_picture]
    others = [position for position, place in enumerate(found) if not place.is_picture]
    return sorted(pictures[number - 1 :: shares] + others[number - 1 :: shares])


def write_bytes(target: Path, data: bytes) -> None:
    """Write a file beside its place, force it to the disk, and rename it: never half of it. ``-`` is stdout."""
    if target == PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with written_beside(target) as beside:
        beside.write_bytes(data)
