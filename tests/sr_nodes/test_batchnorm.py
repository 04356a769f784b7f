"""BatchNorm over processes is BatchNorm on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from sr_nodes.batchnorm import SynchronisedBatchNorm2d, synchronised
from sr_nodes.discriminators import discriminator
from sr_nodes.srresnet import srresnet
from sr_pipeline import board
from sr_pipeline.world import ALONE, World

SIZES = (3, 1, 2)
"""Images of each process."""


def example(dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    """A batch far from zero, where a difference of squares would lose most digits; the gradient; the norm."""
    rng = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(sum(SIZES), 5, 4, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    norm = nn.BatchNorm2d(5, dtype=dtype)
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.rand(p.shape, generator=rng) + 0.5)
    return (10 * x + 300).to(dtype), grad.to(dtype), norm


def results(norm: nn.BatchNorm2d, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    out = norm(x)
    out.backward(grad)
    found = {"out": out, "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found |= dict(norm.named_buffers())
    return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


def process(rank: int, folder: Path, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SIZES))
    x, grad, norm = example(dtype)
    synchronised(norm_holder := nn.Sequential(norm), World(rank, len(SIZES)))
    assert isinstance(norm_holder[0], SynchronisedBatchNorm2d)
    parts = (torch.split(tensor, list(SIZES))[rank] for tensor in (x, grad))
    torch.save(results(norm, *parts), folder / f"{rank}.pt")
    board.forget()
    dist.destroy_process_group()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_it_is_batch_norm_on_the_joined_batch(dtype: torch.dtype, bound: float, tmp_path: Path) -> None:
    spawn(process, (tmp_path, dtype), len(SIZES))  # type: ignore[no-untyped-call]
    x, grad, norm = example(torch.float64)
    wanted = results(norm, x.to(dtype).double(), grad.to(dtype).double())
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SIZES))]
    for name in ("out", "x"):
        joined = torch.cat([part[name] for part in found])
        torch.testing.assert_close(joined.double(), wanted[name], rtol=bound, atol=bound)
    for name in ("weight", "bias"):  # each process has its part of the sum over the batch
        total = torch.stack([part[name] for part in found]).double().sum(0)
        torch.testing.assert_close(total, wanted[name], rtol=bound, atol=bound)
    for part in found:
        assert part["num_batches_tracked"] == 1
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(part[name].double(), wanted[name], rtol=1e-5, atol=0)


def test_only_where_there_are_others_and_it_is_wanted() -> None:
    def count(model: nn.Module) -> int:
        return sum(isinstance(m, SynchronisedBatchNorm2d) for m in model.modules())

    assert count(srresnet(blocks=2, channels=4)) == 0
    assert count(srresnet(blocks=2, channels=4, world=World(0, 2), sync_batch_norm=False)) == 0
    assert count(srresnet(blocks=2, channels=4, world=World(0, 2))) == 5
    assert count(discriminator(crop=16, channels=2, dense=4, world=World(0, 2))) == 7
    assert synchronised(nn.BatchNorm2d(3), ALONE).__class__ is nn.BatchNorm2d


def test_in_eval_mode_it_asks_nobody() -> None:
    net = srresnet(blocks=1, channels=4, rng=torch.Generator().manual_seed(0))
    other = srresnet(blocks=1, channels=4, rng=torch.Generator().manual_seed(0), world=World(1, 2))
    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(net.eval()(lr), other.eval()(lr))
