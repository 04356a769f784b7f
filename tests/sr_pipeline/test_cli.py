"""The command line: commands in this process, exit codes and streams by real ones."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from sr_pipeline import __version__
from sr_pipeline.cli import _notes, app
from sr_pipeline.errors import GraphError, PipelineError, UsageError
from sr_pipeline.graph import Graph
from sr_pipeline.shipped import find_graph

BROKEN = Path(__file__).parent / "broken"
GRAPHS = Path(__file__).parents[2] / "graphs"


def shell(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, on pipes."""
    command = [sys.executable, "-m", "sr_pipeline", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def output(*arguments: str | Path) -> str:
    """What a command that must succeed prints."""
    result = invoke(*arguments)
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def refused(error: type[PipelineError], words: str, *arguments: str | Path) -> None:
    """The command ends with this error; ``main`` prints it, as the subprocesses below show."""
    result = invoke(*arguments)
    assert isinstance(result.exception, error), result.output
    assert str(result.exception) == words


def test_help_imports_no_torch() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'networkx', 'PIL'}"
    code = f"""
import sys
from sr_pipeline.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
found = {heavy} & set(sys.modules)
assert not found, found
"""
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    for command in ("run", "validate", "plan", "nodes", "schema", "evaluate", "upscale", "export"):
        assert re.search(rf"^ +{command} ", result.stdout, re.MULTILINE)


def test_a_run_imports_only_what_it_needs(tmp_path: Path) -> None:
    """Each of these takes a tenth of a second, and Triton is not everywhere."""
    code = """
import sys
from sr_pipeline.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
found = {"triton", "networkx", "rich.live", "webdataset", "spandrel", "starlette", "matplotlib"} & set(sys.modules)
assert not found, found
"""
    command = [sys.executable, "-c", code, "run", "upscale", "--only", "photo"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_gates_that_must_all_fire_are_told_as_one() -> None:
    told = {"grad": False, "training": False, "crosses": [], "detached": [], "retain_graph": False}
    assert _notes({**told, "every": [[2, 3]]}) == "  [every 6]"
    assert _notes({**told, "every": [[0, 5], [4]]}) == "  [after the last or every 4]"


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C as Linux and macOS do")
def test_ctrl_c_while_all_is_imported_ends_it(tmp_path: Path) -> None:
    """It is neither lost there nor told by a traceback."""
    code = "from sr_pipeline.cli import main; print(flush=True); main()"
    for wait in (0.05, 0.3, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "run", "quickstart"], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=120)[1]
        assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_good_graph_exits_with_0() -> None:
    count = len(find_graph("quickstart").nodes)
    result = shell("validate", "quickstart", GRAPHS / "upscale.json")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"quickstart: {count} nodes, right\n{GRAPHS / 'upscale.json'}: 4 nodes, right\n"


