"""What only a CUDA device can show; skipped elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sr_nodes._fused.adam import update
from sr_nodes.assets import graphs
from sr_nodes.data import photographs, random_crops
from sr_nodes.discriminators import discriminator
from sr_nodes.features import vgg19
from sr_nodes.pairs import image_pairs
from sr_nodes.srresnet import srresnet
from sr_nodes.validation import validate
from sr_pipeline.check import with_settings
from sr_pipeline.cudagraph import CudaGraph
from sr_pipeline.graph import Graph
from sr_pipeline.memsets import as_kernels
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.streams import recorded

pytestmark = pytest.mark.gpu
SMALL = ["generator.blocks=2", "generator.channels=16", "start.weights=null", "hr.batch=4", "rate.initial=1e-5"]


def train(registry: Registry, folder: Path, device: str, **options: bool | int) -> dict[str, torch.Tensor]:
    """The generator's weights, trained in fp32."""
    graph = with_settings(Graph.load(graphs() / "quickstart.json"), registry, SMALL)
    run(graph, registry=registry, device=device, precision="fp32", run_dir=folder, **options)  # type: ignore[arg-type]
    return load_file(folder / "generator.safetensors")


def test_cuda_trains_what_the_cpu_trains(registry: Registry, tmp_path: Path) -> None:
    """Five steps at a small learning rate: the same weights but for rounding, as the random numbers are the same."""
    cpu = train(registry, tmp_path / "cpu", "cpu", steps=5)
    cuda = train(registry, tmp_path / "cuda", "cuda", steps=5)
    for name, weights in cpu.items():
        torch.testing.assert_close(cuda[name], weights, rtol=1e-3, atol=1e-4, msg=name)


