"""The graph: node ids, their types and their inputs, as a JSON file in ComfyUI's API format."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol

from sr_pipeline.errors import Fault, Faults, GraphError, nearest, quoted
from sr_pipeline.node import class_type
from sr_pipeline.pngtext import SIGNATURE, png_text

MAX_BYTES = 8 * 2**20
MAX_NODES = 10_000
MAX_DEPTH = 64
"""Levels of lists and objects in one literal."""
_WRAP = "__value__"
_KEYS = ("class_type", "inputs", "_meta")


class Editor(Protocol):
    """Reads a workflow of ComfyUI's editor, under the name of its source."""

    def __call__(self, workflow: dict[str, Any], source: str, /) -> Graph: ...


class Link(NamedTuple):
    """Output ``output`` (an index or a name) of node ``node``."""

    node: str
    output: int | str = 0

    def __str__(self) -> str:
        return f"{self.node}.{self.output}"


@dataclass
class Entry:
    """One node of a graph: a link or a JSON literal for each input that is set."""

    class_type: str
    inputs: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ref:
    """A node that was added; ``ref[0]`` and ``ref["model"]`` are links to its outputs."""

    node: str
    __iter__ = None  # how many outputs it has is not known here

    def __getitem__(self, output: int | str) -> Link:
        return Link(self.node, output)


