"""Nodes by name: a value that never changes, filled from packs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sr_pipeline.errors import NodeDeclarationError, UsageError
from sr_pipeline.node import node
from sr_pipeline.registry import Registry, load_packs

PACK = """
from sr_pipeline.node import node

@node(category="toys")
def {name}(x: float) -> float:
    return 2 * x

def helper(x: float) -> float:
    return x
"""


@node
def half(x: float) -> float:
    return x / 2


@node
def third(x: float) -> float:
    return x / 3


def other_half() -> Registry:
    @node
    def half(x: float) -> float:
        return x * 0.5

    return Registry([half])


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Forgets the modules that a test loads."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_registry_is_a_mapping() -> None:
    registry = Registry([half, third])
    assert list(registry) == ["half", "third"]
    assert len(registry) == 2
    assert registry["half"].function is half
    assert "quarter" not in registry


def test_more_nodes_make_another_registry() -> None:
    registry = Registry([half])
    assert list(registry.with_nodes([third])) == ["half", "third"]
    assert list(registry) == ["half"]


def test_a_node_may_be_given_twice_and_a_name_may_not() -> None:
    registry = Registry([half, half])
    taken = next(iter(other_half().values())).function
    words = f"{taken.__module__}.{taken.__qualname__}: the name 'half' is taken by {half.__module__}.half; rename it"
    with pytest.raises(NodeDeclarationError, match=f"^{re.escape(words)}$"):
        registry.with_nodes([third, taken])
    assert list(registry) == ["half"]
    assert registry["half"].function is half


def test_a_faulty_node_stops_only_who_asks_for_it() -> None:
    def flawed(number) -> float:  # type: ignore[no-untyped-def]
        return 0.0

    registry = Registry([half, flawed])
    assert registry["half"].function is half
    assert "flawed" in registry
    with pytest.raises(NodeDeclarationError, match=r"flawed: the parameter 'number' has no annotation; annotate it$"):
        registry["flawed"]


def test_installed_packs_are_found() -> None:
    assert {"srresnet", "optimizer_step", "mean"} <= set(load_packs())


def test_a_file_is_a_pack_of_its_marked_functions(tmp_path: Path) -> None:
    path = tmp_path / "my_nodes.py"
    path.write_text(PACK.format(name="twice"), encoding="utf-8")
    installed, registry = load_packs(), load_packs([str(path)])
    assert set(registry) - set(installed) == {"twice"}
    assert registry["twice"].function(2.0) == 4.0


def test_a_file_is_found_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "near_nodes.py").write_text(PACK.format(name="twice"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("near_nodes.py", "near_nodes.py", str(tmp_path / "near_nodes.py")):
        assert "twice" in load_packs([name])


def test_a_package_is_a_pack_with_all_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "toy_pack" / "deep"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text(PACK.format(name="at_top"), encoding="utf-8")
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "inner.py").write_text(PACK.format(name="inside"), encoding="utf-8")
    (folder / "user.py").write_text("from toy_pack.deep.inner import inside", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    installed = set(load_packs())
    assert set(load_packs(["toy_pack"])) - installed == {"at_top", "inside"}
    assert set(load_packs(["toy_pack.deep"])) - installed == {"inside"}
    assert set(load_packs(["toy_pack.deep.user"])) == installed


def test_packs_may_not_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "clashing.py"
    path.write_text(PACK.format(name="srresnet"), encoding="utf-8")
    words = "clashing.srresnet: the name 'srresnet' is taken by sr_nodes.srresnet.srresnet; rename it"
    with pytest.raises(NodeDeclarationError, match=f"^{re.escape(words)}$"):
        load_packs([str(path)])


@pytest.mark.parametrize(
    "name", ["no_such_pack", "sr_nodes.no_such", "no_such.pack", "", ".", "my-pack", "a/b", "a.b."]
)
def test_a_module_that_is_not_there_is_refused(name: str) -> None:
    words = f"--pack {name}: no such module; give an importable name or the path of a .py file"
    with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
        load_packs([name])


def test_a_file_that_is_not_there_is_refused() -> None:
    words = "--pack nowhere.py: no such file; give an importable name or the path of a .py file"
    with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
        load_packs(["nowhere.py"])


def test_a_file_may_not_take_the_place_of_a_module(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(PACK.format(name="twice"), encoding="utf-8")
    before = sys.modules["json"]
    words = f"--pack {path}: a module 'json' is loaded already; rename the file"
    with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
        load_packs([str(path)])
    assert sys.modules["json"] is before


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(:\n", r"SyntaxError: .* \(.*mine\.py, line 1\); mend it there"),
        ("\nimport no_such_library\n", r"ModuleNotFoundError: .*'no_such_library' \(.*mine\.py, line 2\); mend it"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(.*mine\.py, line 1\); mend it there"),
    ],
)
def test_a_pack_that_cannot_be_imported(code: str, words: str, tmp_path: Path) -> None:
    """It says where, and a mended file is read again."""
    pack = tmp_path / "mine.py"
    pack.write_text(code)
    with pytest.raises(UsageError, match=r"--pack .*mine\.py: it cannot be imported: " + words):
        load_packs([str(pack)])
    assert "mine" not in sys.modules


def test_a_package_with_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name, text in (
        ("torn_pack", "__init__", ""),
        ("torn_pack", "nodes", "1 / 0"),
        ("needy_pack", "__init__", "import nowhere"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for pack, why in (
        ("torn_pack", r"ZeroDivisionError: .*nodes\.py, line 1"),
        ("needy_pack.more", r"ModuleNotFoundError: No module named 'nowhere' .*__init__\.py, line 1"),
    ):
        with pytest.raises(UsageError, match=rf"^--pack {pack}: it cannot be imported: {why}"):
            load_packs([pack])


def test_modules_with_an_underscore_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may need what is not installed, as kernels for a GPU do; a package's ``__main__`` is one too."""
    inner = tmp_path / "some_pack" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").touch()
        (folder / "_kernels.py").write_text("import nowhere_to_be_found\n")
        (folder / "__main__.py").write_text("raise SystemExit(1)\n")
        (folder / "nodes.py").write_text(PACK.format(name=f"twice_{folder.name}"))
    monkeypatch.syspath_prepend(tmp_path)
    assert {"twice_some_pack", "twice_inner"} <= set(load_packs(["some_pack"]))
