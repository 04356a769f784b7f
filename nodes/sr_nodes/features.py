"""VGG-19's feature maps, and the content loss on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.fused import frozen
from sr_nodes.losses import Reduction, Weight, check_same_shape
from sr_nodes.modules import CPU, check_fits
from sr_nodes.types import FeatureNet, Image
from sr_nodes.weight_files import UNREADABLE, read_tensors
from sr_pipeline.node import node
from sr_pipeline.paths import resolve
from sr_pipeline.sockets import Device, InputPath, Loss
from sr_pipeline.streams import ready_since

Layer = Literal[
    "11", "12", "21", "22", "31", "32", "33", "34", "41", "42", "43", "44", "51", "52", "53", "54"
]  # fmt: skip

_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and convolutions before each max-pool."""
_RESCALE = 12.75
"""The paper divides feature maps by it, so that their squared error is of the size of an MSE's."""


class VGG19Features(FeatureNet):
    """VGG-19 (Simonyan and Zisserman, 2014) up to the ReLU after the j-th convolution before the i-th max-pool.

    RGB [B, 3, H, W] in [0, 1], normalised inside by ImageNet's mean and deviation, to [B, C, h, w], with C = 64, 128,
    256, 512, 512 for i = 1 to 5 and h, w halved i - 1 times, rounded down. Nothing trains it: always in eval mode,
    and no parameter asks for a gradient; gradients pass through to the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layer: Layer, weights: Mapping[str, Tensor], where: str = "the given mapping") -> None:
        """``weights`` are by torchvision's names, or the bundled file's; those of later layers are left alone."""
        super().__init__()
        self.least_side = 2 ** (int(layer[0]) - 1)
        with torch.device("meta"):  # the weights are given, so that none need be drawn
            self.features = nn.Sequential(*_layers(layer))
        needed = self.state_dict()
        found = _decoded(weights, needed, where)
        check_fits(needed, found, where)
        self.load_state_dict(found, assign=True)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    def normalised(self, image: Tensor) -> Tensor:
        """The first convolution's input. Raises a ValueError for an image too small for the pools."""
        if min(image.shape[-2:]) < self.least_side:
            raise ValueError(
                f"the image is {image.shape[-2]} x {image.shape[-1]}, and this layer needs {self.least_side} pixels a "
                "side; use larger crops or an earlier layer"
            )
        return (image - self.mean) / self.std

    def forward(self, image: Tensor) -> Tensor:
        return frozen(self.normalised(image), self.features)


def relu_index(layer: Layer) -> int:
    """Where in torchvision's ``features`` the ReLU of this layer is; its convolution is just before.

    >>> relu_index("54"), relu_index("22")
    (35, 8)
    """
    pools, convolutions = int(layer[0]) - 1, int(layer[1])
    return pools + 2 * (sum(full for _, full in _BLOCKS[:pools]) + convolutions) - 1


def _layers(layer: Layer) -> list[nn.Module]:
    block, convolutions = int(layer[0]), int(layer[1])
    layers: list[nn.Module] = []
    inputs = 3
    for i, (channels, full) in enumerate(_BLOCKS[:block], start=1):
        for _ in range(full if i < block else convolutions):
            # Not in place: it would not be faster, and it would overwrite what somebody may have kept.
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
            inputs = channels
        if i < block:
            layers.append(nn.MaxPool2d(2))
    return layers


@node(category="features")
def vgg19(
    layer: Layer = "54", weights: InputPath = "sr_nodes:weights/vgg19_features_8bit.safetensors", device: Device = CPU
) -> FeatureNet:
    """VGG-19's feature map "ij": after the ReLU of the j-th convolution before the i-th max-pool (SRGAN, 2.2.1).

    "54" is relu5_4, 512 channels, torchvision's features[:36]; "22" is relu2_2. The bundled weights are Oxford's own
    in 8 bits, not torchvision's training, so values differ from public codes'. Raises a ValueError for a file that is
    missing, damaged, or without the convolutions that the layer needs.

    Args:
        layer: which feature map.
        weights: the bundled file, "torchvision" to fetch torchvision's, or a .safetensors or .pth file in its layout.
    """
    return VGG19Features(layer, stored_weights(weights), weights).to(device)


def stored_weights(weights: str) -> Mapping[str, Tensor]:
    """The tensors that the ``weights`` of a node mean: torchvision's, or a file's."""
    return _fetch() if weights == "torchvision" else read_tensors(resolve(weights))[0]


def _fetch() -> Mapping[str, Tensor]:
    from torchvision.models import VGG19_Weights  # a second to import, and only for this

    try:
        tensors: Mapping[str, Tensor] = VGG19_Weights.IMAGENET1K_V1.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except UNREADABLE as error:
        url = VGG19_Weights.IMAGENET1K_V1.url
        raise ValueError(f"{url} cannot be fetched ({error}); use the bundled weights, or give the file") from error
    return tensors


def _decoded(stored: Mapping[str, Tensor], names: Iterable[str], where: str) -> dict[str, Tensor]:
    """The named tensors as float32: as stored, or looked up in an 8-bit codebook (``N.table[N.codes]``)."""
    found = {}
    for name in names:
        stem = name.removesuffix(".weight")
        if name in stored:
            found[name] = stored[name].float()
        elif f"{stem}.codes" in stored and f"{stem}.table" in stored:
            table, codes = stored[f"{stem}.table"], stored[f"{stem}.codes"]
            if table.shape != (256,) or codes.dtype != torch.uint8:
                raise ValueError(f"{stem} in {where} is no table of 256 with uint8 codes; use the bundled file")
            found[name] = table.float()[codes.int()]
    return found


@node(category="loss")
def vgg_loss(vgg: FeatureNet, sr: Image, hr: Image, reduction: Reduction = "sum", weight: Weight = 1.0) -> Loss:
    """Content loss on feature maps: their squared difference, each RGB image in [0, 1], [B, 3, H, W].

    weight / (w h) * sum over C, h, w of ((phi(sr) - phi(hr)) / 12.75)^2, mean over the batch: SRGAN eq. 5, which does
    not divide by the channels; "mean" does, as public codes do, and is C (512 for VGG54) times smaller. Features that
    differ by 1 everywhere give 0.00615 with "mean", the paper's "approximately 0.006". No gradient goes to ``hr``.
    Raises a ValueError for images of different shapes.

    Args:
        vgg: the feature network.
        sr: the generator's image.
        hr: the image it should be.
        reduction: over channels, the paper's sum or the mean.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    found, wanted = _features(vgg, sr, hr)
    channels = found.shape[1] if reduction == "sum" else 1
    return weight * channels / _RESCALE**2 * F.mse_loss(found, wanted)


def _features(vgg: FeatureNet, sr: Image, hr: Image) -> tuple[Tensor, Tensor]:
    """Of both images, those of ``hr`` without a gradient.

    On CUDA the two passes run beside each other: alone, the late layers (6 x 6 pixels of a crop) leave most of the
    device idle. In one batch, ``hr`` would get a backward pass too. In a recorded step ``hr`` is there first, so its
    pass begins then.
    """
    fixed = torch.no_grad()(vgg)
    if not sr.is_cuda:
        return vgg(sr), fixed(hr)
    here, beside = torch.cuda.current_stream(sr.device), _stream(sr.device)
    if (there := ready_since(hr)) is not None:
        beside.wait_event(there)
    else:
        beside.wait_stream(here)
    with torch.cuda.stream(beside):
        wanted = fixed(hr)
    found = vgg(sr)
    here.wait_stream(beside)
    wanted.record_stream(here)
    return found, wanted


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
