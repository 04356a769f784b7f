"""How public codes name the tensors of their networks. The names are theirs; no code of theirs is here. No nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    """How a public code names a network's tensors: a regular expression each, and our name for what it matches.

    Our SRResNet counts its layers, so its names here are ``residual.N``, ``middle`` and ``up.N`` until they are
    counted. ``LAST`` stands for the greatest number of a ``block``, ``MIDDLE`` for the one before.
    """

    name: str
    architecture: str
    rules: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)
    """What no shape tells, as that code has it."""
    leaky: float | None = None
    """The slope of its LeakyReLU: it has no PReLU, and no bias in its convolutions."""

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """Each name that this layout knows, to ours."""
        names = list(names)
        last = max((int(n) for name in names for n in re.findall(r"^block(\d+)\.", name)), default=0)
        rules = {k.replace("LAST", str(last)).replace("MIDDLE", str(last - 1)): v for k, v in self.rules.items()}
        found = ((name, pattern, ours) for name in names for pattern, ours in rules.items())
        return {name: m.expand(ours) for name, pattern, ours in found if (m := re.fullmatch(pattern, name))}


_ANY = r"(\w+)"
LAYOUTS = (
    Layout("sr_pipeline's SRResNet", "srresnet", {r"((?:head|blocks|upsample)\.\d+\..+|tail\.\w+)": r"\1"}),
    Layout(
        "twtygqyy/pytorch-SRResNet", "srresnet",
        {
            rf"conv_input\.{_ANY}": r"head.0.\1",
            rf"residual\.(\d+)\.conv1\.{_ANY}": r"residual.\1.0.\2",
            rf"residual\.(\d+)\.(?:bn|in)1\.{_ANY}": r"residual.\1.1.\2",
            rf"residual\.(\d+)\.conv2\.{_ANY}": r"residual.\1.3.\2",
            rf"residual\.(\d+)\.(?:bn|in)2\.{_ANY}": r"residual.\1.4.\2",
            rf"conv_mid\.{_ANY}": r"middle.0.\1",
            rf"(?:bn|in)_mid\.{_ANY}": r"middle.1.\1",
            rf"upscale\dx\.(\d+)\.{_ANY}": r"up.\1.conv.\2",
            rf"conv_output\.{_ANY}": r"tail.\1",
        },
        {"value_range": "0..1"}, leaky=0.2,
    ),
    Layout(
        "leftthomas/SRGAN", "srresnet",
        {
            rf"block1\.([01])\.{_ANY}": r"head.\1.\2",
            rf"block(\d+)\.conv1\.{_ANY}": r"residual.\1.0.\2",
            rf"block(\d+)\.bn1\.{_ANY}": r"residual.\1.1.\2",
            r"block(\d+)\.prelu\.weight": r"residual.\1.2.weight",
            rf"block(\d+)\.conv2\.{_ANY}": r"residual.\1.3.\2",
            rf"block(\d+)\.bn2\.{_ANY}": r"residual.\1.4.\2",
            rf"blockMIDDLE\.([01])\.{_ANY}": r"middle.\1.\2",
            rf"blockLAST\.(\d+)\.(conv|prelu)\.{_ANY}": r"up.\1.\2.\3",
            rf"blockLAST\.\d+\.{_ANY}": r"tail.\1",
        },
        {"output": "tanh"},
    ),
    Layout(
        "sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution", "srresnet",
        {
            rf"conv_block1\.conv_block\.([01])\.{_ANY}": r"head.\1.\2",
            rf"residual_blocks\.(\d+)\.conv_block1\.conv_block\.([012])\.{_ANY}": r"residual.\1.\2.\3",
            rf"residual_blocks\.(\d+)\.conv_block2\.conv_block\.0\.{_ANY}": r"residual.\1.3.\2",
            rf"residual_blocks\.(\d+)\.conv_block2\.conv_block\.1\.{_ANY}": r"residual.\1.4.\2",
            rf"conv_block2\.conv_block\.([01])\.{_ANY}": r"middle.\1.\2",
            rf"subpixel_convolutional_blocks\.(\d+)\.(conv|prelu)\.{_ANY}": r"up.\1.\2.\3",
            rf"conv_block3\.conv_block\.0\.{_ANY}": r"tail.\1",
        },
        {"output": "tanh", "input_norm": "imagenet"},
    ),
    Layout(
        "Lornatang/SRGAN-PyTorch", "srresnet",
        {
            rf"conv(?:_block)?1\.([01])\.{_ANY}": r"head.\1.\2",
            rf"trunk\.(\d+)\.rcb\.([0-4])\.{_ANY}": r"residual.\1.\2.\3",
            rf"conv(?:_block)?2\.([01])\.{_ANY}": r"middle.\1.\2",
            rf"upsampling\.(\d+)\.upsample_block\.0\.{_ANY}": r"up.\1.conv.\2",
            r"upsampling\.(\d+)\.upsample_block\.2\.weight": r"up.\1.prelu.weight",
            rf"conv(?:_block)?3\.{_ANY}": r"tail.\1",
        },
        {"value_range": "0..1"},
    ),
    Layout(
        "BasicSR's MSRResNet", "msrresnet",
        {
            r"((?:conv_first|conv_last|upconv[12])\.\w+)": r"\1",
            r"(?:body|recon_trunk)\.(\d+\.conv[12]\.\w+)": r"body.\1",  # the latter is KAIR's, as HRconv
            rf"(?:conv_hr|HRconv)\.{_ANY}": r"conv_hr.\1",
        },
    ),
    Layout(
        "BasicSR's RRDBNet (Real-ESRGAN)", "rrdbnet",
        {r"((?:conv_(?:first|body|up1|up2|hr|last)|body\.\d+\.rdb[123]\.conv[1-5])\.\w+)": r"\1"},
    ),
    Layout(
        "xinntao/ESRGAN's RRDBNet", "rrdbnet",
        {
            rf"(conv_first|conv_last)\.{_ANY}": r"\1.\2",
            rf"RRDB_trunk\.(\d+)\.RDB([123])\.(conv[1-5])\.{_ANY}": r"body.\1.rdb\2.\3.\4",
            rf"trunk_conv\.{_ANY}": r"conv_body.\1",
            rf"upconv([12])\.{_ANY}": r"conv_up\1.\2",
            rf"HRconv\.{_ANY}": r"conv_hr.\1",
        },
    ),
    Layout(
        "ESRGAN's RRDBNet of 2018, x4", "rrdbnet",
        {
            rf"model\.0\.{_ANY}": r"conv_first.\1",
            rf"model\.1\.sub\.(\d+)\.RDB([123])\.(conv[1-5])\.0\.{_ANY}": r"body.\1.rdb\2.\3.\4",
            rf"model\.1\.sub\.\d+\.{_ANY}": r"conv_body.\1",
            rf"model\.3\.{_ANY}": r"conv_up1.\1",
            rf"model\.6\.{_ANY}": r"conv_up2.\1",
            rf"model\.8\.{_ANY}": r"conv_hr.\1",
            rf"model\.10\.{_ANY}": r"conv_last.\1",
        },
    ),
)  # fmt: skip
