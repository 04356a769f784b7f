"""The wheel, away from the checkout: graphs, weights and samples travel in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel's content."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sr_pipeline", *words],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_has_the_data(installed: Path) -> None:
    pack = installed / "sr_nodes"
    shipped = {path.name for path in (ROOT / "graphs").glob("*.json")}
    assert {path.name for path in (pack / "graphs").glob("*.json")} == shipped
    assert (pack / "weights" / "vgg19_features_8bit.safetensors").stat().st_size > 20_000_000
    assert (pack / "weights" / "srresnet_small_x4.safetensors").stat().st_size < 1_000_000
    assert list((pack / "samples" / "train").glob("*.jpg"))
    licences = next(installed.glob("*.dist-info")) / "licenses"
    assert {path.name for path in licences.iterdir()} == {"LICENSE", "NOTICE"}


def test_wheel_runs_the_quickstart(installed: Path) -> None:
    code = "import sr_nodes, sr_pipeline; print(sr_pipeline.__file__, sr_nodes.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(installed)) for path in found.stdout.split())
    assert "done after step 1" in run(installed, "run", "quickstart", "--steps", "1", "--run-dir", "quick")
    assert (installed.parent / "quick" / "generator.safetensors").is_file()


@pytest.mark.full
def test_wheel_runs_the_papers_sizes(installed: Path) -> None:
    assert "done after step 1" in run(installed, "run", "train_srgan", "--steps", "1", "--run-dir", "paper")
