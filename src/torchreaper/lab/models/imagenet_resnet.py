"""ResNets for ImageNet (He et al. 2016, section 4.1); those for small images are in ``resnet``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from torchreaper.lab.models.common import add_classifier, draw_he_normal, refuse_small
from torchreaper.lab.models.resnet import Block, make_shortcut
from torchreaper.lab.settings import Settings

# Blocks in each of the four stages, by the number of layers (He et al., table 1).
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_BOTTLENECK_FROM = 50
_EXPANSION = 4


class ImageNetResNetOptions(Settings):
    """The options of the ImageNet ResNets; the defaults are the published nets.

    Attributes:
        width: filters of the first stage's 3x3 convolutions; the next have 2, 4 and 8 times as many.
        stem: "imagenet" (7x7 convolution of stride 2, then max-pool 3x3 of stride 2) or "cifar" (3x3 convolution
            of stride 1, no pool: for images of about 32 pixels).
    """

    width: int = Field(default=64, ge=1)
    stem: Literal["imagenet", "cifar"] = "imagenet"


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with BatchNorm, and a shortcut added before the last ReLU.

    The 3x3 convolution has the stride, as in the nets in common use ("v1.5"); He et al. gave it to the first.
    """

    def __init__(self, inputs: int, filters: int, *, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * filters
        self.conv1 = nn.Conv2d(inputs, filters, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(filters, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = make_shortcut(inputs, outputs, stride, "conv")
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, 4 * filters, ceil(h / stride), ceil(w / stride)]."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.relu2(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        out: Tensor = self.relu3(y + self.shortcut(x))
        return out


class ImageNetResNet(nn.Sequential):
    """Children conv1, norm1, relu1, pool1 (not with stem="cifar"), stage1 to stage4, pool, flatten, fc.

    [n, in_channels, height, width] -> logits [n, classes]. Shortcuts that change the shape are 1x1 convolutions
    (He's option B). Weights: He normal, fan in; biases 0.
    """

    def __init__(self, options: ImageNetResNetOptions, *, depth: int, in_channels: int, classes: int) -> None:
        width = options.width
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if options.stem == "imagenet":
            layers["conv1"] = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            layers["conv1"] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        layers["norm1"], layers["relu1"] = nn.BatchNorm2d(width), nn.ReLU()
        if options.stem == "imagenet":
            layers["pool1"] = nn.MaxPool2d(3, stride=2, padding=1)
        bottleneck = depth >= _BOTTLENECK_FROM
        inputs = width
        for i, blocks in enumerate(BLOCKS[depth]):
            filters, stride = width * 2**i, 1 if i == 0 else 2
            layers[f"stage{i + 1}"] = _stage(inputs, filters, blocks, stride=stride, bottleneck=bottleneck)
            inputs = filters * (_EXPANSION if bottleneck else 1)
        add_classifier(layers, inputs, classes)
        super().__init__(layers)
        draw_he_normal(self)


def imagenet_resnet(
    options: ImageNetResNetOptions, *, depth: int, in_channels: int, classes: int, image_size: tuple[int, int]
) -> ImageNetResNet:
    """Make the ResNet of ``depth`` (18, 34, 50, 101, 152) layers; weights come from the global random state.

    Raises ``UserError`` for images under 32x32 (its five halvings), or under 8x8 with stem="cifar" (three).
    Source: He et al., Deep Residual Learning (2016), table 1; ResNet-18 has 11,689,512 parameters, ResNet-50
    25,557,032 (1000 classes).
    """
    refuse_small(f"resnet{depth}", image_size, least=32 if options.stem == "imagenet" else 8)
    return ImageNetResNet(options, depth=depth, in_channels=in_channels, classes=classes)


def _stage(inputs: int, filters: int, blocks: int, *, stride: int, bottleneck: bool) -> nn.Sequential:
    block: Callable[..., nn.Module] = Bottleneck if bottleneck else partial(Block, shortcut="conv")
    outputs = filters * (_EXPANSION if bottleneck else 1)
    first = block(inputs, filters, stride=stride)
    rest = [block(outputs, filters, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict((f"block{i}", b) for i, b in enumerate([first, *rest], start=1)))
