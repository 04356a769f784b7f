"""What a picture takes from file to file: its tensors counted to the byte, and the process as the system sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from sr_nodes.memory import Peak
from sr_nodes.picture_files import Picture
from sr_nodes.picture_jobs import Place
from sr_nodes.upscale import find_upscaler
from sr_nodes.upscale_job import Job, Writer, upscale_file
from sr_nodes.upscale_outcomes import Outcome

NEAREST = find_upscaler("nearest")


class AtOnce(Writer):
    """Writes in the thread that counts."""

    def __call__(self, write: Callable[[], Outcome]) -> Future[Outcome]:
        future = Future[Outcome]()
        future.set_result(write())
        return future


def levels(channels: int, dtype: torch.dtype, height: int, width: int) -> torch.Tensor:
    top = 256 if dtype == torch.uint8 else 65536
    drawn = torch.randint(0, top, (channels, height, width), generator=torch.Generator().manual_seed(0))
    return drawn.to(dtype)


def peak(target: Path, channels: int, alpha: bool, dtype: torch.dtype, size: tuple[int, int]) -> int:
    """Bytes of the tensors that live at once, from the picture that was read to the file."""
    picture = Picture(levels(channels, dtype, *size), levels(1, dtype, *size) if alpha else None)
    read = Future[Picture]()
    read.set_result(picture)
    with Peak() as counted:
        outcome = upscale_file(NEAREST, Job(Place(Path("a"), target), read, AtOnce()), tile=32).result()
    assert outcome.status == "upscaled", outcome.error
    return int(counted.bytes)


@pytest.mark.parametrize(
    ("name", "channels", "alpha", "dtype", "most"),
    [
        ("a.jpg", 3, True, torch.uint8, 3 + 1 + 3),  # the picture, its alpha, and what is put on white
        ("a.png", 3, True, torch.uint8, 3 + 1 + 4),  # the same, and the pixels in a file's order
        ("a.png", 3, False, torch.uint8, 3 + 3),
        ("a.png", 1, False, torch.uint8, 3 + 1),  # the three channels of which gray is the mean
        ("a.tif", 1, False, torch.uint16, 2 * (3 + 1)),
        ("a.jpg", 3, True, torch.uint16, 2 * 4 + 4),  # of 16 bits, and then of 8
        ("a.png", 3, True, torch.uint16, 2 * (4 + 4)),
    ],
)
def test_memory_grows_by_so_many_bytes_for_each_pixel_of_the_result(
    tmp_path: Path, name: str, channels: int, alpha: bool, dtype: torch.dtype, most: int
) -> None:
    """Beside blocks of rows and tiles, which do not grow with the height, there are no wider numbers."""
    small, large = ((256, 128), (768, 128))
    grown = peak(tmp_path / f"large-{name}", channels, alpha, dtype, large) - peak(
        tmp_path / f"small-{name}", channels, alpha, dtype, small
    )
    pixels = 16 * (768 - 256) * 128
    # What is made on the way is freed before: a sixteenth for each byte that a pixel of the source takes.
    assert 0.9 * most <= grown / pixels <= most + 1


PROGRAM = """
import json, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
from sr_nodes.picture_encoding import encode
from sr_nodes.picture_files import Picture
from sr_nodes.upscale import find_upscaler
from sr_nodes.upscale_job import picture_files, upscale_file
from sr_nodes.upscale_outcomes import Outcomes

model, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
generator = find_upscaler(model)
generator.field

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])

def upscale(folder, source, target):
    gather = Outcomes()
    for job in picture_files((str(folder / source),), str(folder / target)):
        gather(upscale_file(generator, job, tile=128))
    assert len(gather.result()["upscaled"]) == 1, gather.result()

def drawn(channels, deep, height, width):
    steps = torch.arange(height * width).reshape(1, height, width) // 7
    every = torch.cat([steps * (n + 1) % (65536 if deep else 256) for n in range(channels)])
    return every.to(torch.uint16 if deep else torch.uint8)

grown = {}
with tempfile.TemporaryDirectory() as name:
    for text in sys.argv[4:]:
        source, channels, deep, target = text.split("/")
        for size, stem in (((16, 16), "small"), ((height, width), "large")):
            every = drawn(int(channels), deep == "16", *size)
            opaque = len(every) in (1, 3)
            picture = Picture(every if opaque else every[:-1], None if opaque else every[-1:])
            (Path(name) / f"{stem}.{source}").write_bytes(encode(picture, source.upper()))
        del every, picture
        upscale(Path(name), f"small.{source}", f"small-{channels}{deep}.{target}")
        Path("/proc/self/clear_refs").write_text("5")  # the most from here on
        rest = kilobytes("VmRSS")
        upscale(Path(name), f"large.{source}", f"large-{channels}{deep}.{target}")
        grown[text] = (kilobytes("VmHWM") - rest) * 1024
print(json.dumps(grown))
"""


def growth(model: str, height: int, width: int, *kinds: str) -> dict[str, int]:
    """Bytes by which the most memory of a process grows over rest, for each kind of picture."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the most memory of a process is read from /proc")
    call = [sys.executable, "-c", PROGRAM, model, str(height), str(width), *kinds]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_the_process_grows_by_at_most_24_bytes_for_each_pixel_of_the_result() -> None:
    """Beside 100 MB for any picture. Reading, tiles, decoder and encoder too; 1.3 GB for a picture of 2000 x 1500."""
    found = growth("nearest", 600, 800, "png/1/8/png", "png/1/16/tif", "png/4/8/jpg", "png/4/16/png")
    assert len(found) == 4
    for kind, grown in found.items():
        assert grown < 10**8 + 24 * (16 * 600 * 800), kind


@pytest.mark.full
def test_the_process_grows_by_under_1_gb_for_a_transparent_picture_of_2000_by_1500() -> None:
    found = growth("srresnet_small_x4", 1500, 2000, "png/4/8/jpg")
    assert found["png/4/8/jpg"] < 10**9
