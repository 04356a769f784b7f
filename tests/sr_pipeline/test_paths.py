"""What a graph may read and write: names in the run's folder, and folders that a graph from elsewhere may read."""

from __future__ import annotations

import re
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sr_pipeline.check import check, with_settings
from sr_pipeline.errors import GraphError, NodeRunError
from sr_pipeline.graph import Graph, Link
from sr_pipeline.node import node
from sr_pipeline.paths import inside, no_name, out_of_reach, resolve
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sockets import InputPath, OutputName, OutputPath, RunDir

HERE = Path()


@node
def said(text: str = "../../secret") -> str:
    return text


@node
def read(path: InputPath, more: tuple[InputPath, ...] = (), also: InputPath | None = None) -> str:
    return "".join(resolve(text).read_text() for text in (path, *more))


@node
def write(text: str, name: OutputName = "out.txt", copy: OutputPath | None = None, run_dir: RunDir = HERE) -> None:
    path = inside(run_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


TOYS = Registry([said, read, write])


def graph(**inputs: object) -> Graph:
    made = Graph()
    made.add("write", id="w", text=made.add("read", id="r", **inputs))
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, beside which something is that a graph from elsewhere must not read."""
    here = tmp_path / "here"
    (here / "in").mkdir(parents=True)
    (here / "in" / "a.txt").write_text("a")
    (tmp_path / "secret").write_text("secret")
    (here / "out").symlink_to(tmp_path)
    (here / "leak").symlink_to(tmp_path / "secret")
    (here / "circle").symlink_to(here / "circle")
    (here / "linked" / "deep").mkdir(parents=True)
    (here / "linked" / "deep" / "b.png").symlink_to(tmp_path / "secret")
    (here / "own").mkdir()
    (here / "own" / "a.txt").symlink_to(here / "own" / "b.txt")
    monkeypatch.chdir(here)
    return here


# names in the run's folder


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "is outside of the run's folder") for name in ("..", "../a", "a/../../b", "/a", "a/..", "..\\a")),
        *((name, "is outside of the run's folder") for name in ("C:\\a", "c:a", "\\a", "\\\\host\\share\\a")),
        *((name, "is no name") for name in ("", ".", "./", "a\0b")),
        *((name, "is the run's own") for name in ("graph.json", "RUN.JSON", "checkpoints/a", "./run.json.")),
        *((name, "") for name in ("a", "a/b.png", "./a", "a..b", ".a", "a b", "café.png", "my/graph.json")),
    ],
)
def test_what_is_a_name_in_the_runs_folder(name: str, why: str) -> None:
    assert no_name(name) == why


@given(st.text(st.sampled_from("./\\:aC~\0* \n"), max_size=12))
def test_every_name_leads_into_the_folder_or_is_refused(name: str) -> None:
    try:
        path = inside(Path("/a/b"), name)
    except ValueError:
        assert no_name(name)
    else:
        assert Path("/a/b") in path.resolve().parents


def test_a_link_in_the_runs_folder_leads_nowhere(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^'out/secret' is outside of the run's folder; give a path in it$"):
        inside(folder, "out/secret")


def test_a_trusted_graph_writes_in_its_folder_too() -> None:
    made = graph(path="/anywhere")
    made.nodes["w"].inputs["name"] = "../a.txt"
    message = """graph: w.name: the string "../a.txt" is outside of the run's folder; give a path in the run's folder"""
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        check(made, TOYS)


def test_a_name_that_comes_by_a_link_is_refused_when_it_is_used(tmp_path: Path) -> None:
    made = Graph()
    made.add("write", text="a", name=made.add("said"))
    with pytest.raises(NodeRunError, match=r"'\.\./\.\./secret' is outside of the run's folder"):
        run(made, registry=TOYS, run_dir=tmp_path / "a" / "b")
    assert not (tmp_path / "secret").exists()


# what travels with a pack


def test_what_travels_with_a_pack() -> None:
    assert resolve("sr_nodes:weights").is_dir()
    assert resolve("no_such_pack:a") == Path("no_such_pack:a")
    assert resolve("~no one/a") == Path("~no one/a")
    assert resolve("os:a") == Path("os:a")  # a module, and no pack
    assert resolve("~/a") == Path.home() / "a"


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc/passwd", "samples/../../a"])
def test_nothing_beside_a_pack_travels_with_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"^'sr_nodes:{name}' leads out of the pack sr_nodes; name a"):
        resolve(f"sr_nodes:{name}")
    assert "leads out of the pack" in out_of_reach(f"sr_nodes:{name}", [HERE])


# a graph from elsewhere

OUTSIDE = "is outside of the folders that this graph may read"
READ: dict[str, list[str]] = {
    OUTSIDE: [
        *("/etc/passwd", "..", "../secret", "in/../../secret", "~", "~root", "out", "leak", "out/here/../secret", "/"),
        *("/etc/*", "out/*"),
    ],
    "is a pattern that goes up": ["*/../../secret", "**/../a", "in/../*", "../*.txt"],
    "names a drive or a share": ["C:\\a", "c:a", "\\\\host\\share\\a", "//host/share/a"],
    "no path that can be followed": ["circle/a", "a\0b"],
    "holds a link that leads out of it (": ["linked", "linked/*.png", ".", "*", "**/*.png"],
    "": [
        *("in", "in/a.txt", "in/../in/a.txt", "no such file", "in/*", "own", "own/*.txt", "~x/a", "bicubic"),
        *("sr_nodes:samples", "in/b[0-9].txt", "C", "c/:d"),
    ],
}
"""Why a path is refused, and such paths."""


@pytest.mark.parametrize(("text", "why"), [(text, why) for why, texts in READ.items() for text in texts])
def test_what_a_graph_from_elsewhere_may_read(folder: Path, text: str, why: str) -> None:
    found = out_of_reach(text, [folder])
    assert (why in found) if why else not found


def test_a_folder_that_is_allowed_may_be_read(folder: Path) -> None:
    above = folder.parent
    for text in ("../secret", str(above / "secret"), "leak", "out/secret"):
        assert out_of_reach(text, [folder])
        assert not out_of_reach(text, [folder, above])
        assert not out_of_reach(text, [folder / "out"])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "inputs", [{"path": "leak"}, {"path": "a", "more": ["in", "leak"]}, {"path": "a", "also": "leak"}]
)
def test_the_check_names_node_and_input(inputs: dict[str, object]) -> None:
    made = graph(**inputs)
    check(made, TOYS)  # the user's own
    message = f'graph: r.{list(inputs)[-1]}: the string "leak" {OUTSIDE}; if it is meant, --allow-folder .'
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        check(made.limited_to(), TOYS)


@pytest.mark.usefixtures("folder")
def test_paths_of_a_graph_from_elsewhere_are_written_in_it() -> None:
    made = graph(path=Link("s"))
    made.add("said", id="s", text="in/a.txt")
    made.nodes["w"].inputs["copy"] = "in/copy.txt"
    message = (
        "graph: r.path: found a link to s.0, wanted a path; write it here, where it can be checked\n"
        'graph: w.copy: the string "in/copy.txt" is written to, and this graph may write in the run\'s folder alone; '
        "leave it out"
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        check(made.limited_to(), TOYS)
    check(made, TOYS)


def test_the_graph_of_a_picture_is_from_elsewhere(folder: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", graph(path="leak").to_json())
    PIL.Image.new("L", (1, 1)).save("a.png", pnginfo=info)
    picture = Graph.load("a.png")
    assert picture.folders == (folder,)
    for changed in (picture, picture.copy(), with_settings(picture, TOYS, ["w.name=b.txt"])):
        with pytest.raises(GraphError, match=f"^a.png: r.path: .*{OUTSIDE}"):
            run(changed, registry=TOYS, run_dir=folder / "run")
    assert not (folder / "run").exists()
    run(picture.limited_to(folder.parent), registry=TOYS, run_dir=folder / "run")
    assert (folder / "run" / "out.txt").read_text() == "secret"
    assert Graph.parse(graph(path="leak").to_json()).folders is None


def test_every_text_of_every_node_says_whether_it_is_a_path(registry: Registry) -> None:
    """A new node with a path that does not say so would read it wherever a graph from elsewhere likes."""
    titles = {"evaluation_report.model", "picture_files.suffix", "picture_files.share"}
    texts = {
        f"{made.name}.{i.name}"
        for made in registry.values()
        for i in made.inputs.values()
        if i.type.is_json and i.type.path is None and _takes_any_text(i.type.adapter.json_schema())
    }
    assert texts == titles


def _takes_any_text(schema: object) -> bool:
    if isinstance(schema, list):
        return any(map(_takes_any_text, schema))
    if not isinstance(schema, dict):
        return False
    chosen = "enum" in schema or "const" in schema
    return (schema.get("type") == "string" and not chosen) or any(map(_takes_any_text, schema.values()))


def test_shipped_graphs_read_only_what_ships(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in sorted((Path(__file__).parents[2] / "graphs").glob("*.json")):
        compile_plan(Graph.load(path).limited_to(), registry)


def test_a_tensor_is_no_path() -> None:
    @node
    def takes(image: Tensor, name: str = "") -> Tensor:
        return image

    assert {i.type.path for i in Registry([takes])["takes"].inputs.values()} == {None}
