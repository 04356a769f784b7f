"""The commands of this pack, for the entry point ``sr_pipeline.commands``. Imports no torch."""

from __future__ import annotations

from itertools import permutations

from sr_pipeline.command import Command, Flag

COMMANDS = (
    Command(
        name="evaluate",
        graph="evaluate",
        help="Measure a model on test sets: PSNR and SSIM beside the paper's, a table, CSV, JSON and a picture report.",
        flags=(
            Flag(
                "--model",
                ("model.model", "report.model"),
                "A name that ships, a weights file, bicubic or nearest.",
                required=True,
            ),
            Flag("--testset", ("pictures.folders",), "Folders of LR/HR pairs, or of HR.", required=True, multiple=True),
            Flag(
                "--scale",
                (
                    *("model.scale", "pictures.scale", "report.scale"),
                    *("pictures.border", "report.border"),  # as the papers cut it
                    *("psnr_y.border", "ssim_y.border", "psnr_rgb.border", "further.border"),
                ),
                "Of the model and the pairs, and the border that is cut: 4.",
                number=True,
            ),
            Flag(
                "--also",
                ("also.names",),
                "Further figures. LPIPS fetches AlexNet's weights (233 MB) at its first use.",
                words={",".join(some): list(some) for n in (1, 2) for some in permutations(("ms_ssim", "lpips"), n)},
            ),
        ),
        result="report",
        text="table",
    ),
    Command(
        name="upscale",
        graph="upscale_folder",
        help="Enlarge pictures: a file, several, a folder (with the folders in it), a pattern, or - for a pipe.",
        flags=(
            Flag("in", ("pictures.inputs",), "Pictures, folders, patterns, or -.", required=True, multiple=True),
            Flag("out", ("pictures.output",), "A folder, such as large/; for one picture a file, or -.", required=True),
            Flag("--model", ("generator.path",), "A name that ships, or a weights file; the best that ships."),
            Flag(
                "--tile",
                ("sr.tile",),
                "Side of a tile in pixels of the picture; auto is by the free memory.",
                words={"auto": "auto", "none": None},
                number=True,
            ),
            Flag(
                "--overlap",
                ("sr.overlap",),
                "Pixels around a tile that the network sees too; exact leaves no seam.",
                words={"exact": "exact"},
                number=True,
            ),
            Flag("--batch", ("sr.batch",), "Tiles at once; 0 is 1 on a CPU, and what keeps a GPU busy.", number=True),
            Flag(
                "--precision",
                ("generator.precision",),
                "Of the arithmetic; bf16 is faster where the device has it.",
                words={"fp32": "fp32", "bf16": "bf16", "auto": "auto"},
            ),
            Flag(
                "--format",
                ("pictures.format",),
                "Of the results; same as each source, or by the name of OUT.",
                words={n: n for n in ("same", "png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "avif")},
            ),
            Flag("--quality", ("sr.quality",), "1 to 100: JPEG 95, WebP 95, AVIF 85.", number=True),
            Flag("--suffix", ("pictures.suffix",), "Put to each name: _x4 makes cat_x4.png of cat.png."),
            Flag("--max-megapixels", ("pictures.max_megapixels",), "Refuse larger pictures: 150.", number=True),
            Flag(
                "--share",
                ("pictures.share",),
                "K/N: of the files, the K-th of N shares. Under torchrun or srun, each process's own.",
            ),
            Flag("--overwrite", ("pictures.overwrite",), "Make results anew that are there.", switch=True),
            Flag(
                "--no-metadata",
                ("sr.metadata",),
                "Leave out EXIF and XMP, and the graph that a PNG carries.",
                switch=True,
                constant=False,
            ),
        ),
        result="outcomes",
        text="summary",
        failures="failed",
        pipe="out",
        temporary_with="out",
        sets={"summary.strict": False},
        stopped="{done} of {total} files are done; the same command, without --overwrite, goes on with the rest",
        apart=True,
    ),
    Command(
        name="shards",
        graph="shards",
        help="Pack folders of pictures into tar shards (webdataset's format), to train on more than fits the memory.",
        flags=(
            Flag("folder", ("parts.folders",), "Folders of pictures.", required=True, multiple=True),
            Flag("--output", ("parts.output",), "The folder of the shards.", required=True),
            Flag("--shard-mb", ("parts.shard_mb",), "MB of pictures in a shard, at most: 256.", number=True),
            Flag("--shard-count", ("parts.shard_count",), "Pictures in a shard, at most: 10000.", number=True),
            Flag("--min-size", ("parts.min_size",), "Leave out pictures of a side below so many pixels.", number=True),
        ),
        result="made",
        text="made",
        temporary_with="output",
        stopped="{done} of {total} shards are done; the same command goes on with the rest",
    ),
    Command(
        name="export",
        graph="export",
        help="Write a model for other programs: ONNX or TorchScript, compared with the model, or safetensors.",
        flags=(
            Flag("model", ("generator.path",), "A name that ships, or a weights file.", required=True),
            Flag("out", ("export.out",), "The file; generator.onnx, .pt or .safetensors in the run's folder."),
            Flag(
                "--to",
                ("export.to",),
                "The kind of file.",
                required=True,
                words={name: name for name in ("onnx", "torchscript", "safetensors")},
            ),
        ),
        result="export",
        text="export",
        temporary_with="out",
    ),
)
