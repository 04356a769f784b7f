"""The graph: node ids, their types and their inputs, as a JSON file in ComfyUI's API format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sr_pipeline.errors import Fault, GraphError, nearest
from sr_pipeline.node import class_type

MAX_BYTES = 32 * 2**20
_WRAP = "__value__"


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


class Ref(NamedTuple):
    """A node that was added; ``ref[0]`` and ``ref["model"]`` are links to its outputs."""

    node: str

    def __getitem__(self, output: int | str) -> Link:  # type: ignore[override]
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

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Read a graph file.

        Raises:
            GraphError: it is no file, too large, no JSON, or no graph; with all the faults of its form.
        """
        path, name = Path(path), str(path)
        try:
            size = path.stat().st_size
            if path.is_file() and size > MAX_BYTES:
                _refuse(name, f"{size} bytes are too many for a graph", f"at most {MAX_BYTES} are read")
            data = path.read_bytes()
        except FileNotFoundError:
            _refuse(name, "no such file", "give the path of a graph file or the name of a shipped graph")
        except IsADirectoryError:
            _refuse(name, "is a directory", "give the path of a graph file")
        except OSError as error:
            _refuse(name, f"cannot be read: {error.strerror}", "check the path and its permissions")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            _refuse(name, f"not UTF-8 text (byte {error.start})", "a graph is a JSON file")
        return cls.parse(text, name)

    @classmethod
    def parse(cls, text: str, source: str = "graph") -> Graph:
        """Read a graph from JSON text.

        Raises:
            GraphError: as ``load``.
        """
        faults: list[Fault] = []
        content = _read_json(text, source, faults)
        if not isinstance(content, dict):
            _refuse(source, f"found {_kind(content)} at the top", "a graph is an object of nodes by id")
        if isinstance(content.get("nodes"), list) and "links" in content:
            _refuse(source, "this is a workflow of ComfyUI's editor", "export it with Save (API Format)")
        if not content and not faults:
            _refuse(source, "the graph is empty", "add a node")
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

    def copy(self) -> Graph:
        nodes = {id_: Entry(e.class_type, dict(e.inputs), dict(e.meta)) for id_, e in self.nodes.items()}
        return Graph(nodes, self.source)

    def add(self, node: str | Callable[..., Any], /, *, id: str | None = None, **inputs: Any) -> Ref:
        """Add a node by its name or its function; an input is a literal, a ``Ref`` (its output 0) or a ``Link``.

        Raises:
            ValueError: the id is taken.
        """
        name = node if isinstance(node, str) else class_type(node)
        id_ = id or self._free_id(name)
        if id_ in self.nodes:
            raise ValueError(f"the id {id_!r} is taken")
        wired = {k: Link(v.node, 0) if isinstance(v, Ref) else v for k, v in inputs.items()}
        self.nodes[id_] = Entry(name, wired)
        return Ref(id_)

    def _free_id(self, name: str) -> str:
        number = 1
        while (id_ := name if number == 1 else f"{name}_{number}") in self.nodes:
            number += 1
        return id_

    def where(self, node: str, input_: str = "") -> str:
        return f"{self.source}: {node}" + (f".{input_}" if input_ else "")


def _refuse(where: str, what: str, fix: str) -> Any:
    raise GraphError([Fault(where, what, fix)]) from None


def _read_json(text: str, source: str, faults: list[Fault]) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            faults.append(Fault(source, f"the key {twice!r} is there twice", "rename or remove one"))
        return found

    def refuse_constant(name: str) -> Any:
        faults.append(Fault(source, f"{name} is not JSON", "give a finite number"))

    try:
        if not text.strip():
            _refuse(source, "the file is empty", "a graph is an object of nodes by id")
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        _refuse(source, f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}", "mend the file there")
    except RecursionError:
        _refuse(source, "nested too deeply", "a graph is an object of nodes by id")
    except ValueError:
        _refuse(source, "a number has too many digits", "shorten it")


def _read_entry(source: str, id_: str, entry: Any, faults: list[Fault]) -> Entry:
    where = f"{source}: {id_}"
    if not isinstance(entry, dict):
        faults.append(Fault(where, f"found {_kind(entry)}", 'a node is {"class_type": ..., "inputs": {...}}'))
        return Entry("")
    if not id_:
        faults.append(Fault(where, "a node's id is empty", "give it a word"))
    for key in entry.keys() - {"class_type", "inputs", "_meta"}:
        faults.append(Fault(where, f"unknown key {key!r}", nearest(key, ["class_type", "inputs", "_meta"])))
    kind, inputs, meta = entry.get("class_type"), entry.get("inputs", {}), entry.get("_meta", {})
    if not isinstance(kind, str):
        what = "no class_type" if "class_type" not in entry else f"class_type is {_kind(kind)}"
        faults.append(Fault(where, what, "name the node's type"))
    if not isinstance(inputs, dict):
        faults.append(Fault(where, f"inputs is {_kind(inputs)}", "inputs is an object of values and links by name"))
        inputs = {}
    if not isinstance(meta, dict):
        faults.append(Fault(where, f"_meta is {_kind(meta)}", "_meta is an object"))
        meta = {}
    read = {name: _read_value(f"{where}.{name}", value, faults) for name, value in inputs.items()}
    return Entry(kind if isinstance(kind, str) else "", read, meta)


def _read_value(where: str, value: Any, faults: list[Fault]) -> Any:
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
