"""Upscale a picture as it is: with its alpha, depth, profile, EXIF and resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sr_nodes.inference import Precision, Prepared, prepared
from sr_nodes.modules import CPU
from sr_nodes.picture_encoding import by_rows, encode, fitted
from sr_nodes.picture_files import WRITTEN, Picture, read_whole
from sr_nodes.picture_jobs import write_bytes
from sr_nodes.png import prompt_of, run_graph
from sr_nodes.tiles import enlarge
from sr_nodes.types import Generator
from sr_nodes.upscalers import BEST, find
from sr_pipeline.node import node
from sr_pipeline.paths import inside, resolve
from sr_pipeline.precision import is_fast_in_bf16
from sr_pipeline.sockets import SILENT, Device, InputPath, OutputName, Report, Reporter, RunDir

Tile = Annotated[int, Field(ge=1)] | Literal["auto"] | None
Overlap = Annotated[int, Field(ge=0)] | Literal["exact"]
Batch = Annotated[int, Field(ge=0)]
Quality = Annotated[int, Field(ge=1, le=100)] | None
Megapixels = Annotated[int, Field(ge=1)]


@node(category="generator")
def find_upscaler(
    path: InputPath = BEST, precision: Precision = "fp32", device: Device = CPU, report: Report = SILENT
) -> Generator:
    """A generator by the name of weights that ship, or from a file, made ready to enlarge pictures alone.

    Args:
        path: the name of shipped weights, a file that load_generator or load_upscaler reads, bicubic or nearest (x4).
        precision: of the arithmetic; bf16 is faster where the device has it, on others slower, and differs from fp32
            by a level or two of 255 (55 dB); auto takes it where it is faster.

    Raises:
        ValueError: there is no such file, and its text names the ways to get one; or no network is known for it.
    """
    if precision == "bf16" and not is_fast_in_bf16(device):
        report.warning(f"this {device.type} has no units for bf16, and is slower in it than in fp32")
    return prepared(find(path, device), precision, device)


@node(category="images")
def load_picture(path: InputPath, max_megapixels: Megapixels = 150, report: Report = SILENT) -> Picture:
    """One picture file as it is: 8 or 16 bits, gray or RGB, alpha, colour profile, EXIF and resolution.

    Args:
        path: the file, sr_nodes:NAME for one that travels with the pack, or - for standard input.
        max_megapixels: refuse larger pictures, lest a small file fill the memory.

    Raises:
        UnreadablePicture: it is missing, empty, no picture, truncated, animated, of several pages or too large.
    """
    picture = read_whole(resolve(path), max_megapixels)
    warn(picture, path, report)
    return replace(picture, notes=())


@node(category="images")
def upscale_picture(
    generator: Generator,
    picture: Picture,
    tile: Tile = "auto",
    overlap: Overlap = "exact",
    batch: Batch = 0,
    report: Report = SILENT,
) -> Picture:
    """Enlarge a picture by a generator, in tiles: [C, H, W] to [C, scale * H, scale * W] of the same depth.

    Computed in the picture's own colour space. Gray is given to the generator as three equal channels, and their mean
    taken; so is alpha, unless it is one value everywhere. Colours below full transparency, which nobody has seen, are
    filled from around them before, so that they leave no fringe.

    Args:
        generator: the network.
        picture: what to enlarge.
        tile: side of a tile's core, in pixels of the picture; auto is by the free memory, null is the whole picture.
        overlap: pixels around a tile that the network is shown too; exact is as many as can matter.
        batch: tiles at once; 0 is one on a CPU, and on a GPU as many as keep it busy and fit into the free memory.
    """
    ready = generator if isinstance(generator, Prepared) else prepared(generator)

    def large(pixels: Tensor) -> Tensor:
        return enlarge(ready, pixels, tile=tile, overlap=overlap, batch=batch, precision=ready.precision, report=report)

    alpha = None if picture.alpha is None else _enlarged_gray(picture.alpha, generator.scale, large)
    pixels = picture.pixels if picture.alpha is None else _filled(picture.pixels, picture.alpha)
    if len(pixels) == 1:
        return replace(picture, pixels=_enlarged_gray(pixels, generator.scale, large), alpha=alpha)
    return replace(picture, pixels=large(pixels), alpha=alpha)


def _enlarged_gray(gray: Tensor, scale: int, large: Callable[[Tensor], Tensor]) -> Tensor:
    first = gray[0, 0, 0]
    if bool((gray == first).all()):
        return first.expand(1, scale * gray.shape[1], scale * gray.shape[2]).clone()
    return by_rows(_mean, large(gray.expand(3, -1, -1).contiguous()))


def _mean(levels: Tensor) -> Tensor:
    """Of three channels, rounded."""
    total = levels.to(torch.int32).sum(dim=0, keepdim=True)
    return total.add_(1).div_(3, rounding_mode="floor").to(levels.dtype)


def _filled(pixels: Tensor, alpha: Tensor) -> Tensor:
    """Fully transparent pixels in the mean colour of the nearest visible ones: of 2x2 blocks, of 4x4 and so on."""
    clear = alpha == 0
    if not bool(clear.any()) or bool(clear.all()):
        return pixels
    levels = [(pixels.float() * ~clear, (~clear).float())]
    while max(levels[-1][1].shape) > 1:
        levels.append(tuple(_halved(part) for part in levels[-1]))  # type: ignore[arg-type]
    colour = levels[-1][0] / levels[-1][1]
    for total, weight in reversed(levels[:-1]):
        coarse = colour.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, : weight.shape[1], : weight.shape[2]]
        colour = torch.where(weight > 0, total / weight.clamp(min=1e-9), coarse)
    return torch.where(clear, colour.round().to(torch.int32), pixels.to(torch.int32)).to(pixels.dtype)


def _halved(part: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False)


@node(category="images", output=True)
def save_picture(
    picture: Picture,
    filename: OutputName = "upscaled.png",
    quality: Quality = None,
    metadata: bool = True,
    run_dir: RunDir | None = None,
    report: Report = SILENT,
) -> None:
    """Write a picture to the run's folder, with its alpha, depth, profile, EXIF and resolution, in the suffix's format.

    A PNG carries the run's graph as its text ``prompt``, as ComfyUI writes it: ``sr-pipeline run picture.png`` repeats
    it. Formats as in ``upscale_file``.

    Args:
        picture: what to write.
        filename: a path in the run's folder, ending in .png, .jpg, .webp, .tif, .bmp or .avif.
        quality: of JPEG (95 where it is left out), WebP (95) and AVIF (85).
        metadata: false leaves out the graph, EXIF and XMP; profile and resolution stay, because they are its look.

    Raises:
        ValueError: another suffix, a path that leads out of the run's folder, or more pixels than the format holds.
    """
    path = inside(run_dir or Path(), filename)
    kind = WRITTEN.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{filename!r} has the suffix {path.suffix!r}; write one of {' '.join(WRITTEN)}")
    fit = fitted(picture, kind)
    warn(fit, filename, report)
    graph = run_graph(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode(fit, kind, quality, metadata, prompt_of(graph)))
    report.image(path)


def warn(picture: Picture, name: str, report: Reporter) -> None:
    for note in picture.notes:
        report.warning(f"{name}: {note}")
