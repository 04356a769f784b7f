"""A copy of a generator made ready for speed: what training needs is folded away."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sr_nodes.memory import bytes_per_pixel
from sr_nodes.modules import CPU, device_of
from sr_nodes.receptive import Field, receptive_field
from sr_nodes.types import Generator
from sr_pipeline.precision import is_fast_in_bf16

Precision = Literal["auto", "fp32", "bf16"]
EXACT = 64
"""LR pixels: the farthest reach that tiles overlap by."""
_SAME = 1e-4


class Prepared(Generator):
    """A generator that only enlarges: LR [B, 3, H, W] on its device to SR in float32, clamped to [0, 1].

    It is a copy: training the original leaves it as it is. ``precision`` is "fp32" or "bf16", as was decided.
    """

    def __init__(self, generator: Generator, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.architecture, self.scale, self.config = generator.architecture, generator.scale, generator.config
        self.device = device
        self.precision: Literal["fp32", "bf16"] = _decided(precision, device)
        # In a tuple, so that it is no submodule: its weights are not moved or listed.
        self.original = (generator,)
        self.net = _fast(generator, device)
        self.requires_grad_(False).eval()

    @cached_property
    def field(self) -> Field | None:
        """The receptive field if its radius is at most ``EXACT``, computed when a picture is first cut into tiles."""
        return receptive_field(self.original[0], EXACT)

    @cached_property
    def bytes_per_pixel(self) -> float:
        """Memory that a window takes at its peak, for each LR pixel; computed when a tile's size is first chosen."""
        return bytes_per_pixel(self, self.device)

    @torch.inference_mode()
    def forward(self, lr: Tensor) -> Tensor:
        lr = lr.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            sr: Tensor = self.net(lr)
        return sr.float().clamp_(0, 1)


def prepared(generator: Generator, precision: Precision = "fp32", device: torch.device | None = None) -> Prepared:
    """An inference copy of a generator; one that is already so is returned as it is.

    BatchNorm is folded into the convolution before it, PReLU and LeakyReLU overwrite what a convolution made, the
    last convolution makes four pixels at once on a CPU (three channels fill a sixth of its vector units, twelve three
    quarters), and everything is channels_last. fp32 differs from the generator by rounding alone (on CUDA with
    TF32 as torch is set); the folds are checked on a small picture, and left out where they change it.

    bf16 runs convolutions in bfloat16 and the rest in float32. Of the shipped small SRResNet and pictures, the SR then
    differs from fp32's by 55 to 57 dB: a quarter of the values by a level of 255, and none by more than 2. "auto" takes
    it where ``is_fast_in_bf16`` says so.

    Args:
        generator: the network; it is not changed.
        precision: see above.
        device: where the copy lives; the generator's own device if not given.
    """
    if isinstance(generator, Prepared):
        device = device or generator.device  # and not its tensors': cuda is not equal to cuda:0
        if (generator.device, generator.precision) == (device, _decided(precision, device)):
            return generator
        generator = generator.original[0]
    device = device or device_of(generator)
    return Prepared(generator, precision, device)


def _decided(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    if precision != "auto":
        return precision
    return "bf16" if is_fast_in_bf16(device) else "fp32"


def _fast(generator: Generator, device: torch.device) -> Generator:
    """The copy with folds, or without them if they change its SR."""
    plain = copy.deepcopy(generator).to(CPU, torch.float32).eval().requires_grad_(False)
    fast = folded(plain)
    if device.type == "cpu":
        _widen(fast)
    _overwrite(fast)
    # Compared on the CPU: on a CUDA device convolutions may be TF32, which differs by more than a fold does.
    probe = torch.rand(1, 3, 17, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = plain(probe), fast(probe)
    difference, largest = (wanted - found).abs().max(), wanted.abs().max()
    chosen = fast if bool(difference <= _SAME * largest) else plain
    return chosen.to(device).to(memory_format=torch.channels_last)


def folded(generator: Generator) -> Generator:
    """A copy in eval mode, in which BatchNorm after a convolution of the same ``nn.Sequential`` is folded into it."""
    made = copy.deepcopy(generator).eval()
    for parent, first, second in _neighbours(made):
        conv, norm = getattr(parent, first), getattr(parent, second)
        if (
            isinstance(conv, nn.Conv2d)
            and isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
            and norm.running_mean is not None
        ):
            setattr(parent, first, fuse_conv_bn_eval(conv, norm))
            setattr(parent, second, nn.Identity())
    return made


def _neighbours(module: nn.Module) -> Iterator[tuple[nn.Sequential, str, str]]:
    """Every two layers of which the second takes what the first gives, and nothing else does."""
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential):
            names = [name for name, layer in parent.named_children() if not isinstance(layer, nn.Identity)]
            yield from ((parent, first, second) for first, second in pairwise(names))


def _overwrite(net: nn.Module) -> None:
    """Let activations after a convolution or a pixel shuffle overwrite their input: no new memory to fetch."""
    for parent, first, second in _neighbours(net):
        maker, activation = getattr(parent, first), getattr(parent, second)
        if not isinstance(maker, (nn.Conv2d, nn.PixelShuffle)):
            continue
        if isinstance(activation, nn.PReLU) and activation.num_parameters == 1:
            setattr(parent, second, nn.LeakyReLU(activation.weight.item(), inplace=True))
        elif isinstance(activation, (nn.ReLU, nn.LeakyReLU)):
            activation.inplace = True


def _widen(net: nn.Module) -> None:
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and _is_narrow(layer):
                setattr(parent, name, _Widened(layer))


def _is_narrow(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    return (
        conv.out_channels <= 4
        and conv.in_channels >= 16
        and height == width >= 3
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.padding == (height // 2, width // 2)
    )


class _Widened(nn.Module):
    """A convolution to few channels, computed as one of stride 2 to four times as many, and a pixel shuffle.

    Each of four kernels, one larger, holds the given one shifted by (0 or 1, 0 or 1), which is that output pixel's.
    ``weight`` and ``bias`` are the given convolution's, for whom reads them.
    """

    kernels: Tensor
    biases: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        outputs, inputs, height, width = conv.weight.shape
        kernels = conv.weight.new_zeros(outputs, 2, 2, inputs, height + 1, width + 1)
        for i in (0, 1):
            for j in (0, 1):
                kernels[:, i, j, :, i : i + height, j : j + width] = conv.weight.detach()
        self.register_buffer("kernels", kernels.flatten(0, 2))
        self.register_buffer("biases", None if conv.bias is None else conv.bias.detach().repeat_interleave(4))
        self.padding = height // 2

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        even = F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
        made = F.pixel_shuffle(F.conv2d(even, self.kernels, self.biases, stride=2, padding=self.padding), 2)
        return made[..., :height, :width]
