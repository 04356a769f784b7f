"""The training loops that the engine is measured against: (a) straight, (b) as in tutorials, (c) BasicSR's.

Each is a function of a batch HR [B, 3, crop, crop] that does one whole step; all make the LR by the same function.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.degradation import bicubic
from sr_nodes.discriminators import discriminator
from sr_nodes.features import vgg19, vgg_loss
from sr_nodes.losses import adversarial_loss, discriminator_loss, mse_loss
from sr_nodes.optim import adam
from sr_nodes.srresnet import srresnet
from sr_nodes.types import FeatureNet
from sr_pipeline.precision import Mode
from sr_pipeline.sockets import SeedSource

Step = Callable[[Tensor], Any]
BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Size:
    """What is trained on: the paper's sizes by default."""

    batch: int = 16
    crop: int = 96
    blocks: int = 16
    channels: int = 64


def networks(size: Size, device: torch.device, gan: bool) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator in training mode; without ``gan`` the latter is empty."""

    def rng(name: str) -> torch.Generator:
        return SeedSource(0, name).rng(0)

    g = srresnet(blocks=size.blocks, channels=size.channels, rng=rng("generator"), device=device)
    d = discriminator(crop=size.crop, rng=rng("discriminator"), device=device) if gan else nn.Module()
    return g.train(), d.train()


@dataclass(frozen=True)
class Habits:
    """What a careful loop does; levers.py measures each by leaving it out."""

    fused_adam: bool = True
    freeze_vgg: bool = True
    freeze_d: bool = True
    """In the generator's turn."""
    vgg_in_one_batch: bool = False
    """HR's pass with SR's, so that it has an autograd graph too."""


def straight(size: Size, mode: Mode, device: torch.device, gan: bool, habits: Habits | None = None) -> Step:
    """(a) What a careful user of torch writes: VGG frozen and its features of HR without a graph, the discriminator's
    weights frozen in G's turn, the same optimizer as ours, autocast in bf16, channels_last, and no loss read."""
    habits = habits or Habits()
    g, d = networks(size, device, gan)
    vgg = vgg19(device=device).requires_grad_(not habits.freeze_vgg) if gan else nn.Module()
    content = _in_one_batch if habits.vgg_in_one_batch else vgg_loss
    mode.lay_out([g, d, vgg])
    made = adam if habits.fused_adam else lambda model: torch.optim.Adam(model.parameters(), 1e-4)
    g_adam = made(g)
    d_adam = made(d) if gan else g_adam

    def srresnet_step(hr: Tensor) -> None:
        with mode.products(device), mode.autocast(device):
            loss = mse_loss(g(bicubic(hr)), hr, weight=4.0)
        g_adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        g_adam.step()

    def srgan_step(hr: Tensor) -> None:
        with mode.products(device):
            with mode.autocast(device):
                sr = g(bicubic(hr)).float()
                d_loss = discriminator_loss(d(hr), d(sr.detach()))
            d_adam.zero_grad(set_to_none=True)
            d_loss.backward()  # type: ignore[no-untyped-call]
            d_adam.step()
            d.requires_grad_(not habits.freeze_d)
            with mode.autocast(device):
                g_loss = content(vgg, sr, hr) + 1e-3 * adversarial_loss(d(sr))  # type: ignore[arg-type]
            g_adam.zero_grad(set_to_none=True)
            g_loss.backward()  # type: ignore[no-untyped-call]
            g_adam.step()
            d.requires_grad_(True)

    return srgan_step if gan else srresnet_step


def _in_one_batch(vgg: FeatureNet, sr: Tensor, hr: Tensor) -> Tensor:
    """``vgg_loss`` of one pass."""
    found, wanted = vgg(torch.cat([sr, hr])).chunk(2)
    loss: Tensor = found.shape[1] / 12.75**2 * F.mse_loss(found, wanted.detach())
    return loss


def tutorial(size: Size, device: torch.device, gan: bool) -> Step:
    """(b) What the popular tutorials write: float32, VGG's weights not frozen, every gradient computed whether anybody
    needs it or not, and each loss read by ``.item()``."""
    g, d = networks(size, device, gan)
    g_adam = torch.optim.Adam(g.parameters(), 1e-4)
    if not gan:

        def srresnet_step(hr: Tensor) -> float:
            loss = F.mse_loss(g(bicubic(hr)), hr)
            g_adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            g_adam.step()
            return loss.item()

        return srresnet_step
    vgg = vgg19(device=device).requires_grad_(True)
    d_adam = torch.optim.Adam(d.parameters(), 1e-4)
    one, none = torch.ones(size.batch, 1, device=device), torch.zeros(size.batch, 1, device=device)
    entropy = nn.BCEWithLogitsLoss()

    def srgan_step(hr: Tensor) -> tuple[float, float, float]:
        sr = g(bicubic(hr))
        content = F.mse_loss(vgg(sr), vgg(hr).detach())
        adversarial = entropy(d(sr), one)
        g_adam.zero_grad()
        loss: Tensor = content + 1e-3 * adversarial
        loss.backward()  # type: ignore[no-untyped-call]
        g_adam.step()
        d_loss = entropy(d(hr), one) + entropy(d(sr.detach()), none)
        d_adam.zero_grad()
        d_loss.backward()
        d_adam.step()
        return content.item(), adversarial.item(), d_loss.item()

    return srgan_step


def basicsr(size: Size, device: torch.device) -> Step:
    """(c) BasicSR 1.4.2's ``SRGANModel.optimize_parameters`` over the paper's networks and VGG54.

    Found by the normal import, or in the folder that ``BASICSR_PATH`` names. Its VGG gets random weights, because its
    own would be fetched; that changes no time.

    Raises:
        ImportError: it, or what it needs, is not installed.
    """
    sys.path += [folder] if (folder := os.environ.get("BASICSR_PATH")) and folder not in sys.path else []
    import torchvision

    shim = types.ModuleType("torchvision.transforms.functional_tensor")  # gone since torchvision 0.17
    shim.rgb_to_grayscale = torchvision.transforms.functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules.setdefault(shim.__name__, shim)
    model_module = importlib.import_module("basicsr.models.srgan_model")
    registry = importlib.import_module("basicsr.utils.registry").ARCH_REGISTRY
    vgg = types.SimpleNamespace(vgg19=lambda pretrained: torchvision.models.vgg19(weights=None))
    archs: Any = importlib.import_module("basicsr.archs.vgg_arch")
    archs.vgg = vgg
    logging.getLogger("basicsr").setLevel(logging.WARNING)
    g, d = networks(size, device, gan=True)
    for name, net in (("PaperG", g), ("PaperD", d)):
        registry._obj_map[name] = lambda net=net: net
    model = model_module.SRGANModel(_basicsr_options(device))

    def step(hr: Tensor) -> None:
        model.feed_data({"lq": bicubic(hr), "gt": hr})
        model.optimize_parameters(1)

    return step


def _basicsr_options(device: torch.device) -> dict[str, Any]:
    adam = {"type": "Adam", "lr": 1e-4, "betas": list(BETAS)}
    return {
        "num_gpu": int(device.type == "cuda"),
        "is_train": True,
        "dist": False,
        "path": {},
        "network_g": {"type": "PaperG"},
        "network_d": {"type": "PaperD"},
        "train": {
            "optim_g": dict(adam),
            "optim_d": dict(adam),
            "scheduler": {"type": "MultiStepLR", "milestones": [100_000], "gamma": 0.1},
            "perceptual_opt": {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1.0}, "vgg_type": "vgg19"},
            "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 1e-3},
        },
    }
