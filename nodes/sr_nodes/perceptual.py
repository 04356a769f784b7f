"""A perceptual loss over several of VGG-19's feature maps, before or after their ReLUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.features import Layer, VGG19Features, relu_index, stored_weights
from sr_nodes.losses import Reduction, Weight, check_same_shape
from sr_nodes.modules import CPU
from sr_nodes.types import Image
from sr_pipeline.node import node
from sr_pipeline.sockets import Device, InputPath, Loss

_REAL_ESRGAN: tuple[Layer, ...] = ("12", "22", "34", "44", "54")


class FeaturePyramid(nn.Module):
    """An RGB image in [0, 1] to a tuple of feature maps, each [B, C, h, w]."""


class VGG19Layers(FeaturePyramid):
    """Several of VGG-19's feature maps in one pass, in the order of ``layers``; see the node ``vgg19_layers``."""

    def __init__(
        self,
        layers: Sequence[Layer],
        before_relu: bool,
        weights: Mapping[str, Tensor],
        where: str = "the given mapping",
    ) -> None:
        super().__init__()
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(f"layers is {list(layers)}; name at least one, and each once")
        self.net = VGG19Features(max(layers), weights, where)
        self.kept = [relu_index(layer) - before_relu for layer in layers]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.net.normalised(image)
        found = {}
        for index, module in enumerate(self.net.features[: max(self.kept) + 1]):
            x = module(x)
            if index in self.kept:
                found[index] = x
        return tuple(found[index] for index in self.kept)


@node(category="features")
def vgg19_layers(
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] = _REAL_ESRGAN,
    before_relu: bool = True,
    weights: InputPath = "sr_nodes:weights/vgg19_features_8bit.safetensors",
    device: Device = CPU,
) -> FeaturePyramid:
    """Several feature maps of VGG-19 at once, for ``perceptual_loss``; each is named "ij" as in ``vgg19``.

    "ij" is of the j-th convolution before the i-th max-pool: before its ReLU, what public codes call conv5_4 for "54"
    (ESRGAN, Wang et al., ECCVW 2018, section 3.3); or after it, their relu5_4. As given, Real-ESRGAN's five (Wang et
    al., ICCVW 2021, section 4.1). Nothing trains it. Raises a ValueError for a layer named twice, and as ``vgg19``.

    Args:
        layers: which feature maps, each once; "54" is conv5_4.
        before_relu: the convolutions' outputs themselves, negative values and all.
        weights: as in vgg19.
    """
    return VGG19Layers(layers, before_relu, stored_weights(weights), weights).to(device)


@node(category="loss")
def perceptual_loss(
    features: FeaturePyramid,
    sr: Image,
    hr: Image,
    layer_weights: Annotated[tuple[Weight, ...], Field(min_length=1)] = (0.1, 0.1, 1.0, 1.0, 1.0),
    criterion: Literal["l1", "mse"] = "l1",
    reduction: Reduction = "mean",
    weight: Weight = 1.0,
) -> Loss:
    """Perceptual loss over several feature maps of two images, each RGB in [0, 1], [B, 3, H, W].

    weight * the sum over the maps i of layer_weights[i] * mean over B, C, h, w of |phi_i(sr) - phi_i(hr)|, or of its
    square: ESRGAN (Wang et al., ECCVW 2018, section 3.3) with conv5_4 before ReLU and weight 1; Real-ESRGAN (ICCVW
    2021, section 4.1) as given. Features that differ by 0.1 everywhere give 0.1, or 0.01, times the sum of
    layer_weights; they are not divided by 12.75, unlike ``vgg_loss``'s. No gradient goes to ``hr``. Raises a ValueError
    for images of different shapes, and where there are not as many weights as feature maps.

    Args:
        features: the feature maps, from vgg19_layers.
        sr: the generator's image.
        hr: the image it should be.
        layer_weights: a factor for each feature map, in their order.
        criterion: absolute or squared differences.
        reduction: over channels, the mean, as public codes have it, or the sum; over the rest it is always the mean.
        weight: factor of the loss.
    """
    check_same_shape(sr, hr)
    with torch.no_grad():
        wanted = features(hr)
    found = features(sr)
    if len(found) != len(layer_weights):
        raise ValueError(
            f"there are {len(found)} feature maps and {len(layer_weights)} layer_weights; give one for each map"
        )
    distance = F.l1_loss if criterion == "l1" else F.mse_loss
    total = sr.new_zeros(())
    for share, ours, theirs in zip(layer_weights, found, wanted, strict=True):
        total = total + share * (ours.shape[1] if reduction == "sum" else 1) * distance(ours, theirs)
    return weight * total
