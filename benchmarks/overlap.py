"""What reading and writing beside the computing is worth: a folder of pictures, with it and without, in turn.

    python benchmarks/overlap.py [--pictures 12] [--width 512] [--height 384] [--rounds 3] [--model NAME]
                                 [--device cpu|cuda] [--json] [--quick] [--out FOLDER]

The same PNG files are enlarged as ``sr-pipeline upscale`` does it (read ahead by a thread, encoded and written by
others), and one after the other: read, computed, encoded, written. The ratio is the median over the rounds of the
seconds without by those with it: above 1, the overlap gains. --quick takes 4 small pictures.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import count
from pathlib import Path

from measure import arguments, device_of, machine, publish, race, ratio, spread
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

PHOTOGRAPH = "sr_nodes:samples/test/picosdeeuropa.jpg"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=BEST)
    options = parser.parse_args()
    device = device_of(options)
    pictures, width, height = (4, 128, 96) if options.quick else (options.pictures, options.width, options.height)
    generator = find_upscaler(options.model, device=device)
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        draw(folder / "in", pictures, height, width)
        ways = {
            way.__name__: lambda way=way: way(generator, str(folder / "in"), str(folder / f"out-{next(numbers)}"))
            for way in (one_after_the_other, overlapped)
        }
        seconds = race(ways, options.rounds, device=device)
    found = ratio(seconds, "one_after_the_other", "overlapped")
    result = {
        "ratio_overlap": found["median"],
        "ratio_overlap_spread": found,
        "seconds": {way: spread(took) for way, took in seconds.items()},
        "pictures": f"{pictures} PNG of {width}x{height}, x{generator.scale}",
        "model": options.model,
        "rounds": options.rounds,
        "machine": machine(device),
    }
    publish("overlap", result, options)
    return 0


def draw(folder: Path, count: int, height: int, width: int) -> None:
    """Parts of a photograph, each another one."""
    folder.mkdir()
    photograph = read_picture(resolve(PHOTOGRAPH))
    wide = photograph.repeat(1, -(-height // photograph.shape[1]), -(-width // photograph.shape[2]))
    for number in range(count):
        part = wide.roll(37 * number, dims=2)[:, :height, :width].contiguous()
        write_bytes(folder / f"{number:03d}.png", encode(Picture(part), "PNG"))


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
