"""Graph files: written and read back unchanged, built in Python, and refused as files."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_pipeline.errors import MAX_FAULTS, GraphError
from sr_pipeline.graph import MAX_BYTES, MAX_DEPTH, MAX_NODES, Entry, Graph, Link, Ref
from sr_pipeline.node import node

SHIPPED = sorted((Path(__file__).parents[2] / "graphs").glob("*.json"))

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
keys = text | st.sampled_from(["__value__", "class_type", "inputs"])
literals = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6)
looks_like_a_link = st.tuples(ids, st.integers(0, 2)).map(list)
links = st.builds(Link, ids, st.integers() | text)
entries = st.builds(
    Entry,
    ids,
    st.dictionaries(text, literals | looks_like_a_link | links, max_size=4),
    st.dictionaries(text, literals, max_size=2),
)
graphs = st.builds(Graph, st.dictionaries(ids, entries, min_size=1, max_size=4))


@given(graphs)
def test_what_is_written_is_read_back(graph: Graph) -> None:
    read = Graph.parse(graph.to_json())
    assert read == graph
    assert list(read.nodes) == list(graph.nodes)
    assert [list(e.inputs) for e in read.nodes.values()] == [list(e.inputs) for e in graph.nodes.values()]
    assert {k: type(v) for e in read.nodes.values() for k, v in e.inputs.items()} == {
        k: type(v) for e in graph.nodes.values() for k, v in e.inputs.items()
    }


@given(graphs)
def test_a_file_has_a_line_a_node(graph: Graph) -> None:
    assert graph.to_json().count("\n") == len(graph.nodes) + 2
    assert list(json.loads(graph.to_json())) == list(graph.nodes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_graphs_are_written_as_they_are(path: Path) -> None:
    assert Graph.load(path).to_json() == path.read_text(encoding="utf-8")


def test_save_and_load(tmp_path: Path) -> None:
    graph = Graph()
    graph.add("load_image", id="Bild-\u00e4\u56fe", path="\u00e9.png")
    graph.save(tmp_path / "g.json")
    loaded = Graph.load(tmp_path / "g.json")
    assert loaded == graph
    assert loaded.source == str(tmp_path / "g.json")


@given(graphs)
def test_a_copy_shares_nothing(graph: Graph) -> None:
    before = graph.to_json()
    copy = graph.copy()
    assert (copy, copy.source) == (graph, graph.source)
    for entry in copy.nodes.values():
        for value in entry.inputs.values():
            if isinstance(value, (list, dict)):
                value.clear()
        entry.inputs["new"], entry.meta["new"], entry.class_type = 1, 1, "new"
    copy.nodes["new node"] = Entry("new")
    assert graph.to_json() == before


@node
def double_it(x: float, name: str = "") -> float:
    return 2 * x


def test_the_builder_takes_names_and_functions_literals_and_outputs() -> None:
    graph = Graph()
    first = graph.add(double_it, x=1.0, name=Path("a/b"))
    second = graph.add("double_it", x=first)
    third = graph.add(double_it, id="last", x=second, name=[("a", Path("b"))], y=first["large"], z=first[1])
    assert (first, second, third) == (Ref("double_it"), Ref("double_it_2"), Ref("last"))
    assert graph.nodes["double_it"].inputs == {"x": 1.0, "name": "a/b"}
    assert graph.nodes["double_it_2"].inputs == {"x": Link("double_it", 0)}
    assert graph.nodes["last"].inputs == {
        "x": Link("double_it_2", 0),
        "name": [["a", "b"]],
        "y": Link("double_it", "large"),
        "z": Link("double_it", 1),
    }
    assert Graph.parse(graph.to_json()) == graph


def test_an_id_is_taken_once() -> None:
    graph = Graph()
    graph.add(double_it, id="x", x=1.0)
    before = graph.to_json()
    with pytest.raises(ValueError, match=r"^the id 'x' is taken$"):
        graph.add(double_it, id="x", x=2.0)
    assert graph.to_json() == before


@pytest.mark.parametrize(
    ("node_", "input_", "place"),
    [
        ("a", "b", "g: a.b"),
        ("a", "", "g: a"),
        ("", "", "g: ''"),
        ("a\nb", "c", r"g: 'a\nb'.c"),
        ("\u56fe", "", "g: \u56fe"),
    ],
)
def test_a_place_in_a_graph_is_one_line(node_: str, input_: str, place: str) -> None:
    assert Graph(source="g").where(node_, input_) == place


GOOD = '{"photo": {"class_type": "load_image", "inputs": {"path": "cat.png"}}}'


@pytest.mark.parametrize(
    "data",
    [GOOD.encode(), b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace(" ", "\r\n").encode()],
    ids=["", "bom", "crlf"],
)
def test_bytes_that_are_read(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_bytes(data)
    assert Graph.load(path).nodes == {"photo": Entry("load_image", {"path": "cat.png"})}


def refused(path: Path, what: str) -> None:
    with pytest.raises(GraphError, match=f"^{re.escape(f'{path}: {what}')}$"):
        Graph.load(path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (GOOD.replace("cat", "\u00e9").encode("latin-1"), "not UTF-8 text (byte 59); a graph is a JSON file"),
        (GOOD.encode("utf-16"), "not UTF-8 text (byte 0); a graph is a JSON file"),
        (
            b"\x89PNG\r\n\x1a\n",
            "this PNG carries no graph; give one that was written with its metadata, or a graph file",
        ),
        (b"\xef\xbb\xbf", "the file is empty; a graph is an object of nodes by id"),
        (GOOD.encode() + b"\0", "not JSON at line 1, column 71: Extra data; mend the file there"),
        (b"[" * 100_000, "nested too deeply; a graph is an object of nodes by id"),
    ],
    ids=["latin-1", "utf-16", "png", "bom alone", "nul", "brackets"],
)
def test_bytes_that_are_refused(data: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_bytes(data)
    refused(path, what)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_png_carries_a_graph(tmp_path: Path) -> None:
    """As ComfyUI writes it, in a PNG larger than a graph file may be; its faults name the picture."""
    path = tmp_path / "a.png"
    text = b"tEXt", b"prompt\0" + GOOD.encode()
    path.write_bytes(png((b"IDAT", b"x" * (MAX_BYTES + 1)), text))
    loaded = Graph.load(path)
    assert (loaded, loaded.source) == (Graph.parse(GOOD), str(path))
    path.write_bytes(png((b"tEXt", b"prompt\0{}")))
    refused(path, "the graph is empty; add a node")
    path.write_bytes(png(text)[:-20])
    what = "this PNG's graph cannot be read: its text 'prompt' is cut short or damaged"
    refused(path, f"{what}; give the picture as it was written")


def test_a_hundred_megabytes_of_brackets_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.json"
    path.write_bytes(b"[" * 100 * 2**20)
    monkeypatch.setattr(Graph, "parse", None)
    refused(path, f"too large for a graph; at most {MAX_BYTES} bytes are read")


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_bytes(GOOD.encode().ljust(MAX_BYTES))
    assert list(Graph.load(path).nodes) == ["photo"]
    path.write_bytes(GOOD.encode().ljust(MAX_BYTES + 1))
    refused(path, f"too large for a graph; at most {MAX_BYTES} bytes are read")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory; give the path of a graph file")
    refused(tmp_path / "g.json", "no such file; give the path of a graph file or the name of a shipped graph")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "cannot be read: Too many levels of symbolic links; check the path and its permissions")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text(GOOD, encoding="utf-8")
    path.chmod(0)
    refused(path, "cannot be read: Permission denied; check the path and its permissions")


def nested(depth: int, opening: str, closing: str) -> str:
    return GOOD.replace('"cat.png"', '{"__value__": ' + opening * depth + "1" + closing * depth + "}")


@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a": ', "}")], ids=["lists", "objects"])
def test_literals_are_nested_so_deep_and_no_deeper(brackets: tuple[str, str]) -> None:
    read: Any = Graph.parse(nested(MAX_DEPTH - 1, *brackets)).nodes["photo"].inputs["path"]
    for _ in range(MAX_DEPTH - 1):
        read = read[0] if isinstance(read, list) else read["a"]
    assert read == 1
    where = f"graph: photo.path: nested too deeply; at most {MAX_DEPTH} levels are read"
    with pytest.raises(GraphError, match=f"^{re.escape(where)}$"):
        Graph.parse(nested(MAX_DEPTH, *brackets))


@pytest.mark.parametrize("depth", [sys.getrecursionlimit() // 2, sys.getrecursionlimit(), 200_000])
def test_no_depth_ends_in_a_recursion_error(depth: int) -> None:
    for brackets in (("[", "]"), ('{"a": ', "}")):
        with pytest.raises(GraphError, match="nested too deeply; "):
            Graph.parse(nested(depth, *brackets))


@given(st.text(max_size=20) | st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(keys, v)).map(json.dumps))
def test_any_text_is_a_graph_or_refused_with_its_source(content: str) -> None:
    try:
        graph = Graph.parse(content, "the source")
    except GraphError as error:
        wrong = [fault for fault in error.faults if not fault.where.startswith("the source")]
    else:
        wrong = []
        assert Graph.parse(graph.to_json()) == graph
    assert not wrong


def test_a_graph_has_so_many_nodes_and_no_more() -> None:
    nodes = {f"n{number}": {"class_type": "a"} for number in range(MAX_NODES)}
    assert len(Graph.parse(json.dumps(nodes)).nodes) == MAX_NODES
    with pytest.raises(GraphError, match=f"^graph: found {MAX_NODES + 1} nodes; a graph has at most {MAX_NODES}$"):
        Graph.parse(json.dumps({**nodes, "more": {"class_type": "a"}}))


def test_a_thousand_faults_are_told_as_a_hundred() -> None:
    with pytest.raises(GraphError, match=r"and more: this is no graph; mend these first$") as error:
        Graph.parse(json.dumps({f"n{number}": 1 for number in range(1000)}))
    assert len(error.value.faults) == MAX_FAULTS + 1


def test_names_without_end_are_told_cut_short() -> None:
    text = json.dumps({"n" * 10**6: {"x" * 10**6: 1, "class_type": "a", "inputs": {"i" * 10**6: ["m" * 10**6]}}})
    with pytest.raises(GraphError, match=r"graph: 'n+\.\.\.: unknown key 'x+\.\.\.;") as error:
        Graph.parse(text)
    assert len(str(error.value)) < 1000
