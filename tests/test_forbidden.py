"""Nothing in the project runs what it reads: calls that do are in no module, but for those listed with their reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("sr_pipeline", "nodes") for path in (ROOT / folder).rglob("*.py"))
NAMES = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
"""Forbidden as bare names; ``compile_plan`` and ``model.eval()`` are other things."""
MODULES_FORBIDDEN = {
    *(
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "yaml",
        "subprocess",
        "pty",
        "telnetlib",
        "ftplib",
        "xmlrpc",
    ),
    *("urllib.request", "requests", "httpx", "aiohttp", "socketserver", "http.client", "http.server"),
}
CALLS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "os.system", "os.popen", "os.fork", "torch.compile"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "onnx.load"),
    *("importlib.import_module", "importlib.util.spec_from_file_location", "runpy.run_path"),
}
ALLOWED = {
    "sr_pipeline/registry.py: importlib.import_module": "packs that are installed, or named with --pack",
    "sr_pipeline/registry.py: importlib.util.spec_from_file_location": "a pack that is named with --pack",
    "sr_pipeline/registry.py: spec.loader.exec_module": "the same",
    "sr_pipeline/capture.py: torch.compile": "of a function of torch's own, to see whether there is a compiler",
    "sr_pipeline/server/opening.py: urllib.request": "`open` asks the server on this machine, and no other",
    "nodes/sr_nodes/shard_files.py: importlib.import_module": "an extra, by a constant name",
    "nodes/sr_nodes/shard_files.py: np.load": "a shard's index, without pickle",
    "nodes/sr_nodes/spandrel_nets.py: importlib.import_module": "an extra, by a constant name",
    "nodes/sr_nodes/export.py: importlib.import_module": "an extra, by a constant name",
    "nodes/sr_nodes/export.py: torch.jit.load": "bytes that this process wrote a moment before",
}


def found(path: Path, source: str | None = None) -> Iterator[str]:
    """The forbidden things that a module does."""
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    for place in ast.walk(tree):
        if isinstance(place, (ast.Import, ast.ImportFrom)):
            base = [place.module or ""] if isinstance(place, ast.ImportFrom) else []
            names = [*base, *(".".join([*base, alias.name]) for alias in place.names)]
            yield from (name for name in names if name in MODULES_FORBIDDEN)
            yield from (name for name in names if name in CALLS)  # from pickle import loads
        elif isinstance(place, ast.Call):
            yield from _call(place)


def _call(call: ast.Call) -> Iterator[str]:
    name, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
    last = name.rpartition(".")[2]
    if name in NAMES | CALLS or last in ("exec_module", "load_module") or name.startswith(("os.exec", "os.spawn")):
        yield name
    safe = name in CALLS or (name == "torch.load" and keywords.get("weights_only") == "True")
    if last == "load" and name.partition(".")[0] in ("torch", "np", "numpy") and not safe:
        yield name
    if keywords.get("weights_only", "True") != "True" or keywords.get("allow_pickle", "False") != "False":
        yield f"{name} with a pickle"
    if keywords.get("shell", "False") != "False" or keywords.get("trust_remote_code", "False") != "False":
        yield f"{name} with a shell"


def test_no_module_runs_what_it_reads() -> None:
    assert len(MODULES) > 60
    every = {f"{path.relative_to(ROOT).as_posix()}: {name}" for path in MODULES for name in found(path)}
    assert every - ALLOWED.keys() == set()
    assert ALLOWED.keys() - every == set()  # what is allowed is still there


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(open(path).read())",
        "import subprocess",
        "from subprocess import run",
        "from urllib import request",
        "import yaml as y",
        "from pickle import loads",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "load(path, weights_only=flag)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "torch.hub.load('a', 'b')",
        "os.system('ls')",
        "os.execv('/bin/sh', [])",
        "run('ls', shell=True)",
        "spec.loader.exec_module(m)",
    ],
)
def test_what_is_forbidden_is_found(source: str) -> None:
    assert list(found(Path("a.py"), source))


@pytest.mark.parametrize(
    "source", ["model.eval()", "torch.load(path, weights_only=True)", "safetensors.torch.load(data)"]
)
def test_what_is_not_forbidden_is_passed_over(source: str) -> None:
    assert not list(found(Path("a.py"), source))
