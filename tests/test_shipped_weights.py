"""The weights that ship look as their cards say: on the bundled photographs, and on Set5 where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sr_nodes.degradation import bicubic
from sr_nodes.features import vgg19
from sr_nodes.pictures import find_pictures, read_picture, to_image
from sr_nodes.tiles import enlarge
from sr_nodes.upscale import find_upscaler

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import looks

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "nodes/sr_nodes/samples/test"
SET5 = ROOT.parent / "shared/data/testsets/Set5"


@pytest.mark.parametrize("folder", [SAMPLES, SET5], ids=["samples", "Set5"])
def test_srgan_is_sharper_than_srresnet_and_true_to_the_picture(folder: Path) -> None:
    """Nearer by VGG54 (mean), sharper by gradients, within 3.5 dB, within 1 level of mean colours, no checkerboard."""
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    nets, vgg = [find_upscaler(name) for name in ("srresnet_x4", "srgan_x4")], vgg19(layer="54")
    distances = []
    for path in [p for p in find_pictures(folder) if not p.stem.endswith("_LR")]:
        hr = looks.whole(to_image(read_picture(path)[None]))[..., :384, :384]
        lr = bicubic(hr, 4)[0]
        true, sharp = (looks.measured(enlarge(net, lr)[None], hr, vgg) for net in nets)
        distances.append((true["vgg54"], sharp["vgg54"]))
        assert true["gradient"] < sharp["gradient"] < 1.2, path.name
        assert sharp["psnr_y"] > true["psnr_y"] - 3.5, path.name
        assert sharp["colour"] < 1, path.name
        assert sharp["grid"] < sharp["grid_of_hr"] + 0.25, path.name
    srresnet, srgan = map(sum, zip(*distances, strict=True))
    assert srgan < srresnet
