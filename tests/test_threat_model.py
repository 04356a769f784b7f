"""docs/threat-model.md: each test that it names is there; and a graph imports nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sr_pipeline.check import check
from sr_pipeline.errors import GraphError
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_behind_a_claim_is_there(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_claim_has_a_test() -> None:
    claims = [
        line
        for line in (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8").splitlines()
        if line[:2] == "| "
    ]
    assert len(claims) > 10
    assert all("`tests/" in line for line in claims[1:])


@pytest.mark.parametrize("class_type", ["evil", "evil.py", "evil.f", "evil:f", "./evil.py", "os.system", "__import__"])
def test_a_graph_imports_nothing(
    class_type: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    graph = Graph()
    graph.add(class_type, id="a", pack="evil.py")
    with pytest.raises(GraphError, match=r"^graph: a: unknown node type '"):
        check(graph, registry)
    with pytest.raises(GraphError, match="unknown key 'pack'"):
        Graph.parse('{"a": {"class_type": "psnr", "pack": "evil.py"}}')
    assert "evil" not in sys.modules
