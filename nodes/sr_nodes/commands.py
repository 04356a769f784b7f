"""The commands of this pack, for the entry point ``sr_pipeline.commands``. Imports no torch."""

from __future__ import annotations

from sr_pipeline.command import Command, Flag

COMMANDS = (
    Command(
        name="evaluate",
        graph="evaluate",
        help="Measure a model on test sets: PSNR and SSIM beside the paper's, a table, CSV, JSON and a picture report.",
        flags=(
            Flag("--model", ("model.model", "report.model"), "A weights file, bicubic or nearest.", required=True),
            Flag("--testset", ("pictures.folders",), "Folders of LR/HR pairs, or of HR.", required=True, multiple=True),
        ),
        result="report",
        text="table",
    ),
)
