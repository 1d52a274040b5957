"""MobileNetV2 (Sandler et al. 2018)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from torchreaper.lab.models.common import add_classifier, draw_he_normal, refuse_small
from torchreaper.lab.settings import Settings

# Table 2 of the paper: expansion t, channels c, blocks n, stride of the first block s.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_FIRST, _LAST = 32, 1280


class MobileNetV2Options(Settings):
    """The options of ``mobilenet_v2``; the defaults are the published net.

    Attributes:
        width: the width multiplier: channels are multiplied by it and rounded to a multiple of 8; the last
            convolution's 1280 only where it is above 1.
        strides: "imagenet" (image sides are halved five times) or "cifar" (three times: the first convolution and
            stage2 have stride 1; for images of about 32 pixels).
        dropout: probability, in front of the fully connected layer.
    """

    width: float = Field(default=1.0, gt=0)
    strides: Literal["imagenet", "cifar"] = "imagenet"
    dropout: float = Field(default=0.2, ge=0, lt=1)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without ReLU, each with BatchNorm; a shortcut where shapes agree.

    With expansion=1 there is no expansion layer.
    """

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.expand = _unit(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, ceil(h / stride), ceil(w / stride)]."""
        y: Tensor = self.norm(self.project(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNetV2(nn.Sequential):
    """Children first (3x3 convolution), stage1 to stage7, last (1x1 convolution), pool, flatten, dropout, fc.

    [n, in_channels, height, width] -> logits [n, classes]. Weights: He normal, fan in; biases 0 (the paper names
    no draw).
    """

    def __init__(self, options: MobileNetV2Options, *, in_channels: int, classes: int) -> None:
        large = options.strides == "imagenet"
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = _rounded(_FIRST * options.width)
        layers["first"] = _unit(in_channels, channels, 3, stride=2 if large else 1)
        for i, (expansion, published, blocks, stride) in enumerate(_STAGES, start=1):
            outputs = _rounded(published * options.width)
            first_stride = 1 if i == 2 and not large else stride
            layers[f"stage{i}"] = _stage(channels, outputs, blocks, expansion=expansion, stride=first_stride)
            channels = outputs
        last = _rounded(_LAST * max(1.0, options.width))
        layers["last"] = _unit(channels, last, 1)
        add_classifier(layers, last, classes, dropout=options.dropout)
        super().__init__(layers)
        draw_he_normal(self)


def mobilenet_v2(
    options: MobileNetV2Options, *, in_channels: int, classes: int, image_size: tuple[int, int]
) -> MobileNetV2:
    """Make MobileNetV2; weights come from the global random state.

    Raises ``UserError`` for images under 32x32 (its five halvings), or under 8x8 with strides="cifar" (three).
    Source: Sandler et al., MobileNetV2 (2018), table 2; 3,504,872 parameters with 1000 classes.
    """
    refuse_small("mobilenet_v2", image_size, least=32 if options.strides == "imagenet" else 8)
    return MobileNetV2(options, in_channels=in_channels, classes=classes)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8; the next one where rounding down would take more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _unit(inputs: int, filters: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, filters, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(filters), relu=nn.ReLU6()))


def _stage(inputs: int, outputs: int, blocks: int, *, expansion: int, stride: int) -> nn.Sequential:
    first = InvertedResidual(inputs, outputs, expansion=expansion, stride=stride)
    rest = [InvertedResidual(outputs, outputs, expansion=expansion, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict((f"block{i}", b) for i, b in enumerate([first, *rest], start=1)))
