"""What `make demo` ends with: did it learn, is the picture better than bicubic's, and where are the pictures.

    python benchmarks/demo.py runs/demo

It reads the metrics that the two runs of the demo wrote, and exits with 1 if one of the two does not hold.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

from sr_pipeline.sinks import read_metrics


def main(folder: Path) -> int:
    if not (folder / "train" / "metrics.csv").is_file() or not (folder / "upscale" / "metrics.csv").is_file():
        print(f"there is no run of the demo in {folder}; make demo makes one", file=sys.stderr)
        return 2
    content = [value for _, name, value in read_metrics(folder / "train" / "metrics.csv") if name == "content_loss"]
    tenth = max(len(content) // 10, 1)
    first, last = mean(content[:tenth]), mean(content[-tenth:])
    measured = {name: value for _, name, value in read_metrics(folder / "upscale" / "metrics.csv")}
    bicubic, sr = measured["bicubic_psnr_y"], measured["sr_psnr_y"]
    print()
    print(f"content loss   {first:.4g} in the first tenth of {len(content)} steps, {last:.4g} in the last")
    print(f"PSNR (Y)       {sr:.2f} dB, bicubic {bicubic:.2f} dB")
    print(f"upscaled       {folder / 'upscale' / 'upscaled.png'}")
    print(f"side by side   {folder / 'upscale' / 'comparison.png'}")
    print(f"while training {folder / 'train' / 'previews'}")
    print(f"generator      {folder / 'train' / 'generator.safetensors'}")
    if last < first and sr >= bicubic:
        return 0
    print("the demo did not come out as it should: the loss must fall, and the PSNR not be below bicubic's")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