def test_faults_of_all_graphs_are_plain_lines_on_stderr_and_exit_with_2() -> None:
    first, second = BROKEN / "five_faults.json", BROKEN / "backward_after_change.json"
    result = shell("validate", first, "upscale", second)
    lines = (BROKEN / "expected.txt").read_text(encoding="utf-8").splitlines()
    expected = [f"{BROKEN}/{li}" for name in (first.name, second.name) for li in lines if li.startswith(f"{name}: ")]
    assert result.returncode == 2
    assert result.stdout == "upscale: 4 nodes, right\n"
    assert result.stderr.splitlines() == expected
    assert max(map(len, expected)) > 200  # longer than any terminal: nothing wraps it


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        (
            ["run", "quickstrat"],
            "quickstrat: no such file, and no shipped graph of that name; did you mean 'quickstart'?",
        ),
        (
            ["plan", "quickstart", "--set", "hr.bach=2"],
            "--set hr.bach=2: random_crops has no input 'bach'; did you mean 'batch'?",
        ),
        (
            ["run", "quickstart", "--nnodes", "2", "--nproc", "8"],
            "--nnodes 2: the machines have to meet; give --rdzv-endpoint HOST:PORT on each",
        ),
        (
            ["run", "quickstart", "--nnodes", "2"],
            "--nnodes 2: how many processes each machine has is not said; give --nproc",
        ),
        (
            ["run", "quickstart", "--nproc", "2", "--rdzv-id", "big"],
            "--rdzv-id big: how many machines meet is not said; give --nnodes on each",
        ),
        (
            ["run", "quickstart", "--max-restarts", "3"],
            "--max-restarts 3: how many processes each machine has is not said; give --nproc",
        ),
    ],
    ids=["graph", "setting", "machines", "processes", "meeting", "restarts"],
)
def test_what_is_wrong_in_a_command_exits_with_2_and_the_mend(
    arguments: list[str], last_line: str, tmp_path: Path
) -> None:
    result = shell(*arguments, folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", last_line + "\n")
    assert list(tmp_path.iterdir()) == []


def test_an_argument_that_is_no_number_exits_with_2() -> None:
    result = shell("run", "quickstart", "--steps", "many")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Invalid value for '--steps'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_fails_exits_with_1_and_names_its_node(tmp_path: Path) -> None:
    result = shell("run", "upscale", "--set", "photo.path=nowhere.png", "--device", "cpu", folder=tmp_path)
    assert result.returncode == 1
    assert re.match(r"\S*upscale\.json: photo: .*nowhere\.png", result.stderr)
    assert "Traceback" not in result.stderr


def test_the_version() -> None:
    assert output("--version") == f"sr-pipeline {__version__}\n"


def test_a_plan_as_json() -> None:
    plan = json.loads(output("plan", "train_srgan", "--json", "--set", "hr.batch=2"))
    assert plan["stream"] == "hr"
    assert plan["warnings"] == []
    assert [m["node"] for m in plan["mutations"] if m["input"] == "model"] == ["d_step", "g_step"]
    assert {"generator", "discriminator", "g_optimizer", "d_optimizer"} <= {s.partition(".")[0] for s in plan["state"]}


def test_a_plan_up_to_one_node() -> None:
    plan = json.loads(output("plan", "train_srgan", "--json", "--only", "lr"))
    assert [op["node"] for op in plan["setup"] + plan["step"] + plan["finish"]] == ["photos", "hr", "lr"]


def test_a_plan_as_a_drawing() -> None:
    lines = output("plan", "upscale", "--mermaid").splitlines()
    assert lines[0] == "flowchart LR"
    assert '    n0["photo<br/><i>load_picture</i>"]' in lines
    assert "  n0 -->|picture| n2" in lines


def test_a_plan_as_text() -> None:
    text, count = output("plan", "train_srgan"), len(find_graph("train_srgan").nodes)
    assert text.splitlines()[0] == f"{GRAPHS / 'train_srgan.json'}: {count} of {count} nodes run"
    for line in ("setup (once before)", "step (each step)", "d_step changes discriminator (model)"):
        assert line in text.splitlines()
    assert re.search(r"^  preview +preview  \[every 500\]$", text, re.MULTILINE)
    assert re.search(r"^  judged +discriminate  \[gradients; training mode; only crossed: discriminator\]$", text, re.M)
    upscale = output("plan", "upscale").splitlines()
    assert upscale[-2:] == ["state: none", "unchanged: none"]
    assert "step (each step)" not in upscale


def test_the_list_of_nodes() -> None:
    lines = output("nodes").splitlines()
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert any(re.match(r"optimizer +optimizer_step +Change a model's weights", line) for line in lines)


def test_one_node() -> None:
    lines = output("nodes", "optimizer_step").splitlines()
    assert lines[0] == "optimizer_step  (optimizer, function, sr_nodes.optim)"
    assert "  loss: Loss, needed" in lines
    assert "  model: Module, needed, changed in place" in lines
    assert "  learning_rate: float or nothing, default null" in lines
    assert lines[-2:] == ["  0 model: Module", "  1 optimizer: Optimizer"]
    assert json.loads(output("nodes", "bicubic", "--json"))["bicubic"]["inputs"]["scale"]["default"] == 4


def test_the_reference() -> None:
    text = output("nodes", "--markdown")
    assert text.startswith("# Nodes\n")
    assert "\n### optimizer_step\n" in text


def test_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(output("schema")))


