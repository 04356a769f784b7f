"""The wheel, away from the checkout: graphs, weights and samples travel in it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it, and of this one's packages only those that the wheel may need."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env" / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    return site


def run(installed: Path, *words: str) -> str:
    """What the installed command prints, outside of the checkout."""
    program = installed.parents[2] / "bin" / "sr-pipeline"
    done = subprocess.run([program, *words], cwd=installed.parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_has_the_data(installed: Path) -> None:
    pack = installed / "sr_nodes"
    shipped = {path.name for path in (ROOT / "graphs").glob("*.json")}
    assert {path.name for path in (pack / "graphs").glob("*.json")} == shipped
    assert (pack / "weights" / "vgg19_features_8bit.safetensors").stat().st_size > 20_000_000
    assert (pack / "weights" / "srresnet_small_x4.safetensors").stat().st_size < 1_000_000
    assert list((pack / "samples" / "train").glob("*.jpg"))
    licences = next(installed.glob("sr_pipeline-*.dist-info")) / "licenses"
    assert {path.name for path in licences.iterdir()} == {"LICENSE", "NOTICE"}


def test_wheel_runs_the_quickstart(installed: Path) -> None:
    code = "import sr_nodes, sr_pipeline; print(sr_pipeline.__file__, sr_nodes.__file__)"
    python = installed.parents[2] / "bin" / "python"
    found = subprocess.run([python, "-P", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert all(path.startswith(str(installed)) for path in found.stdout.split())
    assert "done after step 1" in run(installed, "run", "quickstart", "--steps", "1", "--run-dir", "quick")
    assert (installed.parents[3] / "quick" / "generator.safetensors").is_file()


@pytest.mark.full
def test_wheel_runs_the_papers_sizes(installed: Path) -> None:
    assert "done after step 1" in run(installed, "run", "train_srgan", "--steps", "1", "--run-dir", "paper")
