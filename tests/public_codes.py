"""Small networks with the tensors' names and the formulas of public codes, to make state dicts of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_nodes.srresnet import srresnet

C = 6
"""Channels of the networks here."""


class Twtygqyy(nn.Module):
    """LeakyReLU 0.2 everywhere, no bias in any convolution, images in [0, 1] at both ends."""

    class Block(nn.Module):
        def __init__(self, norm: str) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(C, C, 3, padding=1, bias=False)
            self.add_module(f"{norm}1", nn.BatchNorm2d(C))
            self.conv2 = nn.Conv2d(C, C, 3, padding=1, bias=False)
            self.add_module(f"{norm}2", nn.BatchNorm2d(C))
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            inner = F.leaky_relu(self.get_submodule(f"{self.norm}1")(self.conv1(x)), 0.2)
            out: Tensor = x + self.get_submodule(f"{self.norm}2")(self.conv2(inner))
            return out

    def __init__(self, norm: str = "bn", blocks: int = 3) -> None:
        super().__init__()
        self.conv_input = nn.Conv2d(3, C, 9, padding=4, bias=False)
        self.residual = nn.Sequential(*(self.Block(norm) for _ in range(blocks)))
        self.conv_mid = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.add_module(f"{norm}_mid", nn.BatchNorm2d(C))
        self.norm = norm
        self.upscale4x = nn.Sequential(
            *(nn.Conv2d(C, 4 * C, 3, padding=1, bias=False), nn.PixelShuffle(2), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(C, 4 * C, 3, padding=1, bias=False), nn.PixelShuffle(2), nn.LeakyReLU(0.2)),
        )
        self.conv_output = nn.Conv2d(C, 3, 9, padding=4, bias=False)

    def forward(self, lr: Tensor) -> Tensor:
        first = F.leaky_relu(self.conv_input(lr), 0.2)
        features = first + self.get_submodule(f"{self.norm}_mid")(self.conv_mid(self.residual(first)))
        sr: Tensor = self.conv_output(self.upscale4x(features))
        return sr


class Leftthomas(nn.Module):
    """Blocks by number, the last after the upsampling of block8; (tanh + 1) / 2, an image in [0, 1]."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(C, C, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(C)
            self.prelu = nn.PReLU()
            self.conv2 = nn.Conv2d(C, C, 3, padding=1)
            self.bn2 = nn.BatchNorm2d(C)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))
            return out

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(C, 4 * C, 3, padding=1)
            self.prelu = nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.prelu(F.pixel_shuffle(self.conv(x), 2))
            return out

    def __init__(self, ups: int = 2, blocks: int = 5) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, C, 9, padding=4), nn.PReLU())
        self.between = range(2, 2 + blocks)
        for n in self.between:
            self.add_module(f"block{n}", self.Block())
        self.last = blocks + 2
        self.add_module(f"block{blocks + 2}", nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)))
        tail = nn.Conv2d(C, 3, 9, padding=4)
        self.add_module(f"block{blocks + 3}", nn.Sequential(*(self.Up() for _ in range(ups)), tail))

    def forward(self, lr: Tensor) -> Tensor:
        x = first = self.block1(lr)
        for n in (*self.between, self.last):
            x = self.get_submodule(f"block{n}")(x)
        sr: Tensor = self.get_submodule(f"block{self.last + 1}")(first + x)
        return (torch.tanh(sr) + 1) / 2


