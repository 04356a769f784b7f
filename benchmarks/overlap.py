"""What reading and writing beside the computing is worth: a folder of pictures, with it and without, in turn.

    python benchmarks/overlap.py [--pictures 12] [--width 512] [--height 384] [--rounds 3] [--model NAME]
                                 [--device cpu|cuda] [--json] [--quick]

The same PNG files are enlarged as ``sr-pipeline upscale`` does it (read ahead by a thread, encoded and written by
others), and one after the other: read, computed, encoded, written. The ratio is the median over the rounds of the
seconds without by those with it: above 1, the overlap gains. It writes overlap.json beside itself, except with
--quick, which takes 4 small pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sr_nodes.picture_encoding import encode, fitted
from sr_nodes.picture_files import Picture, read_whole
from sr_nodes.picture_jobs import places, write_bytes
from sr_nodes.pictures import read_picture
from sr_nodes.types import Generator
from sr_nodes.upscale import find_upscaler, upscale_picture
from sr_nodes.upscale_job import picture_files, upscale_file
from sr_nodes.upscale_outcomes import Outcomes
from sr_nodes.upscalers import BEST
from sr_pipeline.paths import resolve

HERE = Path(__file__).resolve().parent
PHOTOGRAPH = "sr_nodes:samples/test/picosdeeuropa.jpg"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=BEST)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, nothing else")
    parser.add_argument("--quick", action="store_true", help="4 small pictures; ends within a minute")
    options = parser.parse_args()
    count, width, height = (4, 128, 96) if options.quick else (options.pictures, options.width, options.height)
    generator = find_upscaler(options.model, device=torch.device(options.device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "in", count, height, width)
        seconds = race(generator, folder, options.rounds, talk=not options.json)
    rounds = [off / on for off, on in zip(seconds["one_after_the_other"], seconds["overlapped"], strict=True)]
    result: dict[str, Any] = {
        "ratio_overlap": round(statistics.median(rounds), 2),
        "ratio_overlap_range": [round(min(rounds), 2), round(max(rounds), 2)],
        "seconds": {key: round(statistics.median(took), 2) for key, took in seconds.items()},
        "pictures": f"{count} PNG of {width}x{height}, x{generator.scale}",
        "model": options.model,
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {options.device}",
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=2)
    if not options.quick:
        (HERE / "overlap.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def draw(folder: Path, count: int, height: int, width: int) -> None:
    """Parts of a photograph, each another one."""
    folder.mkdir()
    photograph = read_picture(resolve(PHOTOGRAPH))
    wide = photograph.repeat(1, -(-height // photograph.shape[1]), -(-width // photograph.shape[2]))
    for number in range(count):
        part = wide.roll(37 * number, dims=2)[:, :height, :width].contiguous()
        write_bytes(folder / f"{number:03d}.png", encode(Picture(part), "PNG"))


def race(generator: Generator, folder: Path, rounds: int, talk: bool) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one that is not counted."""
    ways: dict[str, Callable[[Generator, str, str], None]] = {
        "one_after_the_other": one_after_the_other,
        "overlapped": overlapped,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way(generator, str(folder / "in"), str(folder / f"{name}-{turn}"))
            took = time.perf_counter() - began
            if turn:
                seconds[name].append(took)
            if talk:
                print(f"round {turn}: {name:<20} {took:7.2f} s", flush=True)
    return seconds


def overlapped(generator: Generator, inputs: str, output: str) -> None:
    gather = Outcomes()
    for job in picture_files((inputs,), output):
        gather(upscale_file(generator, job))
    failed = gather.result()["failed"]
    if failed:
        raise RuntimeError(str(failed))


def one_after_the_other(generator: Generator, inputs: str, output: str) -> None:
    for source, target, _ in places([inputs], output):
        target.parent.mkdir(parents=True, exist_ok=True)
        large = fitted(upscale_picture(generator, read_whole(source)), "PNG")
        write_bytes(target, encode(large, "PNG"))


if __name__ == "__main__":
    sys.exit(main())
