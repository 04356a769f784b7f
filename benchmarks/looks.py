"""How does SR look, where PSNR does not tell? Models beside each other on pictures, by measures that see it.

    python benchmarks/looks.py FOLDER... [--model srresnet_x4 --model srgan_x4] [--sheet FILE] [--json] [--out FOLDER]

Each HR picture is made smaller by bicubic and enlarged by each model. ``psnr_y``: dB, mean over the pictures, as
``evaluate``. ``vgg54``: mean squared difference of VGG-19's last feature maps (Ledig et al., 2017, section 2.2.1), as
the node ``vgg_loss`` with the mean. ``gradient``: mean absolute difference of neighbours in SR by that in HR: 1 is as
sharp as HR. ``colour``: the largest difference of a picture's mean red, green or blue from HR's, in levels of 255.
``grid``: the network enlarges by 4, so a checkerboard repeats each 4 pixels; the picture less its mean over 5 x 5 is
averaged over the pixels of each of the 16 phases, and this is the deviation of the 16 means, in levels. ``--sheet``
writes a picture of crops: LR, each model, HR.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from measure import arguments, device_of, machine, publish, tell
from sr_nodes.degradation import bicubic
from sr_nodes.features import vgg19, vgg_loss
from sr_nodes.metrics import psnr
from sr_nodes.picture_encoding import encode
from sr_nodes.picture_files import Picture
from sr_nodes.pictures import find_pictures, read_picture, to_image
from sr_nodes.tiles import enlarge
from sr_nodes.types import FeatureNet
from sr_nodes.upscale import find_upscaler

SCALE = 4
CROP = 128


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--model", action="append", help="srresnet_x4 and srgan_x4 by default")
    parser.add_argument("--sheet", type=Path, help="write crops side by side")
    options = parser.parse_args()
    device = device_of(options)
    names = options.model or ["srresnet_x4", "srgan_x4"]
    networks, vgg = {name: find_upscaler(name, device=device) for name in names}, vgg19(layer="54")
    found: dict[str, Any] = {}
    rows = []
    for folder in options.folders:
        each: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for path in [p for p in find_pictures(folder) if not p.stem.endswith("_LR")]:
            hr = whole(to_image(read_picture(path)[None]))
            lr = bicubic(hr, SCALE)
            made = {name: enlarge(network, lr[0])[None] for name, network in networks.items()}
            for name, sr in made.items():
                each[name].append(measured(sr, hr, vgg))
            rows.append(beside(F.interpolate(lr, scale_factor=SCALE), *made.values(), hr))
            tell(f"{path.name}: " + "; ".join(f"{name} {each[name][-1]}" for name in names))
        found[folder.name] = {name: summary(values) for name, values in each.items()}
    if options.sheet:
        sheet = torch.cat(rows, 1)
        options.sheet.write_bytes(
            encode(Picture((255 * sheet).round().to(torch.uint8)), options.sheet.suffix[1:].upper())
        )
    publish("looks", found | {"machine": machine(device)}, options)
    return 0


def whole(hr: Tensor) -> Tensor:
    height, width = (side // SCALE * SCALE for side in hr.shape[-2:])
    return hr[..., :height, :width]


def measured(sr: Tensor, hr: Tensor, vgg: FeatureNet) -> dict[str, float]:
    sr = sr.clamp(0, 1)
    return {
        "psnr_y": float(psnr(sr, hr, border=SCALE)),
        "vgg54": float(vgg_loss(vgg, sr, hr, reduction="mean")),
        "gradient": gradient(sr) / gradient(hr),
        "colour": float(255 * (sr - hr).mean((0, 2, 3)).abs().max()),
        "grid": grid(sr),
        "grid_of_hr": grid(hr),
    }


def gradient(image: Tensor) -> float:
    return float(image.diff(dim=-1).abs().mean() + image.diff(dim=-2).abs().mean())


def grid(image: Tensor) -> float:
    """How much a pattern that repeats each 4 pixels stands out, in levels of 255."""
    gray = image.mean(1, keepdim=True)
    fine = gray - F.avg_pool2d(gray, 5, 1, 2, count_include_pad=False)
    height, width = (side // SCALE * SCALE for side in fine.shape[-2:])
    phases = fine[..., :height, :width].reshape(height // SCALE, SCALE, width // SCALE, SCALE)
    return float(255 * phases.mean((0, 2)).std(correction=0))


def beside(*images: Tensor) -> Tensor:
    """A crop of the middle of each, from left to right."""
    top, left = (max(side // 2 - CROP // 2, 0) // SCALE * SCALE for side in images[0].shape[-2:])
    return torch.cat([image[0].clamp(0, 1)[:, top : top + CROP, left : left + CROP] for image in images], 2)


def summary(values: list[dict[str, float]]) -> dict[str, float]:
    """Means over the pictures; of the colour the worst too."""
    means = {key: float(f"{sum(v[key] for v in values) / len(values):.4g}") for key in values[0]}
    return means | {"colour_worst": float(f"{max(v['colour'] for v in values):.4g}")}


if __name__ == "__main__":
    sys.exit(main())
