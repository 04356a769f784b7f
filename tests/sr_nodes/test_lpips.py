"""LPIPS through TorchMetrics. The backbone here has random weights: the laws hold for any."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import squeezenet1_1

from sr_nodes.lpips import Backbone, LpipsNet, lpips, lpips_net

WEIGHTS = "squeezenet1_1-b8a52dc0.pth"


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LpipsNet:
    """The real network, its backbone's file put where a user without a network would put it."""
    pytest.importorskip("torchmetrics", reason="the extra lpips is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "hub" / "checkpoints" / WEIGHTS)
    return lpips_net("squeeze")


def test_laws(net: LpipsNet) -> None:
    """0 at equality, symmetric, growing with noise, the mean over a batch; range and border as documented."""
    rng = torch.Generator().manual_seed(0)
    hr = torch.rand(1, 3, 72, 64, generator=rng)
    noise = torch.randn(hr.shape, generator=rng)
    near, far = (hr + 0.05 * noise).clamp(0, 1), (hr + 0.5 * noise).clamp(0, 1)
    assert lpips(net, hr, hr) == 0
    assert 0 < lpips(net, near, hr) < lpips(net, far, hr)
    assert lpips(net, near, hr) == pytest.approx(lpips(net, hr, near), rel=1e-5)
    both = lpips(net, torch.cat([near, far]), torch.cat([hr, hr]))
    assert both == pytest.approx((lpips(net, near, hr) + lpips(net, far, hr)) / 2, rel=1e-5)
    framed = hr.clone()
    framed[..., :4, :] = 0
    assert lpips(net, framed, hr, border=4) == 0
    assert lpips(net, hr + 0 * noise, hr.clone().add_(2).sub_(2), border=0) == pytest.approx(0, abs=1e-6)


def test_refusals(net: LpipsNet) -> None:
    with pytest.raises(ValueError, match="31x40 pixels are left, and lpips needs 32 a side"):
        lpips(net, torch.zeros(1, 3, 40, 31), torch.zeros(1, 3, 40, 31), border=0)
    with pytest.raises(ValueError, match=r"sr is \[1, 3, 40, 40\] and hr is \[1, 3, 40, 44\]"):
        lpips(net, torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 40, 44))


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    with pytest.raises(ValueError, match=r"LPIPS needs TorchMetrics: pip install 'sr-pipeline\[lpips\]'"):
        lpips_net()


@pytest.mark.parametrize("backbone", ["alex", "squeeze", "vgg"])
def test_missing_weights(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No network: the message says which file belongs where, and standard output is left to the results."""
    pytest.importorskip("torchmetrics", reason="the extra lpips is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    wanted: list[str] = []

    def refuse(url: str, *_: object, **__: object) -> None:
        wanted.append(url)
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    message = rf"weights of {backbone}, which cannot be fetched \(no network\); put (https://\S+\.pth) into (.*)"
    with pytest.raises(ValueError, match=message) as refused:
        lpips_net(backbone)
    found = re.search(message, str(refused.value))
    assert found
    assert [found[1]] == wanted
    assert Path(found[2]) == tmp_path / "hub" / "checkpoints"
    assert capsys.readouterr().out == ""
