"""VGG-16 (Simonyan & Zisserman 2015, configuration D), for ImageNet and for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import nn

from torchreaper.lab.models.common import draw_he_normal, refuse_small
from torchreaper.lab.settings import Settings

# The convolutions of each stage, and their filters as multiples of the first stage's.
_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class VGG16Options(Settings):
    """The options of ``vgg16``; the defaults are the small-image form without BatchNorm.

    Attributes:
        width: filters of the first stage; the next have 2, 4, 8 and 8 times as many.
        batch_norm: BatchNorm after each convolution, which keeps its bias, as in the nets in common use.
        head: "cifar" (mean over the pixels, one fully connected layer) or "imagenet" (the published one: 7x7
            pixels, then fully connected layers of 64 * width, 64 * width and classes, Dropout 0.5 between).
    """

    width: int = Field(default=64, ge=1)
    batch_norm: bool = False
    head: Literal["cifar", "imagenet"] = "cifar"


class VGG16(nn.Sequential):
    """Children stage1 to stage5 (3x3 convolutions, then a max-pool 2x2), then the head: pool, flatten, ... fc.

    [n, in_channels, height, width] -> logits [n, classes]. Weights: He normal, fan in; biases 0 (the published
    nets began from a shallower net's weights, which He's draw makes unnecessary).
    """

    def __init__(self, options: VGG16Options, *, in_channels: int, classes: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for i, (convolutions, multiple) in enumerate(_STAGES, start=1):
            filters = multiple * options.width
            layers[f"stage{i}"] = _stage(channels, filters, convolutions, batch_norm=options.batch_norm)
            channels = filters
        if options.head == "cifar":
            layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        else:
            hidden = 64 * options.width
            layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(7), nn.Flatten()
            layers["fc1"], layers["relu1"] = nn.Linear(channels * 7 * 7, hidden), nn.ReLU()
            layers["dropout1"] = nn.Dropout(0.5)
            layers["fc2"], layers["relu2"] = nn.Linear(hidden, hidden), nn.ReLU()
            layers["dropout2"] = nn.Dropout(0.5)
            channels = hidden
        layers["fc"] = nn.Linear(channels, classes)
        super().__init__(layers)
        draw_he_normal(self)


def vgg16(options: VGG16Options, *, in_channels: int, classes: int, image_size: tuple[int, int]) -> VGG16:
    """Make VGG-16; weights come from the global random state.

    Raises ``UserError`` for images under 32x32, which its five halvings would not survive.
    Source: Simonyan & Zisserman, Very Deep Convolutional Networks (2015), table 1, column D: 138,357,544
    parameters with head="imagenet" and 1000 classes; 14,719,818 with head="cifar" and 10.
    """
    refuse_small("vgg16", image_size, least=32)
    return VGG16(options, in_channels=in_channels, classes=classes)


def _stage(inputs: int, filters: int, convolutions: int, *, batch_norm: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, convolutions + 1):
        layers[f"conv{i}"] = nn.Conv2d(inputs if i == 1 else filters, filters, 3, padding=1)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(filters)
        layers[f"relu{i}"] = nn.ReLU()
    layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)