@dataclass
class Graph:
    """A graph of nodes in the order of its file. ``source`` names it in messages.

    >>> graph = Graph()
    >>> photo = graph.add("load_image", id="photo", path="cat.png")
    >>> small = graph.add("bicubic", id="small", hr=photo, scale=4)
    >>> print(graph.to_json())
    {
      "photo": {"class_type": "load_image", "inputs": {"path": "cat.png"}},
      "small": {"class_type": "bicubic", "inputs": {"hr": ["photo", 0], "scale": 4}}
    }
    <BLANKLINE>
    >>> Graph.parse(graph.to_json()) == graph
    True
    """

    nodes: dict[str, Entry] = field(default_factory=dict)
    source: str = field(default="graph", compare=False)
    folders: tuple[Path, ...] | None = field(default=None, compare=False)
    """The folders that a graph from elsewhere may read; None for one that its user chose, which may read anywhere."""

    @classmethod
    def load(cls, path: str | Path, editor: Editor | None = None) -> Graph:
        """Read a graph file, or the graph in a PNG as ComfyUI writes it: its text ``prompt``, or else ``workflow``.

        A workflow of ComfyUI's editor is read by ``editor``, and refused without one. Who chose a picture did not
        choose what is written in it: such a graph reads only from the current folder.

        Raises:
            GraphError: it is no file, too large, no JSON, a PNG without a graph, or no graph; with all the faults of
                its form.
        """
        path, name = Path(path), str(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
                if data.startswith(SIGNATURE):
                    return cls.parse(_carried(file, name), name, editor).limited_to()
        except FileNotFoundError:
            _refuse(name, "no such file", "give the path of a graph file or the name of a shipped graph")
        except IsADirectoryError:
            _refuse(name, "is a directory", "give the path of a graph file")
        except OSError as error:
            _refuse(name, f"cannot be read: {error.strerror}", "check the path and its permissions")
        if len(data) > MAX_BYTES:
            _refuse(name, "too large for a graph", f"at most {MAX_BYTES} bytes are read")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            _refuse(name, f"not UTF-8 text (byte {error.start})", "a graph is a JSON file")
        return cls.parse(text, name, editor)

    @classmethod
    def parse(cls, text: str, source: str = "graph", editor: Editor | None = None) -> Graph:
        """Read a graph from JSON text; ``editor`` as in ``load``.

        Raises:
            GraphError: as ``load``.
        """
        faults = Faults()
        content = _read_json(text, source)
        if not isinstance(content, dict):
            _refuse(source, f"found {_kind(content)} at the top", "a graph is an object of nodes by id")
        if isinstance(content.get("nodes"), list) and "links" in content:
            if editor:
                return editor(content, source)
            _refuse(source, "this is a workflow of ComfyUI's editor", "export it with Save (API Format)")
        if not content:
            _refuse(source, "the graph is empty", "add a node")
        if len(content) > MAX_NODES:
            _refuse(source, f"found {len(content)} nodes", f"a graph has at most {MAX_NODES}")
        _check_repeats(source, content, faults)
        nodes = {id_: _read_entry(source, id_, entry, faults) for id_, entry in content.items()}
        if faults:
            raise GraphError(faults)
        return cls(nodes, source)

    def to_json(self) -> str:
        """ComfyUI's API format, one node a line."""
        lines = [f"  {json.dumps(id_)}: {_write_entry(e)}" for id_, e in self.nodes.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def limited_to(self, *folders: Path) -> Graph:
        """This graph as one from elsewhere: it may read from these folders beside the current one and those before."""
        return replace(self, folders=(*(self.folders or (Path.cwd(),)), *folders))

    def copy(self) -> Graph:
        return copy.deepcopy(self)

    def add(self, node: str | Callable[..., Any], /, *, id: str | None = None, **inputs: Any) -> Ref:
        """Add a node by its name or its function; an input is a literal, a ``Ref`` (its output 0) or a ``Link``.

        Raises:
            ValueError: the id is taken.
        """
        name = node if isinstance(node, str) else class_type(node)
        id_ = id or self._free_id(name)
        if id_ in self.nodes:
            raise ValueError(f"the id {id_!r} is taken")
        self.nodes[id_] = Entry(name, {k: _as_read(v) for k, v in inputs.items()})
        return Ref(id_)

    def _free_id(self, name: str) -> str:
        number = 1
        while (id_ := name if number == 1 else f"{name}_{number}") in self.nodes:
            number += 1
        return id_

    def where(self, node: str, input_: str = "") -> str:
        return _place(self.source, node, input_)


def _place(source: str, node: str, input_: str = "") -> str:
    parts = [part if part.isprintable() and len(part) < 99 else quoted(part) for part in (node or "''", input_) if part]
    return f"{source}: {'.'.join(parts)}"


def _refuse(where: str, what: str, fix: str) -> NoReturn:
    raise GraphError([Fault(where, what, fix)]) from None


def _carried(file: BinaryIO, name: str) -> str:
    """The graph's text in a PNG."""
    try:
        texts = (png_text(file, keyword, MAX_BYTES) for keyword in ("prompt", "workflow"))
        text = next((text for text in texts if text is not None), None)
    except ValueError as error:
        _refuse(name, f"this PNG's graph cannot be read: {error}", "give the picture as it was written")
    if text is None:
        _refuse(name, "this PNG carries no graph", "give one that was written with its metadata, or a graph file")
    return text


def _as_read(value: Any) -> Any:
    """What a program gave, as the graph's file would give it back."""
    if isinstance(value, Ref):
        return Link(value.node, 0)
    if isinstance(value, (list, tuple)) and not isinstance(value, Link):
        return [_as_read(v) for v in value]
    return str(value) if isinstance(value, Path) else value


class _Repeating(dict[str, Any]):
    """An object whose file gives some of its keys more than once."""

    repeated: list[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) == len(pairs):
        return found
    repeating = _Repeating(found)
    repeating.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return repeating


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)  # beyond any float, so infinite: refused with its place


def _read_json(text: str, source: str) -> Any:
    try:
        if not text.strip():
            _refuse(source, "the file is empty", "a graph is an object of nodes by id")
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        _refuse(source, f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}", "mend the file there")
    except RecursionError:
        _refuse(source, "nested too deeply", "a graph is an object of nodes by id")


def _check_repeats(where: str, content: Any, faults: Faults) -> None:
    if isinstance(content, _Repeating):
        for key in content.repeated:
            faults.append(Fault(where, f"the key {quoted(key)} is there twice", "rename or remove one"))


def _check_literal(where: str, value: Any, faults: Faults, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        faults.append(Fault(where, "nested too deeply", f"at most {MAX_DEPTH} levels are read"))
        return
    _check_repeats(where, value, faults)
    if isinstance(value, float) and not math.isfinite(value):
        found = "NaN" if math.isnan(value) else "Infinity or a number too large"
        faults.append(Fault(where, f"found {found}", "give a finite number"))
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_literal(where, child, faults, depth + 1)


def _read_entry(source: str, id_: str, entry: Any, faults: Faults) -> Entry:
    where = _place(source, id_)
    if not isinstance(entry, dict):
        faults.append(Fault(where, f"found {_kind(entry)}", 'a node is {"class_type": ..., "inputs": {...}}'))
        return Entry("")
    if not id_:
        faults.append(Fault(where, "a node's id is empty", "give it a word"))
    if any("\ud800" <= character <= "\udfff" for character in id_):
        faults.append(Fault(where, "a node's id holds half of a surrogate pair", "write whole characters"))
    _check_repeats(where, entry, faults)
    for key in (k for k in entry if k not in _KEYS):
        faults.append(Fault(where, f"unknown key {quoted(key)}", nearest(key, _KEYS)))
    kind, inputs, meta = entry.get("class_type"), entry.get("inputs", {}), entry.get("_meta", {})
    if not isinstance(kind, str):
        what = "no class_type" if "class_type" not in entry else f"class_type is {_kind(kind)}"
        faults.append(Fault(where, what, "name the node's type"))
    if not isinstance(inputs, dict):
        faults.append(Fault(where, f"inputs is {_kind(inputs)}", "write an object of values and links by name"))
        inputs = {}
    if not isinstance(meta, dict):
        faults.append(Fault(where, f"_meta is {_kind(meta)}", "write an object"))
        meta = {}
    _check_repeats(where, inputs, faults)
    _check_literal(where, meta, faults)
    read = {name: _read_value(_place(source, id_, name), value, faults) for name, value in inputs.items()}
    return Entry(kind if isinstance(kind, str) else "", read, meta)


def _read_value(where: str, value: Any, faults: Faults) -> Any:
    before = len(faults)
    _check_literal(where, value, faults)
    if len(faults) > before:
        return None
    if isinstance(value, list):
        if link := as_link(value):
            return link
        faults.append(
            Fault(
                where, f"the list {_short(value)} is no link", f'write ["node", 0], or {{"{_WRAP}": [...]}} for a list'
            )
        )
    if isinstance(value, dict) and set(value) == {_WRAP}:
        return value[_WRAP]
    return value


def as_link(value: list[Any]) -> Link | None:
    """``["node", 0]`` or ``["node", "model"]`` as a link; None for any other list."""
    if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, str)):
        return None if isinstance(value[1], bool) else Link(value[0], value[1])
    return None


def _write_entry(entry: Entry) -> str:
    inputs = {name: _write_value(value) for name, value in entry.inputs.items()}
    written: dict[str, Any] = {"class_type": entry.class_type, "inputs": inputs}
    if entry.meta:
        written["_meta"] = entry.meta
    return json.dumps(written, ensure_ascii=False)


def _write_value(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node, value.output]
    if isinstance(value, (list, tuple)) or (isinstance(value, Mapping) and set(value) == {_WRAP}):
        return {_WRAP: value}
    return str(value) if isinstance(value, Path) else value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
