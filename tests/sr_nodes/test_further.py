"""Further figures: those of the metrics themselves, none where none is named, and LPIPS made only where it is."""

from __future__ import annotations

import pytest
import torch

from sr_nodes.further import further_figures, further_metrics
from sr_nodes.lpips import LpipsNet
from sr_nodes.similarity import ms_ssim, ssim


class Difference(torch.nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).abs().mean()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backbones that LPIPS was made with, in place of a download."""
    names: list[str] = []

    def net(backbone: str, _device: torch.device) -> LpipsNet:
        names.append(backbone)
        return LpipsNet(Difference())

    monkeypatch.setattr("sr_nodes.further.lpips_net", net)
    return names


def pictures(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    hr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return (hr * 0.9).clone(), hr


def test_none_is_measured_where_none_is_named(made: list[str]) -> None:
    measures, least = further_metrics()
    assert further_figures(measures, *pictures(30)) == {}
    assert made == []
    ssim(*pictures(least), border=0)
    with pytest.raises(ValueError, match="10x10 pixels are left"):
        ssim(*pictures(least - 1), border=0)


def test_figures_are_those_of_the_metrics(made: list[str]) -> None:
    measures, least = further_metrics(("lpips", "ms_ssim"))
    assert made == ["alex"]
    sr, hr = pictures(least + 12)
    found = further_figures(measures, sr, hr, border=6)
    inside = (..., slice(6, -6), slice(6, -6))
    assert found == {
        "ms_ssim": ms_ssim(sr, hr, border=6),
        "lpips": pytest.approx(float((sr - hr)[inside].abs().mean()), rel=1e-6),
    }
    with pytest.raises(ValueError, match="175x175 pixels are left, and ms_ssim needs 176 a side"):
        further_figures(measures, *pictures(least + 11), border=6)


def test_lpips_alone_needs_less(made: list[str]) -> None:
    measures, least = further_metrics(("lpips",))
    assert list(further_figures(measures, *pictures(least), border=0)) == ["lpips"]
    with pytest.raises(ValueError, match="31x31 pixels are left, and lpips needs 32 a side"):
        further_figures(measures, *pictures(least - 1), border=0)
