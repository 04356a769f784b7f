"""The documentation is true: its Python runs, its graphs are the shipped ones, its commands exist."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from sr_nodes.assets import graphs
from sr_pipeline.catalogue import markdown
from sr_pipeline.check import with_settings
from sr_pipeline.errors import GraphError
from sr_pipeline.folder import RunFolder, differences, read_record
from sr_pipeline.graph import Graph
from sr_pipeline.plan import compile_plan
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.shipped import find_graph

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("code", [b for b in blocks("python") if "def gradient_loss" not in b])
def test_python_of_the_readme(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_node_of_the_readme(tmp_path: Path) -> None:
    """It is a pack, it fits where another loss is, and it is the shortest swap of a loss."""
    pack = tmp_path / "my_nodes.py"
    pack.write_text(next(b for b in blocks("python") if "def gradient_loss" in b), encoding="utf-8")
    registry = load_packs([str(pack)])
    graph = Graph.load(graphs() / "train_srresnet.json")
    graph.nodes["content"].class_type = "gradient_loss"
    compile_plan(graph, registry)
    assert registry["gradient_loss"].inputs["weight"].help == "factor of the loss."


def test_graph_of_the_readme_is_the_shipped_one(registry: Registry) -> None:
    shown = Graph.parse(blocks("json")[0])
    compile_plan(shown, registry)
    shipped = Graph.load(graphs() / "train_srresnet.json")
    for entry in shipped.nodes.values():
        entry.meta.clear()
    assert shown == shipped


@pytest.mark.parametrize("words", [c for c in commands() if c[:2] == ["sr-pipeline", "run"]], ids=shlex.join)
def test_run_commands_of_the_readme_plan(words: list[str], registry: Registry) -> None:
    """Each graph exists and each setting fits; the one that the README calls wrong is wrong."""
    if words[2] == "my_graph.json":
        return
    settings = [value for option, value in itertools.pairwise(words) if option == "--set"]
    graph = with_settings(find_graph(words[2]), registry, settings)
    if "content.sr" in " ".join(words):
        message = "content.sr: found Photos (photos.photos), wanted Image; of that type: "
        assert f"graphs/train_srresnet.json: {message}" in README
        with pytest.raises(GraphError, match=re.escape(message)):
            compile_plan(graph, registry)
    else:
        compile_plan(graph, registry)


def test_node_reference_is_current(registry: Registry) -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8") == markdown(registry)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_samples_are_credited_and_split() -> None:
    """Every bundled photograph is credited, and none is both trained on and validated on."""
    samples = ROOT / "nodes" / "sr_nodes" / "samples"
    train, test = ({path.name for path in (samples / part).iterdir()} for part in ("train", "test"))
    assert not train & test
    for credits in (samples / "CREDITS.md", ROOT / "NOTICE"):
        text = credits.read_text(encoding="utf-8")
        assert [name for name in train | test if name not in text] == []


def test_the_run_that_made_the_default_weights_can_be_repeated() -> None:
    """By its record, though it is of an earlier version."""
    record = read_record(RunFolder(ROOT / "docs" / "runs" / "srgan_x4"))
    assert (record.settings.precision, record.settings.checkpoint_every) == ("bf16", 200)
    assert not any("networkx" in text or "None" in text for text in differences(record))


def test_recorded_training_gains_a_decibel() -> None:
    recorded = ROOT / "benchmarks" / "learns.result.json"
    assert json.loads(recorded.read_text())["gain_db"] >= 1
