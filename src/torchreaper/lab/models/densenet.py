"""DenseNets for small images (Huang et al. 2017, section 3), at their published sizes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.common import add_classifier, draw_he_normal, refuse_small
from torchreaper.lab.settings import Settings

DEPTHS = (5, 40, 100)  # those in the RePr paper's table
_FIRST = 16
_WIDENING = 4  # a bottleneck's 1x1 convolution has 4 * growth filters


class DenseNetOptions(Settings):
    """The options of the DenseNets; the defaults are the published basic nets, k=12.

    DenseNet-BC is ``bottleneck: true, reduction: 0.5``.

    Attributes:
        growth: filters that each layer of a dense block adds (k).
        blocks: dense blocks; image sides are halved between two.
        bottleneck: a 1x1 convolution of 4 * growth filters in front of each 3x3 one (B); half as many layers then,
            so that the depth, which counts convolutions, stays.
        reduction: share of the channels that a transition keeps, rounded down (C; theta). With both, the first
            convolution has 2 * growth filters in place of 16, as published.
        dropout: probability, after each convolution but the first (0.2 in the paper, without augmentation).
    """

    growth: int = Field(default=12, ge=1)
    blocks: int = Field(default=3, ge=1, le=100)
    bottleneck: bool = False
    reduction: float = Field(default=1.0, gt=0, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _together(self) -> DenseNetOptions:
        if self.reduction < 1 and self.blocks == 1:
            raise UserError(
                f"reduction={self.reduction}: has no effect with blocks=1, which has no transition; leave it out"
            )
        return self


class DenseNet5Options(DenseNetOptions):
    """The options of ``densenet5``: those of the others, but one dense block.

    The published nets have depth 3n + 4: a convolution, three blocks of n layers, two transitions, fc. No n gives
    5. With one block depth is n + 2, and 5 layers are a convolution, a block of three layers, fc: the reading taken
    here. ``blocks=2`` is the other one that counts to 5: a convolution, one layer, a transition, one layer, fc.
    """

    blocks: int = Field(default=1, ge=1, le=100)


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution of ``growth`` filters, appended to the input's channels.

    With ``bottleneck`` BatchNorm, ReLU and a 1x1 convolution come first.
    """

    def __init__(self, inputs: int, options: DenseNetOptions) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        growth, dropout = options.growth, options.dropout
        if options.bottleneck:
            layers.update(_composite("1", inputs, _WIDENING * growth, kernel=1, dropout=dropout))
            inputs = _WIDENING * growth
        last = "2" if options.bottleneck else "1"
        layers.update(_composite(last, inputs, growth, kernel=3, dropout=dropout))
        self.new = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, inputs + growth, h, w]."""
        return torch.cat([x, self.new(x)], 1)


class DenseNet(nn.Sequential):
    """Children conv1, block1, transition1, block2, ... norm, relu, pool (mean over the pixels), flatten, fc.

    [n, in_channels, height, width] -> logits [n, classes]. Weights: He normal, fan in; biases 0.
    """

    def __init__(self, options: DenseNetOptions, *, layers: int, in_channels: int, classes: int) -> None:
        compressed = options.bottleneck and options.reduction < 1
        channels = 2 * options.growth if compressed else _FIRST
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv1"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for i in range(1, options.blocks + 1):
            parts[f"block{i}"] = nn.Sequential(
                OrderedDict(
                    (f"layer{j + 1}", DenseLayer(channels + j * options.growth, options)) for j in range(layers)
                )
            )
            channels += layers * options.growth
            if i < options.blocks:
                kept = max(1, int(options.reduction * channels))
                transition = _composite("", channels, kept, kernel=1, dropout=options.dropout)
                parts[f"transition{i}"] = nn.Sequential(OrderedDict(**transition, pool=nn.AvgPool2d(2)))
                channels = kept
        parts["norm"], parts["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
        add_classifier(parts, channels, classes)
        super().__init__(parts)
        draw_he_normal(self)


def densenet(
    options: DenseNetOptions, *, depth: int, in_channels: int, classes: int, image_size: tuple[int, int]
) -> DenseNet:
    """Make the DenseNet of ``depth`` convolutions and fc; weights come from the global random state.

    Depth counts the first convolution, those of the dense layers, the transitions and fc.

    Raises ``UserError`` where no whole number of layers a block gives ``depth``, and for images that the halvings
    between the blocks would not survive (under 4x4 with three blocks).
    Source: Huang et al., Densely Connected Convolutional Networks (2017), section 3; with k=12 and 10 classes L=40
    has 1,019,722 parameters, DenseNet-BC L=100 769,162.
    """
    each = 2 if options.bottleneck else 1
    # depth = 1 + blocks * convolutions + (blocks - 1) + 1
    convolutions, odd = divmod(depth - 1 - options.blocks, options.blocks)
    if odd or convolutions < each or convolutions % each:
        raise UserError(
            f"model.options.blocks={options.blocks}: a DenseNet of depth {depth} with "
            f"bottleneck={options.bottleneck} cannot have so many equal blocks; "
            f"possible: {_possible(depth, each)}"
        )
    refuse_small(f"densenet{depth}", image_size, least=2 ** (options.blocks - 1))
    return DenseNet(options, layers=convolutions // each, in_channels=in_channels, classes=classes)


def _possible(depth: int, each: int) -> str:
    found = [b for b in range(1, depth) if (depth - 1) % b == 0 and (n := (depth - 1) // b - 1) and n % each == 0]
    return ", ".join(map(str, found)) or "none"


def _composite(number: str, inputs: int, filters: int, *, kernel: int, dropout: float) -> OrderedDict[str, nn.Module]:
    """BatchNorm, ReLU, convolution, dropout: the paper's H, and its transition without the pool."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"norm{number}"], layers[f"relu{number}"] = nn.BatchNorm2d(inputs), nn.ReLU()
    layers[f"conv{number}"] = nn.Conv2d(inputs, filters, kernel, padding=kernel // 2, bias=False)
    if dropout:
        layers[f"dropout{number}"] = nn.Dropout(dropout)
    return layers
