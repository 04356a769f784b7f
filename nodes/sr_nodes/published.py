"""Weights as other programs publish them: told apart by their tensors' names. No nodes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sr_nodes.layouts import LAYOUTS, Layout

_PREFIXES = ("module.", "_orig_mod.", "net_g.", "netG.", "generator.", "net.")


class Weights(NamedTuple):
    """A generator's tensors by our names, and what builds it."""

    tensors: dict[str, Tensor]
    architecture: str
    config: dict[str, Any]


def recognise(tensors: Mapping[str, Tensor], where: str) -> Weights:
    """What network a public state dict is of: its size from the shapes, the rest as its code has it.

    Raises:
        ValueError: the names are of no layout that is known, or a tensor that tells the size is missing or misshapen.
    """
    tensors = _without_prefix(tensors)
    # ESRGAN's names of 2018 begin with `model.` themselves: it is dropped only where more is known without it.
    inside = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    tensors = max(dict(tensors), _without_prefix(inside), key=lambda some: len(_likest(some)[1]))
    names = list(tensors)
    layout, renamed = _likest(names)
    if len(renamed) < len(names) or not names:
        raise ValueError(_unknown(tensors, layout, renamed, where))
    ours = {renamed[name]: tensor for name, tensor in tensors.items()}
    where = f"{where}, in the layout of {layout.name},"
    if len(ours) < len(tensors):
        raise ValueError(f"{where} has two tensors for one place; give a state dict of one network")
    if layout.architecture == "srresnet":
        ours = _counted(ours)
    if layout.leaky is not None:
        ours = {**_without_prelu(ours, layout.leaky), **ours}
    for name in [n for n in ours if n.endswith(".running_mean")]:  # files older than torch 0.4.1 lack this one
        ours.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    config = _CONFIGS[layout.architecture](ours, where)
    return Weights(ours, layout.architecture, {**config, **layout.options})


def _likest(names: Iterable[str]) -> tuple[Layout, dict[str, str]]:
    """The layout that knows the most of these names, and what it calls them."""
    names = list(names)
    found = [(layout, layout.renamed(names)) for layout in LAYOUTS]
    return max(found, key=lambda pair: len(pair[1]))


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without what wrappers put before them; where only some have it, these are the generator's."""
    for prefix in _PREFIXES:
        inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if inside:
            return _without_prefix(inside)
    return dict(tensors)


def _unknown(tensors: Mapping[str, Tensor], layout: Layout, renamed: Mapping[str, str], where: str) -> str:
    shown = ", ".join(f"{name} {list(t.shape)}" for name, t in list(tensors.items())[:4])
    near = ""
    if renamed:
        strange = next(name for name in tensors if name not in renamed)
        near = f"; it is most like {layout.name}, which has no {strange}"
    known = "; ".join(candidate.name for candidate in LAYOUTS)
    return (
        f"{where} holds {len(tensors)} tensors ({shown or 'none'}), in no layout that load_generator knows{near}; "
        f"its layouts are {known}; load_upscaler knows what spandrel does"
    )


def _counted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names by layer instead of by role, each role's numbers made to follow each other from 0."""
    blocks, ups = _order(tensors, r"residual\.(\d+)\."), _order(tensors, r"up\.(\d+)\.")
    first = {"conv": 0, "prelu": 2}

    def name(role: str) -> str:
        match role.split("."):
            case "residual", n, *rest:
                return ".".join(("blocks", str(blocks[int(n)]), "body", *rest))
            case "middle", layer, *rest:
                return ".".join(("blocks", str(len(blocks) + int(layer)), *rest))
            case "up", n, layer, *rest:
                return ".".join(("upsample", str(3 * ups[int(n)] + first[layer]), *rest))
        return role

    return {name(role): tensor for role, tensor in tensors.items()}


def _order(names: Iterable[str], role: str) -> dict[int, int]:
    """The numbers that names of this role have, each to its place among them."""
    matches = (re.match(role, name) for name in names)
    return {number: i for i, number in enumerate(sorted({int(m[1]) for m in matches if m}))}


def _without_prelu(tensors: Mapping[str, Tensor], slope: float) -> dict[str, Tensor]:
    """The PReLU slopes and the biases with which our network computes what one with LeakyReLU and no biases does."""
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.") and ".body." in name}
    ups = {int(name.split(".")[1]) for name in tensors if name.startswith("upsample.")}
    prelus = ["head.1", *(f"blocks.{n}.body.2" for n in blocks), *(f"upsample.{n + 2}" for n in ups)]
    convs = {n: tensors.get(f"{n}.weight") for n in ("head.0", "tail", *(f"upsample.{n}" for n in ups))}
    biases = {f"{n}.bias": torch.zeros(kernel.shape[:1]) for n, kernel in convs.items() if kernel is not None}
    return {**{f"{name}.weight": torch.full((1,), slope) for name in prelus}, **biases}


def _kernel(tensors: Mapping[str, Tensor], name: str, where: str) -> torch.Size:
    tensor = tensors.get(f"{name}.weight")
    if tensor is None or tensor.dim() != 4 or not tensor.numel():
        found = "missing" if tensor is None else f"{list(tensor.shape)}, no kernel"
        raise ValueError(f"{where} is not whole: our {name}.weight is {found}; give a whole state dict")
    return tensor.shape


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in tensors)


def _factor(kernel: torch.Size) -> int:
    """How much a PixelShuffle after this convolution enlarges."""
    return math.isqrt(kernel[0] // kernel[1])


def _srresnet(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    normed = [name for name in tensors if re.fullmatch(r"blocks\.\d+\.body\.4\.weight", name)]
    if normed and not any(name.endswith(".running_mean") for name in tensors):
        raise ValueError(f"{where} has norms without a running_mean (InstanceNorm?); BatchNorm is supported, or none")
    slope = tensors.get("head.1.weight")
    ups = [n.removesuffix(".weight") for n, t in tensors.items() if re.match(r"upsample\..*weight", n) and t.dim() > 1]
    return {
        "scale": math.prod(_factor(_kernel(tensors, name, where)) for name in ups),
        "blocks": _count(tensors, r"blocks\.\d+\.body\.0\.weight"),
        "channels": _kernel(tensors, "head.0", where)[0],
        "batch_norm": bool(normed),
        "bias_before_bn": "blocks.0.body.0.bias" in tensors,
        "prelu": "channel" if slope is not None and slope.numel() > 1 else "layer",
    }


def _msrresnet(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    return {
        "scale": 4 if "upconv2.weight" in tensors else _factor(_kernel(tensors, "upconv1", where)),
        "blocks": _count(tensors, r"body\.\d+\.conv1\.weight"),
        "channels": _kernel(tensors, "conv_first", where)[0],
    }


def _rrdbnet(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    channels, inputs = _kernel(tensors, "conv_first", where)[:2]
    scales = {3: 4, 12: 2, 48: 1}
    if inputs not in scales:
        raise ValueError(f"{where} takes {inputs} channels; supported are RGB's 3 (x4), and 12 (x2) and 48 (x1) of it")
    return {
        "scale": scales[inputs],
        "blocks": _count(tensors, r"body\.\d+\.rdb1\.conv1\.weight"),
        "channels": channels,
        "growth": _kernel(tensors, "body.0.rdb1.conv1", where)[0],
    }


_CONFIGS: Mapping[str, Callable[[Mapping[str, Tensor], str], dict[str, Any]]] = {
    "srresnet": _srresnet,
    "msrresnet": _msrresnet,
    "rrdbnet": _rrdbnet,
}
