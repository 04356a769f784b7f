"""Tiles give the whole picture's SR: whatever the tile, the picture, the network, and the memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sr_nodes import tiles
from sr_nodes.generators import generate
from sr_nodes.inference import Prepared, prepared
from sr_nodes.memory import Peak
from sr_nodes.pictures import to_uint8
from sr_nodes.rrdbnet import rrdbnet
from sr_nodes.srresnet import srresnet
from sr_nodes.tiles import Box, Layout, enlarge
from sr_nodes.types import Generator
from sr_pipeline.sockets import Reporter


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*size: int) -> Tensor:
    return torch.rand(3, *size, generator=rng())


def trained(generator: Generator) -> Generator:
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=rng(1)) / 4
            module.running_var = torch.rand(module.num_features, generator=rng(2)) + 0.5
    return generator


@cache
def network(name: str) -> Generator:
    """Narrow networks as deep as the named ones: their receptive fields are the same; and the ones of full width."""
    builders: dict[str, Callable[[], Generator]] = {
        "srresnet": lambda: srresnet(channels=4, rng=rng()),
        "rrdbnet": lambda: rrdbnet(blocks=2, channels=4, growth=2, rng=rng()),
        "the paper's srresnet": lambda: srresnet(rng=rng()),
        "a wide rrdbnet": lambda: rrdbnet(blocks=2, rng=rng()),
        "small": lambda: srresnet(blocks=1, channels=4, rng=rng()),
        "folding by 2": lambda: rrdbnet(2, blocks=1, channels=4, growth=2, rng=rng()),
        "folding by 4": lambda: rrdbnet(1, blocks=1, channels=4, growth=2, rng=rng()),
    }
    return trained(builders[name]())


class Told(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, done: int, total: int) -> None:
        self.steps.append((done, total))


def whole(generator: Generator, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return generate(generator, pixels[None])[0]


TILES = [16, 37, 64, 128]
# One that is larger than three windows of 16 + 2 * 40, some that are smaller than a tile, odd ones, and one pixel.
SIZES = [(303, 41), (57, 96), (15, 33), (1, 1), (1, 120), (129, 3)]


@pytest.mark.parametrize("name", ["srresnet", "rrdbnet"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", TILES)
def test_tiled_equals_untiled(name: str, size: tuple[int, int], tile: int) -> None:
    told, generator, pixels = Told(), network(name), noise(*size)
    found = enlarge(ready(name), pixels, tile=tile, report=told)
    assert torch.allclose(found, whole(generator, pixels), rtol=0, atol=1e-5)
    assert told.warnings == []
    if tile < max(size):
        assert len(told.steps) > 1
    assert told.steps[-1] == (size[0] * size[1],) * 2


@cache
def ready(name: str) -> Prepared:
    return prepared(network(name))


@pytest.mark.full
@pytest.mark.parametrize("name", ["the paper's srresnet", "a wide rrdbnet"])
@pytest.mark.parametrize("size", [None, (35, 100), (1, 1)])
@pytest.mark.parametrize("tile", TILES)
def test_tiled_equals_untiled_at_full_width(name: str, size: tuple[int, int] | None, tile: int) -> None:
    pixels = noise(*(size or (3 * (tile + 2 * 40) + 5, 33)))  # larger than three windows
    found = enlarge(ready(name), pixels, tile=tile)
    assert torch.allclose(found, whole(network(name), pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["the paper's srresnet", "a wide rrdbnet"])
@pytest.mark.parametrize("tile", TILES)
def test_tiled_equals_untiled_at_full_width_on_thin_pictures(name: str, tile: int) -> None:
    """Every tile size, along rows and along columns, on more than three windows; and on what is smaller than a tile."""
    long = 3 * (tile + 2 * 40) + 5
    for size in ((3, long), (long, 2), (tile - 1, 5), (1, 1)):
        pixels, told = noise(*size), Told()
        found = enlarge(ready(name), pixels, tile=tile, report=told)
        assert torch.allclose(found, whole(network(name), pixels), rtol=0, atol=1e-5)
        assert len(told.steps) == -(-max(size) // tile)


@pytest.mark.parametrize("name", ["the paper's srresnet", "a wide rrdbnet"])
def test_tiled_equals_untiled_at_full_width_in_both_directions(name: str) -> None:
    pixels = noise(39, 75)
    found = enlarge(ready(name), pixels, tile=37)
    assert torch.allclose(found, whole(network(name), pixels), rtol=0, atol=1e-5)


@given(
    name=st.sampled_from(["small", "folding by 2", "folding by 4"]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    tile=st.integers(1, 40),
    batch=st.integers(0, 3),
)
def test_any_tile_of_any_picture(name: str, size: tuple[int, int], tile: int, batch: int) -> None:
    pixels = noise(*size)
    tile = max(tile, max(size) // 6)  # few enough windows
    found = enlarge(ready(name), pixels, tile=tile, batch=batch)
    assert torch.allclose(found, whole(network(name), pixels), rtol=0, atol=1e-5)


def test_one_pixel_less_of_overlap_shows() -> None:
    pixels, told = noise(5, 60), Told()
    generator = network("small")
    wanted = whole(generator, pixels)
    exact = enlarge(generator, pixels, tile=8, overlap=10, report=told)
    assert told.warnings == []
    less = enlarge(generator, pixels, tile=8, overlap=6, report=told)
    assert torch.allclose(exact, wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(less, wanted, rtol=0, atol=1e-6)
    assert told.warnings == [
        "tiles are approximate: this srresnet sees as far as 10 pixels, and they overlap by 6; "
        "give overlap exact to be exact"
    ]


@pytest.mark.parametrize(
    ("name", "tile"),
    [("srresnet", 16), ("rrdbnet", 37), ("the paper's srresnet", 64), ("a wide rrdbnet", 64)],
)
def test_a_constant_picture_is_constant_away_from_its_border(name: str, tile: int) -> None:
    field = ready(name).field
    assert field is not None
    radius, scale = field.radius, 4
    sr = enlarge(ready(name), torch.full((3, 2 * radius + 5, 2 * radius + 8), 0.3), tile=tile)
    inside = sr[:, scale * radius : -scale * radius, scale * radius : -scale * radius]
    # One value for each channel and phase of the scale: every LR pixel there looks alike.
    phases = inside.unfold(1, scale, scale).unfold(2, scale, scale)
    assert phases.shape[1:3] == (5, 8)
    assert torch.allclose(phases, phases[:, :1, :1].expand_as(phases), rtol=0, atol=1e-6)
    assert not torch.allclose(sr[:, :scale], inside[:, :scale, :1].expand(3, scale, sr.shape[2]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "levels"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_levels_in_are_levels_out(dtype: torch.dtype, levels: int) -> None:
    pixels = (noise(20, 30) * levels).round()
    found = enlarge(ready("small"), pixels.to(dtype), tile=9)
    wanted = enlarge(ready("small"), pixels / levels, tile=None)
    assert found.dtype == dtype
    assert (found.float() - (wanted * levels).round()).abs().max() <= 1  # a half may round either way
    assert (found.float() == (wanted * levels).round()).float().mean() > 0.99


def test_black_and_white_do_not_wrap_around() -> None:
    generator = srresnet(blocks=1, channels=4, rng=rng())
    for bias, level in ((-9.0, 0), (9.0, 255)):
        nn.init.constant_(generator.get_parameter("tail.bias"), bias)
        assert bool((enlarge(generator, torch.zeros(3, 8, 8, dtype=torch.uint8)) == level).all())


def test_uint8_is_rounded_as_saved_pictures_are() -> None:
    pixels = noise(10, 10)
    found = enlarge(ready("small"), (pixels * 255).round().to(torch.uint8), tile=None)
    assert torch.equal(found, to_uint8(ready("small")((pixels * 255).round()[None] / 255)[0]))


def test_the_result_is_an_ordinary_tensor() -> None:
    made = enlarge(ready("small"), noise(8, 8))
    assert not made.is_inference()
    assert made.device.type == "cpu"


class Global(Generator):
    """Of unbounded reach."""

    architecture, scale = "global", 2

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, lr: Tensor) -> Tensor:
        return (lr * lr.mean(dim=(2, 3), keepdim=True)).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_without_bound_it_says_that_it_is_approximate() -> None:
    told = Told()
    made = enlarge(Global(), noise(20, 40), tile=16, report=told)
    assert made.shape == (3, 40, 80)
    assert told.warnings == [
        "tiles are approximate: this global sees farther than 64 pixels, or without bound, and they overlap by 64; "
        "give tile none to be exact"
    ]


def test_a_picture_that_fits_in_a_tile_is_never_approximate() -> None:
    told, pixels = Told(), noise(20, 40)
    for tile in (None, 40, "auto"):
        made = enlarge(Global(), pixels, tile=tile, report=told)
        assert torch.allclose(made, whole(Global(), pixels))
    assert told.warnings == []


@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    tile=st.integers(1, 64),
    overlap=st.integers(0, 64),
    grid=st.sampled_from([1, 2, 4, 16]),
)
def test_cores_cover_the_picture_once_and_windows_hold_them(
    height: int, width: int, tile: int, overlap: int, grid: int
) -> None:
    layout = Layout(height, width, overlap, grid)
    covered = torch.zeros(height, width, dtype=torch.int)
    for core in layout.cores(Box(0, 0, height, width), tile):
        covered[core.top : core.bottom, core.left : core.right] += 1
        assert max(core.size) < tile + grid
        window = layout.window(core)
        for low, high, first, last, end in (
            (window.top, window.bottom, core.top, core.bottom, height),
            (window.left, window.right, core.left, core.right, width),
        ):
            assert 0 <= low <= max(0, first - overlap)
            assert min(end, last + overlap) <= high <= end
            assert low % grid == 0
            assert high % grid == 0 or high == end
    assert bool((covered == 1).all())


class Scarce(Prepared):
    """Runs out of memory, as torch says it, for more than so many pixels at once."""

    def __init__(self, generator: Generator, most: int, error: Exception) -> None:
        super().__init__(generator, "fp32", torch.device("cpu"))
        self.most, self.error, self.sizes = most, error, list[int]()

    def forward(self, lr: Tensor) -> Tensor:
        self.sizes.append(lr[:, 0].numel())
        if self.sizes[-1] > self.most:
            raise self.error
        return super().forward(lr)


OUT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", OUT, ids=["Python", "CUDA", "CPU"])
@pytest.mark.parametrize("tile", [None, 64])
def test_out_of_memory_halves_the_tile_and_goes_on(error: Exception, tile: int | None) -> None:
    told, pixels = Told(), noise(64, 128)
    net = Scarce(network("small"), 60 * 60, error)
    found = enlarge(net, pixels, tile=tile, report=told)
    assert torch.allclose(found, whole(network("small"), pixels), rtol=0, atol=1e-5)
    assert told.warnings[-1] == "out of memory on cpu: going on with tiles of 32"
    assert told.steps[-1] == (64 * 128, 64 * 128)
    failed = [size for size in net.sizes if size > net.most]
    assert len(failed) == len(told.warnings) == (2 if tile is None else 1)  # nothing is tried again at that size


def test_what_is_done_is_not_done_again() -> None:
    # The corner windows fit, and those between them, which see overlap on both sides, do not.
    told, pixels = Told(), noise(20, 120)
    net = Scarce(network("small"), 20 * 51, MemoryError())
    found = enlarge(net, pixels, tile=40, report=told)
    assert torch.allclose(found, whole(network("small"), pixels), rtol=0, atol=1e-5)
    assert told.warnings == ["out of memory on cpu: going on with tiles of 20"]
    assert net.sizes == [20 * 50, 20 * 50, 20 * 60, 20 * 40, 20 * 40]


def test_batches_are_made_smaller_before_tiles_are() -> None:
    told, pixels = Told(), noise(16, 160)
    net = Scarce(network("small"), 2 * 16 * 36, MemoryError())
    found = enlarge(net, pixels, tile=16, batch=4, report=told)
    assert torch.allclose(found, whole(network("small"), pixels), rtol=0, atol=1e-5)
    assert told.warnings == []
    assert max(size for size in net.sizes if size <= net.most) == 2 * 16 * 36


def test_where_nothing_fits_it_ends() -> None:
    mends = "give a smaller --tile, --precision bf16 or a smaller model"
    with pytest.raises(MemoryError, match=f"not enough memory on cpu for a tile of 16 pixels; {mends}"):
        enlarge(Scarce(network("small"), 10, MemoryError()), noise(64, 64), tile=64)


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="a fault of the network"):
        enlarge(Scarce(network("small"), 10, RuntimeError("a fault of the network")), noise(64, 64), tile=64)


def test_auto_uses_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    net, pixels = Scarce(network("small"), 1 << 60, MemoryError()), noise(100, 150)
    assert net.bytes_per_pixel > 0  # measured once, here
    result = 16 * pixels.nbytes
    monkeypatch.setattr(tiles, "free_bytes", lambda device: result + int(2 * 60 * 60 * net.bytes_per_pixel))
    net.sizes.clear()
    found = enlarge(net, pixels)
    assert max(net.sizes) <= 60 * 60
    assert len(net.sizes) == 3 * 4  # cores of at most 60 - 2 * 10
    assert torch.allclose(found, whole(network("small"), pixels), rtol=0, atol=1e-5)


def test_auto_takes_the_whole_where_it_fits() -> None:
    net = Scarce(network("small"), 1 << 60, MemoryError())
    assert net.bytes_per_pixel > 0
    net.sizes.clear()
    enlarge(net, noise(100, 150))
    assert net.sizes == [100 * 150]


@pytest.mark.parametrize(("width", "count"), [(1024, 1), (1025, 2)])
def test_auto_cuts_what_is_larger_than_the_largest_tile(
    monkeypatch: pytest.MonkeyPatch, width: int, count: int
) -> None:
    net, told, pixels = Scarce(network("small"), 1 << 60, MemoryError()), Told(), noise(3, width)
    monkeypatch.setattr(tiles, "free_bytes", lambda device: 1 << 60)
    assert net.bytes_per_pixel > 0
    net.sizes.clear()
    found = enlarge(net, pixels, report=told)
    assert len(net.sizes) == len(told.steps) == count
    assert torch.allclose(found, whole(network("small"), pixels), rtol=0, atol=1e-5)


def test_without_overlap_is_not_the_whole() -> None:
    told = Told()
    enlarge(Scarce(network("small"), 33 * 33, MemoryError()), noise(64, 128), tile=64, overlap=0, report=told)
    assert told.warnings == [
        "tiles are approximate: this srresnet sees as far as 10 pixels, and they overlap by 0; "
        "give overlap exact to be exact",
        "out of memory on cpu: going on with tiles of 32",
    ]


def peak(size: tuple[int, int], tile: int) -> int:
    net, pixels, counted = ready("small"), torch.zeros(3, *size, dtype=torch.uint8), Peak()
    assert net.field  # found once, by a picture of its own
    with counted:
        enlarge(net, pixels, tile=tile)
    return counted.bytes


def test_memory_grows_with_the_picture_by_the_picture_alone() -> None:
    small, large = peak((64, 64), 16), peak((128, 256), 16)
    picture = 3 * 16  # bytes of the result for each LR pixel
    assert large - small == picture * (128 * 256 - 64 * 64)
    assert peak((128, 256), 128) > 2 * large


PROGRAM = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from sr_nodes.inference import prepared
from sr_nodes.srresnet import srresnet
from sr_nodes.tiles import enlarge
net = prepared(srresnet(blocks=int(sys.argv[1]), channels=int(sys.argv[2])))
net.field
enlarge(net, torch.zeros(3, 8, 8, dtype=torch.uint8), tile=None)
def most():  # not getrusage, which counts what the parent of the process had
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
rest = most()
enlarge(net, torch.zeros(3, int(sys.argv[3]), int(sys.argv[4]), dtype=torch.uint8), tile=int(sys.argv[5]))
print(most() - rest)
"""