class Sgrvinod(nn.Module):
    """LR normalised as for ImageNet before it is given, tanh at the end for an image in [-1, 1]."""

    class Conv(nn.Module):
        def __init__(self, inputs: int, outputs: int, kernel: int, *after: nn.Module) -> None:
            super().__init__()
            self.conv_block = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), *after)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv_block(x)
            return out

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_block1 = Sgrvinod.Conv(C, C, 3, nn.BatchNorm2d(C), nn.PReLU())
            self.conv_block2 = Sgrvinod.Conv(C, C, 3, nn.BatchNorm2d(C))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.conv_block2(self.conv_block1(x))
            return out

    def __init__(self, ups: int = 2) -> None:
        super().__init__()
        self.conv_block1 = self.Conv(3, C, 9, nn.PReLU())
        self.residual_blocks = nn.Sequential(self.Block(), self.Block(), self.Block())
        self.conv_block2 = self.Conv(C, C, 3, nn.BatchNorm2d(C))
        self.subpixel_convolutional_blocks = nn.Sequential(*(Leftthomas.Up() for _ in range(ups)))
        self.conv_block3 = self.Conv(C, 3, 9, nn.Tanh())

    def forward(self, lr: Tensor) -> Tensor:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        first = self.conv_block1((lr - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        features = first + self.conv_block2(self.residual_blocks(first))
        sr: Tensor = self.conv_block3(self.subpixel_convolutional_blocks(features))
        return (sr + 1) / 2


class Lornatang(nn.Module):
    """No bias before BatchNorm, an image in [0, 1]; the code clamps it, which ``generate`` does. Two sets of names."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rcb = nn.Sequential(
                *(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C), nn.PReLU()),
                *(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.rcb(x)
            return out

    class Up(nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.upsample_block = nn.Sequential(
                nn.Conv2d(C, factor**2 * C, 3, padding=1), nn.PixelShuffle(factor), nn.PReLU()
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.upsample_block(x)
            return out

    def __init__(self, conv: str = "conv", factors: tuple[int, ...] = (2, 2)) -> None:
        super().__init__()
        self.trunk = nn.Sequential(self.Block(), self.Block())
        self.upsampling = nn.Sequential(*(self.Up(factor) for factor in factors))
        self.conv = conv
        self.add_module(f"{conv}1", nn.Sequential(nn.Conv2d(3, C, 9, padding=4), nn.PReLU()))
        self.add_module(f"{conv}2", nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)))
        self.add_module(f"{conv}3", nn.Conv2d(C, 3, 9, padding=4))

    def forward(self, lr: Tensor) -> Tensor:
        first = self.get_submodule(f"{self.conv}1")(lr)
        features = first + self.get_submodule(f"{self.conv}2")(self.trunk(first))
        sr: Tensor = self.get_submodule(f"{self.conv}3")(self.upsampling(features))
        return sr


class BasicMSRResNet(nn.Module):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(C, C, 3, padding=1)
            self.conv2 = nn.Conv2d(C, C, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.conv2(torch.relu(self.conv1(x)))
            return out

    def __init__(self, scale: int = 4, body: str = "body", high: str = "conv_hr") -> None:
        super().__init__()
        self.scale, self.factor = scale, 2 if scale == 4 else scale
        self.names = body, high
        self.conv_first = nn.Conv2d(3, C, 3, padding=1)
        self.add_module(body, nn.Sequential(self.Block(), self.Block(), self.Block()))
        self.upconv1 = nn.Conv2d(C, C * self.factor**2, 3, padding=1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(C, C * 4, 3, padding=1)
        self.add_module(high, nn.Conv2d(C, C, 3, padding=1))
        self.conv_last = nn.Conv2d(C, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        act = nn.LeakyReLU(0.1)
        body, high = (self.get_submodule(name) for name in self.names)
        x = act(F.pixel_shuffle(self.upconv1(body(act(self.conv_first(lr)))), self.factor))
        if self.scale == 4:
            x = act(F.pixel_shuffle(self.upconv2(x), 2))
        sr: Tensor = self.conv_last(act(high(x)))
        return sr + F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False)


class Dense(nn.Module):
    """A residual dense block; ``wrapped`` as in 2018, where convolution and activation were in one Sequential."""

    def __init__(self, wrapped: bool, growth: int) -> None:
        super().__init__()
        for i in range(5):
            conv = nn.Conv2d(C + growth * i, growth if i < 4 else C, 3, padding=1)
            self.add_module(f"conv{i + 1}", nn.Sequential(conv) if wrapped else conv)

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for i in range(4):
            made.append(F.leaky_relu(self.get_submodule(f"conv{i + 1}")(torch.cat(made, 1)), 0.2))
        out: Tensor = self.get_submodule("conv5")(torch.cat(made, 1))
        return 0.2 * out + x


class Rrdb(nn.Module):
    def __init__(self, name: str, growth: int, wrapped: bool = False) -> None:
        super().__init__()
        self.name = name
        for i in (1, 2, 3):
            self.add_module(f"{name}{i}", Dense(wrapped, growth))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in (1, 2, 3):
            out = self.get_submodule(f"{self.name}{i}")(out)
        return 0.2 * out + x


class Rrdbs(nn.Module):
    """RRDBNet with the names of one or the other code; ``fold`` pixels a side become channels first."""

    NEW = ("conv_first", "body", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
    MIDDLE = ("conv_first", "RRDB_trunk", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last")

    def __init__(self, names: tuple[str, ...], dense: str, fold: int = 1, growth: int = 3) -> None:
        super().__init__()
        self.names, self.fold = names, fold
        self.add_module(names[0], nn.Conv2d(3 * fold**2, C, 3, padding=1))
        self.add_module(names[1], nn.Sequential(Rrdb(dense, growth), Rrdb(dense, growth)))
        for name in names[2:6]:
            self.add_module(name, nn.Conv2d(C, C, 3, padding=1))
        self.add_module(names[6], nn.Conv2d(C, 3, 3, padding=1))

    def forward(self, lr: Tensor) -> Tensor:
        first, body, after, up1, up2, high, last = (self.get_submodule(name) for name in self.names)
        x = first(F.pixel_unshuffle(lr, self.fold))
        x = x + after(body(x))
        for up in (up1, up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2)), 0.2)
        sr: Tensor = last(F.leaky_relu(high(x), 0.2))
        return sr


class Shortcut(nn.Module):
    def __init__(self, sub: nn.Module) -> None:
        super().__init__()
        self.sub = sub

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.sub(x)
        return out


class Esrgan2018(nn.Module):
    def __init__(self, growth: int = 3) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        trunk = nn.Sequential(*(Rrdb("RDB", growth, wrapped=True) for _ in range(2)), conv(C, C))
        self.model = nn.Sequential(
            *(conv(3, C), Shortcut(trunk)),
            *(nn.Upsample(scale_factor=2), conv(C, C), nn.LeakyReLU(0.2)),
            *(nn.Upsample(scale_factor=2), conv(C, C), nn.LeakyReLU(0.2)),
            *(conv(C, C), nn.LeakyReLU(0.2), conv(C, 3)),
        )

    def forward(self, lr: Tensor) -> Tensor:
        sr: Tensor = self.model(lr)
        return sr


class Ours(nn.Module):
    """Our own SRResNet, whose state dict was saved without the metadata of an export."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = srresnet(blocks=2, channels=C, **options)

    def forward(self, lr: Tensor) -> Tensor:
        sr: Tensor = self.net(lr)
        return sr

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs)


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor drawn, so that none is of a value that a fresh network has; in eval mode."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(-0.5, 0.5, generator=rng)
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_var, module.weight):
                    assert tensor is not None
                    tensor.uniform_(0.5, 1.5, generator=rng)
                for tensor in (module.running_mean, module.bias):
                    assert tensor is not None
                    tensor.normal_(0, 0.3, generator=rng)
    return network.eval()


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    architecture: str
    config: dict[str, Any]


