"""ResNets for small images (He et al. 2016, section 4.2), at their published sizes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from torchreaper.lab.models.common import draw_he_normal, refuse_small
from torchreaper.lab.settings import Settings

DEPTHS = (20, 32, 44, 56, 110, 182)  # those in the RePr paper's table or in He et al.'s


class ResNetOptions(Settings):
    """The options of the ResNets; the defaults are the published nets.

    Attributes:
        width: filters of the first stage; the next two have twice and four times as many.
        shortcut: where a stage halves the image, "pad" (He's option A: every second pixel, new channels zero)
            or "conv" (option B: 1x1 convolution and BatchNorm).
    """

    width: int = Field(default=16, ge=1)
    shortcut: Literal["pad", "conv"] = "pad"


class PadShortcut(nn.Module):
    """He's option A: every second pixel, and zeros for the channels that the input lacks; no parameters."""

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c + missing, ceil(h / 2), ceil(w / 2)]."""
        before = self.missing // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.missing - before))


class Block(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, and a shortcut added before the last ReLU."""

    def __init__(self, inputs: int, filters: int, *, stride: int, shortcut: Literal["pad", "conv"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = make_shortcut(inputs, filters, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, filters, ceil(h / stride), ceil(w / stride)]."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """conv1, then stage1 to stage3 of (depth - 2) / 6 blocks each, mean over the pixels, fc.

    [n, in_channels, height, width] -> logits [n, classes]. Weights: He normal, fan in; biases 0.
    """

    def __init__(self, options: ResNetOptions, *, depth: int, in_channels: int, classes: int) -> None:
        super().__init__()
        width, blocks = options.width, (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.stage1 = _stage(width, width, blocks, stride=1, shortcut=options.shortcut)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2, shortcut=options.shortcut)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2, shortcut=options.shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, classes)
        draw_he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_channels, height, width] -> logits [n, classes]."""
        x = self.relu1(self.norm1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def resnet(
    options: ResNetOptions, *, depth: int, in_channels: int, classes: int, image_size: tuple[int, int]
) -> ResNet:
    """Make the ResNet of ``depth`` (6n + 2) layers; weights come from the global random state.

    Raises ``UserError`` for images under 4x4, which its two halvings would not survive.
    Source: He et al., Deep Residual Learning (2016), section 4.2; ResNet-20 has 269,722 parameters.
    """
    refuse_small(f"resnet{depth}", image_size, least=4)
    return ResNet(options, depth=depth, in_channels=in_channels, classes=classes)


def _stage(inputs: int, filters: int, blocks: int, *, stride: int, shortcut: Literal["pad", "conv"]) -> nn.Sequential:
    first = Block(inputs, filters, stride=stride, shortcut=shortcut)
    rest = [Block(filters, filters, stride=1, shortcut=shortcut) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict((f"block{i}", b) for i, b in enumerate([first, *rest], start=1)))


def make_shortcut(inputs: int, filters: int, stride: int, kind: Literal["pad", "conv"]) -> nn.Module:
    """The way past a block: nothing where the shape stays, else He's option A ("pad") or B ("conv")."""
    if stride == 1 and inputs == filters:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(filters - inputs)
    conv = nn.Conv2d(inputs, filters, 1, stride=stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(filters)))