PACK = """
from sr_pipeline.node import node

@node(category="toys")
def of_a_pack_file(x: float = 1.0) -> None:
    \"\"\"Does nothing.\"\"\"
"""


def test_a_pack_adds_its_nodes(tmp_path: Path) -> None:
    pack, graph = tmp_path / "pack_of_cli_test.py", tmp_path / "g.json"
    pack.write_text(PACK, encoding="utf-8")
    graph.write_text('{"x": {"class_type": "of_a_pack_file"}}', encoding="utf-8")
    assert "of_a_pack_file" in output("nodes", "--pack", pack)
    assert output("validate", graph, "--pack", pack) == f"{graph}: 1 nodes, right\n"


def test_what_is_not_there_is_refused() -> None:
    words = "nodes bicubik: there is no such node; did you mean 'bicubic'?"
    refused(UsageError, words, "nodes", "bicubik")
    refused(
        UsageError,
        "--only judge: there is no such node; did you mean 'judged'?",
        "plan",
        "train_srgan",
        "--only",
        "judge",
    )
    words = "--pack nowhere: no such module; give an importable name or the path of a .py file"
    refused(UsageError, words, "nodes", "--pack", "nowhere")
    fix = "give the path of a graph file or the name of a shipped graph"
    refused(GraphError, f"quickstart.jso: no such file; {fix}", "plan", "quickstart.jso")


@pytest.mark.parametrize("name", [p.stem for p in sorted(GRAPHS.glob("*.json"))])
def test_shipped_graphs_are_found_by_name(name: str) -> None:
    assert find_graph(name) == find_graph(str(GRAPHS / f"{name}.json"))


def test_a_file_is_preferred_to_a_shipped_graph_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "upscale").write_text('{"mine": {"class_type": "bicubic"}}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert list(find_graph("upscale").nodes) == ["mine"]


def test_a_run_is_repeated_by_its_folder_and_flags_go_on_top(tmp_path: Path) -> None:
    tiny = ["generator.blocks=1", "generator.channels=4", "discriminator.channels=2", "discriminator.dense=4"]
    tiny += ["start.weights=null", "vgg.layer=22", "hr.batch=1", "pairs.crop=32"]
    settings = [word for setting in tiny for word in ("--set", setting)]
    first, second, third = (tmp_path / name for name in "abc")
    output("run", "quickstart", *settings, "--steps", "2", "--seed", "5", "--deterministic", "--run-dir", first)
    output("run", first, "--run-dir", second)
    for name in ("graph.json", "run.json", "metrics.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    weights = [load_file(folder / "generator.safetensors") for folder in (first, second)]
    assert all(weights[0][name].numpy().tobytes() == t.numpy().tobytes() for name, t in weights[1].items())
    assert json.loads((second / "run.json").read_text())["settings"]["deterministic"]
    output("run", first, "--run-dir", third, "--steps", "1", "--no-deterministic")
    changed = json.loads((third / "run.json").read_text())["settings"]
    assert [changed[name] for name in ("seed", "steps", "deterministic")] == [5, 1, False]


def test_a_graph_file_is_limited_where_a_folder_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    graph = Graph()
    graph.add("save_image", image=graph.add("load_image", path="/a/b.png"))
    graph.save(path)
    output("validate", path)
    assert invoke("validate", path, "--allow-folder", tmp_path).exit_code == 2
    output("validate", path, "--allow-folder", "/a")
    assert isinstance(invoke("plan", path, "--allow-folder", tmp_path).exception, GraphError)
    assert isinstance(invoke("run", path, "--allow-folder", tmp_path).exception, GraphError)