def test_cuda_run_resumes(registry: Registry, tmp_path: Path) -> None:
    train(registry, tmp_path / "run", "cuda", steps=2)
    weights = train(registry, tmp_path / "run", "cuda", steps=4, resume=True)
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_cuda_gives_the_same_bits_when_it_is_asked_to(registry: Registry, tmp_path: Path) -> None:
    first, second = (train(registry, tmp_path / name, "cuda", steps=5, deterministic=True) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", [None, 0])
def test_crops_made_ahead_are_the_hosts(workers: int | None) -> None:
    """Bit for bit, while the device is busy, and though each is used up before the next is asked for."""
    photos = photographs("sr_nodes:samples/train")
    crops = partial(random_crops, photos, size=32, batch=8, steps=20, workers=workers)
    cuda = torch.device("cuda")
    work = torch.rand(2048, 2048, device=cuda)
    found = []
    for image in crops(device=cuda):
        work = work @ work / 1024
        found.append(image.clone())
        image.zero_()
        del image
    for there, here in zip(found, crops(), strict=True):
        assert torch.equal(there.cpu(), here)


def test_held_out_pictures_wait_on_the_host() -> None:
    cuda, net = torch.device("cuda"), srresnet(blocks=1, channels=8, rng=torch.Generator().manual_seed(0))
    pairs = image_pairs(device=cuda)
    assert {tensor.device.type for pair in pairs for tensor in (pair.lr, pair.hr)} == {"cpu"}
    wanted = validate(net, image_pairs())
    assert validate(net.to(cuda), pairs) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("net", ["srresnet", "discriminator", "vgg"])
def test_recorded_layers_are_as_near_to_float32_as_autocast_is(net: str) -> None:
    """Results and gradients, to images and of weights; running statistics."""
    made, (picture,) = _network(net, 1)
    found = [_passed(copy.deepcopy(made), picture, *how) for how in ((False, False), (True, False), (True, True))]
    wanted, plain, fused = (torch.cat([t.double().flatten() / t.double().norm() for t in of]) for of in found)
    assert not torch.equal(plain, fused)
    assert (fused - wanted).norm() < 1.25 * (plain - wanted).norm()


@pytest.mark.parametrize("net", ["srresnet", "discriminator", "vgg"])
def test_replayed_layers_give_what_they_give_at_once(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches for the gradients of weights, and memory that is used again, change nothing."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    made, pictures = _network(net, 3)
    wanted = [_passed(copy.deepcopy(made), picture, mixed=True, fused=True, every=True) for picture in pictures]
    place, graph, found = pictures[0].clone(), CudaGraph(torch.device("cuda")), list[torch.Tensor]()

    def work() -> None:
        found[:] = _passed(made, place, mixed=True, fused=True, every=True)

    for _ in range(3):
        graph.warm_up(work)
    graph.record(work, [place])
    statistics = sum("running" in name for name, _ in made.named_buffers())  # which move with each pass
    for picture, expected in zip(pictures, wanted, strict=True):
        place.copy_(picture)
        graph.replay()
        for one, other in list(zip(found, expected, strict=True))[: len(found) - statistics]:
            assert (one.double() - other.double()).norm() <= 1e-4 * other.double().norm()


def test_passes_on_two_branches_add_up_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    net, pictures = _network("discriminator", 2)
    graph, learned = CudaGraph(torch.device("cuda")), list(net.parameters())

    def passes(job: Callable[[list[int], list[torch.Tensor]], AbstractContextManager[None]]) -> list[torch.Tensor]:
        results = list[torch.Tensor]()
        for n, picture in enumerate(pictures):  # the second follows the first, whose running statistics it moves on
            with job(list(range(n)), []), torch.autocast("cuda", torch.bfloat16):
                results.append(net(picture))
        with job([1, 0], results):
            loss = results[0].float().square().mean() + results[1].float().mean()
            net.zero_grad()
            torch.autograd.backward(loss, inputs=learned)
            return [p.grad for p in learned if p.grad is not None]

    def at_once() -> None:
        wanted[:] = passes(lambda *_: nullcontext())

    wanted = list[torch.Tensor]()
    for _ in range(3):
        graph.warm_up(at_once)
    found = graph.record(lambda: passes(graph.job), pictures)
    for _ in range(2):
        graph.replay()
        for one, other in zip(found, wanted, strict=True):
            assert (one.double() - other.double()).norm() <= 1e-4 * other.double().norm()


def test_a_recorded_step_of_adam_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two passes; and the next step reads what it changed."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    net, pictures = _network("discriminator", 2)
    graph, device = CudaGraph(torch.device("cuda")), torch.device("cuda")
    learned = list(net.parameters())
    optimizer = torch.optim.Adam(learned, 1e-4, fused=True, capturable=True)

    def step(job: Callable[[list[int], list[torch.Tensor]], AbstractContextManager[None]]) -> None:
        results = list[torch.Tensor]()
        for n, picture in enumerate(pictures):
            with job(list(range(n)), []), torch.autocast("cuda", torch.bfloat16):
                results.append(net(picture))
        with job([1, 0], results):
            net.zero_grad(set_to_none=True)
            torch.autograd.backward(results[0].float().square().mean() + results[1].float().mean(), inputs=learned)
            update(optimizer)
            net.zero_grad(set_to_none=True)

    def at_once() -> None:
        step(lambda *_: nullcontext())

    for _ in range(3):
        graph.warm_up(at_once)
    begun = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    for _ in range(3):
        graph.warm_up(at_once)
    wanted = [p.detach().clone() for p in learned]
    for tensor, was in zip(net.state_dict().values(), begun[0].values(), strict=True):
        tensor.copy_(was)
    for number, p in enumerate(learned):
        for name, value in optimizer.state[p].items():
            value.copy_(begun[1]["state"][number][name])
    start = [p.detach().clone() for p in learned]
    graph.record(lambda: step(graph.job), pictures)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize(device)
    cancelled = _cancelled(net)
    for p, one, before in zip(learned, wanted, start, strict=True):
        if id(p) not in cancelled:
            assert (p - one).norm() < 0.1 * (one - before).norm()


def test_memsets_are_replayed_as_kernels() -> None:
    """Each fills what it filled: bytes, and words, and what is left of a row as it was."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    driver = pytest.importorskip("cuda.bindings.driver")
    device = torch.device("cuda")
    found, graph = torch.zeros(5_000_000, dtype=torch.uint8, device=device), torch.cuda.CUDAGraph(keep_graph=True)
    fills = [(0, 4, 0xAB), (4096, 3_000_004, 0x01), (3_500_000, 3, 0x77)]
    with torch.cuda.graph(graph):
        found.add_(0)
        stream = torch.cuda.current_stream().cuda_stream
        for at, count, value in fills:
            assert int(runtime.cudaMemsetAsync(found.data_ptr() + at, value, count, stream)[0]) == 0
        assert int(driver.cuMemsetD32Async(found.data_ptr() + 4_000_000, 0x12345678, 300, stream)[0]) == 0
        assert int(driver.cuMemsetD16Async(found.data_ptr() + 4_500_000, 0xBEEF, 302, stream)[0]) == 0
        assert int(runtime.cudaMemset2DAsync(found.data_ptr() + 4_600_000, 64, 0x55, 8, 3, stream)[0]) == 0
        copied = found + 0
    assert as_kernels(graph, device) == 4
    graph.instantiate()
    graph.replay()
    wanted = torch.zeros(5_000_000, dtype=torch.uint8)
    for at, count, value in fills:
        wanted[at : at + count] = value
    wanted[4_000_000 : 4_000_000 + 1200].view(torch.int32).fill_(0x12345678)
    wanted[4_500_000 : 4_500_000 + 604].view(torch.int16).fill_(0xBEEF - 0x10000)
    wanted[4_600_000 : 4_600_000 + 192].view(3, 64)[:, :8] = 0x55
    assert torch.equal(found.cpu(), wanted)
    assert torch.equal(copied.cpu(), wanted)


def _network(net: str, pictures: int) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    made = {"srresnet": srresnet(rng=rng), "discriminator": discriminator(rng=rng), "vgg": vgg19()}[net].cuda()
    made.to(memory_format=torch.channels_last)
    side = 24 if net == "srresnet" else 96
    return made, [torch.rand(16, 3, side, side, generator=rng).cuda() for _ in range(pictures)]


def _passed(
    net: torch.nn.Module, picture: torch.Tensor, mixed: bool, fused: bool, every: bool = False
) -> list[torch.Tensor]:
    """The result, gradients of the picture and of weights, of ``every`` parameter but biases before BatchNorm, which
    are zero, and running statistics."""
    picture = picture.clone().requires_grad_()
    net.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed), recorded() if fused else nullcontext():
        out = net.train()(picture).float()
    ((out - out.detach().mean() - 0.1) ** 2).mean().backward()
    cancelled = _cancelled(net)
    learned = [p for p in net.parameters() if id(p) not in cancelled and (every or p.dim() == 4)]
    grads = [p.grad for p in learned if p.grad is not None]
    assert picture.grad is not None
    kept = [b for name, b in net.named_buffers() if "running" in name]
    return [out.detach(), picture.grad, *grads, *kept]


def _cancelled(net: torch.nn.Module) -> set[int]:
    """The identities of biases that BatchNorm takes away again."""
    return {
        id(conv.bias)
        for conv, bn in pairwise(net.modules())
        if isinstance(conv, torch.nn.Conv2d) and isinstance(bn, torch.nn.BatchNorm2d)
    }