CASES = {
    "ours": Case(Ours, "srresnet", {"scale": 4, "blocks": 2, "bias_before_bn": True, "prelu": "layer"}),
    "ours x3, no bias, a slope a channel": Case(
        lambda: Ours(scale=3, bias_before_bn=False, prelu="channel"),
        "srresnet", {"scale": 3, "bias_before_bn": False, "prelu": "channel"},
    ),
    "ours x8 without BN": Case(lambda: Ours(scale=8, batch_norm=False), "srresnet", {"scale": 8, "batch_norm": False}),
    "twtygqyy": Case(Twtygqyy, "srresnet", {"blocks": 3, "bias_before_bn": False, "value_range": "0..1"}),
    "twtygqyy, in1": Case(lambda: Twtygqyy("in", blocks=11), "srresnet", {"blocks": 11}),
    "leftthomas": Case(Leftthomas, "srresnet", {"blocks": 5, "bias_before_bn": True, "output": "tanh"}),
    "leftthomas x2, 9 blocks": Case(lambda: Leftthomas(ups=1, blocks=9), "srresnet", {"scale": 2, "blocks": 9}),
    "leftthomas x8": Case(lambda: Leftthomas(ups=3), "srresnet", {"scale": 8}),
    "sgrvinod": Case(Sgrvinod, "srresnet", {"blocks": 3, "output": "tanh", "input_norm": "imagenet"}),
    "sgrvinod x2": Case(lambda: Sgrvinod(1), "srresnet", {"scale": 2}),
    "Lornatang": Case(Lornatang, "srresnet", {"blocks": 2, "bias_before_bn": False, "value_range": "0..1"}),
    "Lornatang of 2022, x3": Case(lambda: Lornatang("conv_block", (3,)), "srresnet", {"scale": 3}),
    "MSRResNet": Case(BasicMSRResNet, "msrresnet", {"scale": 4, "blocks": 3, "channels": C}),
    "MSRResNet x2": Case(lambda: BasicMSRResNet(2), "msrresnet", {"scale": 2}),
    "MSRResNet x3": Case(lambda: BasicMSRResNet(3), "msrresnet", {"scale": 3}),
    "KAIR's MSRResNet1": Case(
        lambda: BasicMSRResNet(4, "recon_trunk", "HRconv"), "msrresnet", {"scale": 4, "blocks": 3, "channels": C}
    ),
    "KAIR's MSRResNet1 x3": Case(lambda: BasicMSRResNet(3, "recon_trunk", "HRconv"), "msrresnet", {"scale": 3}),
    "RRDBNet": Case(lambda: Rrdbs(Rrdbs.NEW, "rdb"), "rrdbnet", {"scale": 4, "blocks": 2, "channels": C, "growth": 3}),
    "RRDBNet x2": Case(lambda: Rrdbs(Rrdbs.NEW, "rdb", fold=2), "rrdbnet", {"scale": 2}),
    "RRDBNet x1": Case(lambda: Rrdbs(Rrdbs.NEW, "rdb", fold=4), "rrdbnet", {"scale": 1}),
    "RRDB_trunk": Case(lambda: Rrdbs(Rrdbs.MIDDLE, "RDB"), "rrdbnet", {"scale": 4}),
    "ESRGAN of 2018": Case(Esrgan2018, "rrdbnet", {"scale": 4, "blocks": 2, "growth": 3}),
}  # fmt: skip