def growth(*arguments: int) -> int:
    """MB by which the most memory of a process has grown."""
    if sys.platform != "linux":
        pytest.skip("the most memory of a process is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) * 1024 // 10**6


@pytest.mark.full
def test_the_process_grows_by_under_2_5_gb_for_a_picture_of_2000_by_1500() -> None:
    assert growth(16, 64, 1500, 2000, 128) < 2500


def test_the_process_grows_by_little_for_a_small_picture() -> None:
    # The result is 8.6 MB; what the network holds meanwhile is 2.2 kB for each LR pixel of a window.
    assert growth(1, 16, 300, 600, 128) < 150
    assert growth(1, 16, 300, 600, 600) > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixels": torch.zeros(1, 3, 4, 4)}, r"the pixels are \[1, 3, 4, 4\]; wanted is \[3, H, W\]"),
        ({"pixels": torch.zeros(3, 0, 4)}, "of at least one pixel"),
        ({"pixels": torch.zeros(3, 4, 4).int()}, "the pixels are torch.int32; wanted is uint8, uint16 or float32"),
        ({"tile": 0}, "tile is 0; give 'auto', None or at least 1"),
        ({"tile": "none"}, "tile is 'none'; give 'auto'"),
        ({"overlap": -1}, "overlap is -1; give 'exact' or at least 0"),
        ({"overlap": "all"}, "overlap is 'all'; give 'exact'"),
        ({"batch": -1}, "batch is -1; give at least 1"),
    ],
)
def test_what_it_does_not_take(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"generator": network("small"), "pixels": noise(4, 4)}
    with pytest.raises(ValueError, match=message):
        enlarge(**(arguments | options))


def test_a_result_that_does_not_fit_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "free_bytes", lambda device: 16 * 3 * 8 * 8 * 4 - 1)
    with pytest.raises(MemoryError, match=r"^the result takes 0\.0 GB, and 0\.0 GB of memory are free; enlarge a part"):
        enlarge(trained(srresnet(blocks=1, channels=8)), noise(8, 8))
