"""How fast do crops come? Ours beside torch's DataLoader over the same JPEG files, and how long a step waits for them.

    python benchmarks/data.py [--data FOLDER] [--rounds 5] [--json] [--quick] [--out benchmarks/results]

Crops of 96 x 96, flipped and turned, in batches of 16 as float32 in [0, 1], from the folder's photographs: decoded once
and kept, or decoded at each use, in this process or in two others; and a DataLoader over PIL and torchvision's
transforms in the same four ways. In its turn each first gives away what its workers had ready, so that a turn's crops
are made in that turn. ``wait_share`` is the share of the time of a training step, in the default mode, that goes by
while the stream is asked for the next batch; on a GPU, where that overlaps with the step before, it is how much longer
a step takes than over a batch that is there already. It exits with 1 where that is more than 0.03 on a GPU.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from loops import Size
from measure import DATA, Seconds, arguments, device_of, machine, publish, ratio, short, spread, tell, wait
from sr_nodes.data import photographs, random_crops
from sr_nodes.pictures import find_pictures
from step import QUICK, Ours, default_mode, untimed

WORKERS = 2


class Pictures(Dataset[Tensor]):
    """A crop of picture i, as people write it: PIL, then torchvision's transforms."""

    def __init__(self, paths: Sequence[Path], crop: int, keep: bool) -> None:
        self.files = [path.read_bytes() for path in paths]
        self.kept = [self.decoded(file) for file in self.files] if keep else None
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(crop),
                transforms.RandomHorizontalFlip(),
                transforms.RandomChoice([transforms.RandomRotation((turn, turn)) for turn in (0, 90, 180, 270)]),
                transforms.ToTensor(),
            ]
        )

    @staticmethod
    def decoded(file: bytes) -> Image.Image:
        return Image.open(io.BytesIO(file)).convert("RGB")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        crop: Tensor = self.transform(self.kept[index] if self.kept else self.decoded(self.files[index]))
        return crop


def loader(paths: Sequence[Path], size: Size, keep: bool, workers: int) -> Iterator[Tensor]:
    """Batches without end from a DataLoader."""
    pictures = Pictures(paths, size.crop, keep)
    batches: DataLoader[Tensor] = DataLoader(
        pictures, size.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=bool(workers)
    )
    while True:
        yield from batches


def streams(folder: Path, size: Size) -> dict[str, Iterator[Tensor]]:
    """What is compared: batches [batch, 3, crop, crop] without end."""
    made: dict[str, Iterator[Tensor]] = {}
    paths = find_pictures(folder)
    paths = (paths * -(-size.batch // len(paths)))[: max(len(paths), size.batch)]
    for kept, memory_gb in (("kept", 64.0), ("decoded each time", 1e-9)):
        photos = photographs(str(folder), memory_gb)
        for workers in (0, WORKERS):
            name = f"{kept}, {workers} workers"
            made[f"ours, {name}"] = random_crops(photos, size.crop, size.batch, workers=workers)
            made[f"torch, {name}"] = loader(paths, size, kept == "kept", workers)
    return made


def race(made: dict[str, Iterator[Tensor]], rounds: int, least: float) -> Seconds:
    """Seconds a batch by stream and round; a turn lasts ``least`` seconds or longer, after what lay ready."""
    seconds: Seconds = {name: [] for name in made}
    for turn in range(rounds):
        for name, stream in made.items():
            for _ in range(2 * WORKERS + 1):
                next(stream)
            began, number = time.perf_counter(), 0
            while number < 2 or time.perf_counter() - began < least:
                next(stream)
                number += 1
            seconds[name].append((time.perf_counter() - began) / number)
            tell(f"round {turn + 1}: {name:<36} {1000 * seconds[name][-1]:9.2f} ms a batch")
    return seconds


def waiting(size: Size, device: torch.device, folder: Path, gan: bool, steps: int) -> dict[str, Any]:
    """Of a training over the folder's photographs: milliseconds a step, and the share that it waits for data."""
    mode = default_mode(device)
    ours = Ours(size, mode, device, gan)
    stream = random_crops(photographs(str(folder)), size.crop, size.batch, device=device)
    ready = next(stream)
    real, asked = _stepped(ours, lambda: next(stream), steps, device)
    still, _ = _stepped(ours, lambda: ready, steps, device)
    share = max(0.0, 1 - still / real) if device.type == "cuda" else asked / real
    return {"mode": str(mode), "ms": short(1000 * real), "ms_still": short(1000 * still), "wait_share": short(share)}


def _stepped(ours: Ours, batch: Callable[[], Tensor], steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds a step, and of them those in which a batch was asked for."""
    asked = []
    for _ in range(untimed(ours.mode)):
        ours(batch())
    wait(device)
    began = time.perf_counter()
    for _ in repeat(None, steps):
        before = time.perf_counter()
        hr = batch()
        asked.append(time.perf_counter() - before)
        ours(hr)
    wait(device)
    return (time.perf_counter() - began) / steps, statistics.mean(asked)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA / "photos")
    options = parser.parse_args()
    device, quick = device_of(options), options.quick
    samples = Path(__file__).resolve().parents[1] / "nodes" / "sr_nodes" / "samples" / "train"
    folder = options.data if options.data.is_dir() and not quick else samples
    crops = Size(batch=16, crop=96)
    seconds = race(streams(folder, crops), 2 if quick else options.rounds, 0.3 if quick else 2.0)
    rates = {name: spread([crops.batch / s for s in took]) for name, took in seconds.items()}
    pairs = {name.partition(", ")[2] for name in seconds}
    size = QUICK if quick else Size()
    steps = (200 if device.type == "cuda" else 10) if not quick else 3
    steps_of = {net: waiting(size, device, folder, net == "srgan", steps) for net in ("srresnet", "srgan")}
    result = {
        "crops_per_second": rates,
        "times_as_fast_as_torch": {name: ratio(seconds, f"torch, {name}", f"ours, {name}") for name in sorted(pairs)},
        "wait_share": max(found["wait_share"] for found in steps_of.values()),
        "steps": steps_of,
        "photographs": len(find_pictures(folder)),
        "size": vars(size),
        "quick": quick,
        "machine": machine(device),
    }
    publish("data", result, options)
    return int(device.type == "cuda" and float(result["wait_share"]) > 0.03)


if __name__ == "__main__":
    sys.exit(main())
