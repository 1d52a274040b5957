"""Inception v1 (GoogLeNet, Szegedy et al. 2015) and v2 (BN-Inception, Ioffe & Szegedy 2015)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.common import add_classifier, draw_he_normal, refuse_small
from torchreaper.lab.settings import Settings

_AUX_FILTERS, _AUX_HIDDEN, _AUX_DROPOUT = 128, 1024, 0.7


class V1(NamedTuple):
    """Filters of a module of v1 (table 1 of its paper): 1x1 | 1x1, 3x3 | 1x1, 5x5 | after the pool."""

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    pool: int


class V2(NamedTuple):
    """Filters of a module of v2 (figure 5 of its paper): 1x1 | 1x1, 3x3 | 1x1, 3x3, 3x3 | after the pool.

    With ``one`` and ``pool`` 0 the module has stride 2, no 1x1 branch, and a max-pool alone.
    """

    one: int
    reduce3: int
    three: int
    reduce_double: int
    double: int
    pool: int
    kind: Literal["avg", "max"] = "avg"


# In 4c and 4d the paper's table has 128 filters after the pool and 576 channels that leave the module, which do not
# agree; 96, as in the authors' TensorFlow code, give those 576 (and the 1024 of 4e).
_V2_MODULES = {
    "3a": V2(64, 64, 64, 64, 96, 32),
    "3b": V2(64, 64, 96, 64, 96, 64),
    "3c": V2(0, 128, 160, 64, 96, 0, "max"),
    "4a": V2(224, 64, 96, 96, 128, 128),
    "4b": V2(192, 96, 128, 96, 128, 128),
    "4c": V2(160, 128, 160, 128, 160, 96),
    "4d": V2(96, 128, 192, 160, 192, 96),
    "4e": V2(0, 128, 192, 192, 256, 0, "max"),
    "5a": V2(352, 192, 320, 160, 224, 128),
    "5b": V2(352, 192, 320, 192, 224, 128, "max"),
}


class InceptionV1Options(Settings):
    """The options of ``inception-v1``; the defaults are the published net without its auxiliary heads.

    Attributes:
        lrn: local response normalisation after the first pool and in front of the second.
        dropout: probability, in front of the fully connected layer.
        aux: the two auxiliary heads. In training the net then returns three logits, which the lab's training loop
            does not take: ``inception_v1`` refuses it, ``InceptionV1`` does not.
    """

    lrn: bool = True
    dropout: float = Field(default=0.4, ge=0, lt=1)
    aux: bool = False


class InceptionV2Options(Settings):
    """The options of ``inception-v2``; the defaults are the published net.

    Attributes:
        separable: the first convolution is a depthwise 7x7 one with 8 filters a channel and a 1x1 one after it;
            False: one 7x7 convolution, as in most other code.
        dropout: probability, in front of the fully connected layer.
    """

    separable: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ModuleV1(nn.Module):
    """Four branches, concatenated: 1x1; 1x1 then 3x3; 1x1 then 5x5; max-pool 3x3 then 1x1."""

    def __init__(self, inputs: int, filters: V1) -> None:
        super().__init__()
        self.one = _unit(inputs, filters.one, 1)
        self.three = _chain(reduce=_unit(inputs, filters.reduce3, 1), conv=_unit(filters.reduce3, filters.three, 3))
        self.five = _chain(reduce=_unit(inputs, filters.reduce5, 1), conv=_unit(filters.reduce5, filters.five, 5))
        self.pool = _chain(pool=nn.MaxPool2d(3, stride=1, padding=1), conv=_unit(inputs, filters.pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, one + three + five + pool, h, w]."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class ModuleV2(nn.Module):
    """Four branches, concatenated: 1x1; 1x1 then 3x3; 1x1 then 3x3 twice; a pool 3x3 then 1x1. All with BatchNorm.

    Those that halve the image have no 1x1 branch, stride 2 in the last convolution of the others, and a max-pool
    without convolution.
    """

    def __init__(self, inputs: int, filters: V2) -> None:
        super().__init__()
        stride = 1 if filters.one else 2
        three, double = filters.three, filters.double
        self.halves = not filters.one
        if not self.halves:
            self.one = _norm_unit(inputs, filters.one, 1)
        self.three = _chain(
            reduce=_norm_unit(inputs, filters.reduce3, 1), conv=_norm_unit(filters.reduce3, three, 3, stride=stride)
        )
        self.twice = _chain(
            reduce=_norm_unit(inputs, filters.reduce_double, 1),
            conv1=_norm_unit(filters.reduce_double, double, 3),
            conv2=_norm_unit(double, double, 3, stride=stride),
        )
        pool: nn.Module
        if filters.kind == "max":
            pool = nn.MaxPool2d(3, stride=stride, padding=1)
        else:
            pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
        self.pool = _chain(pool=pool) if self.halves else _chain(pool=pool, conv=_norm_unit(inputs, filters.pool, 1))
        self.outputs = filters.one + three + double + (inputs if self.halves else filters.pool)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h, w], or sides halved, rounded up."""
        branches = [self.three(x), self.twice(x), self.pool(x)]
        return torch.cat(branches if self.halves else [self.one(x), *branches], 1)


class AuxiliaryHead(nn.Module):
    """Average pool 5x5 of stride 3, 1x1 convolution, two fully connected layers with Dropout 0.7 between.

    [n, inputs, *size] -> logits [n, classes].
    """

    def __init__(self, inputs: int, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        pixels = ((size[0] - 5) // 3 + 1) * ((size[1] - 5) // 3 + 1)
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv = _unit(inputs, _AUX_FILTERS, 1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(_AUX_FILTERS * pixels, _AUX_HIDDEN)
        self.relu1 = nn.ReLU()
        self.dropout = nn.Dropout(_AUX_DROPOUT)
        self.fc = nn.Linear(_AUX_HIDDEN, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, *size] -> logits [n, classes]."""
        x = self.relu1(self.fc1(self.flatten(self.conv(self.pool(x)))))
        logits: Tensor = self.fc(self.dropout(x))
        return logits


class InceptionV1(nn.Module):
    """stem, modules 3a to 5b with max-pools 3x3 of stride 2 after 3b and 4e, mean over the pixels, dropout, fc.

    [n, in_channels, *image_size] -> logits [n, classes]; with the option ``aux``, in training: (logits, logits of
    the head on 4a, logits of the head on 4d), whose losses the paper adds with weight 0.3 each. Weights: He normal,
    fan in; biases 0 (the paper names no draw).
    """

    def __init__(
        self, options: InceptionV1Options, *, in_channels: int, classes: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.stem = _stem_v1(in_channels, lrn=options.lrn)
        self.module3a = ModuleV1(192, V1(64, 96, 128, 16, 32, 32))
        self.module3b = ModuleV1(256, V1(128, 128, 192, 32, 96, 64))
        self.pool3 = _pool_v1()
        self.module4a = ModuleV1(480, V1(192, 96, 208, 16, 48, 64))
        self.module4b = ModuleV1(512, V1(160, 112, 224, 24, 64, 64))
        self.module4c = ModuleV1(512, V1(128, 128, 256, 24, 64, 64))
        self.module4d = ModuleV1(512, V1(112, 144, 288, 32, 64, 64))
        self.module4e = ModuleV1(528, V1(256, 160, 320, 32, 128, 128))
        self.pool4 = _pool_v1()
        self.module5a = ModuleV1(832, V1(256, 160, 320, 32, 128, 128))
        self.module5b = ModuleV1(832, V1(384, 192, 384, 48, 128, 128))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(options.dropout)
        self.fc = nn.Linear(1024, classes)
        self.aux = options.aux
        if self.aux:
            refuse_small("inception-v1", image_size, least=80)
            height, width = ((side + 1) // 2 // 8 for side in image_size)  # where modules 4a to 4e work
            self.aux4a = AuxiliaryHead(512, (height, width), classes)
            self.aux4d = AuxiliaryHead(528, (height, width), classes)
        draw_he_normal(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """[n, in_channels, height, width] -> logits [n, classes], three of them with ``aux`` in training."""
        x = self.pool3(self.module3b(self.module3a(self.stem(x))))
        at_4a = self.module4a(x)
        at_4d = self.module4d(self.module4c(self.module4b(at_4a)))
        x = self.pool4(self.module4e(at_4d))
        x = self.module5b(self.module5a(x))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.pool(x))))
        if self.aux and self.training:
            return logits, self.aux4a(at_4a), self.aux4d(at_4d)
        return logits


class InceptionV2(nn.Sequential):
    """Children conv1, pool1, reduce2, conv2, pool2, module3a to module5b, pool, flatten, dropout, fc.

    [n, in_channels, height, width] -> logits [n, classes]. Weights: He normal, fan in; biases 0 (the paper names no
    draw).
    """

    def __init__(self, options: InceptionV2Options, *, in_channels: int, classes: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = _separable(in_channels, 64) if options.separable else _norm_unit(in_channels, 64, 7, stride=2)
        layers["pool1"] = nn.MaxPool2d(3, stride=2, padding=1)
        layers["reduce2"], layers["conv2"] = _norm_unit(64, 64, 1), _norm_unit(64, 192, 3)
        layers["pool2"] = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 192
        for name, filters in _V2_MODULES.items():
            module = ModuleV2(channels, filters)
            layers[f"module{name}"], channels = module, module.outputs
        add_classifier(layers, channels, classes, dropout=options.dropout)
        super().__init__(layers)
        draw_he_normal(self)


def inception_v1(
    options: InceptionV1Options, *, in_channels: int, classes: int, image_size: tuple[int, int]
) -> InceptionV1:
    """Make Inception v1 for the lab; weights come from the global random state.

    Raises ``UserError`` for ``aux``, and for images under 32x32, which its five halvings would not survive.
    Source: Szegedy et al., Going Deeper with Convolutions (2015), table 1 and section 5; 6,998,552 parameters with
    1000 classes, 13,378,280 with the auxiliary heads at 224x224.
    """
    if options.aux:
        raise UserError(
            "model.options.aux=True: the training loop takes one logits tensor a batch, not the auxiliary heads' "
            "too; leave it out, or make torchreaper.lab.models.InceptionV1 for a loop of your own"
        )
    refuse_small("inception-v1", image_size, least=32)
    return InceptionV1(options, in_channels=in_channels, classes=classes, image_size=image_size)


def inception_v2(
    options: InceptionV2Options, *, in_channels: int, classes: int, image_size: tuple[int, int]
) -> InceptionV2:
    """Make Inception v2; weights come from the global random state.

    Raises ``UserError`` for images under 32x32, which its five halvings would not survive.
    Source: Ioffe & Szegedy, Batch Normalization (2015), section 4.2 and appendix, figure 5.
    """
    refuse_small("inception-v2", image_size, least=32)
    return InceptionV2(options, in_channels=in_channels, classes=classes)


def _stem_v1(in_channels: int, *, lrn: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"], layers["pool1"] = _unit(in_channels, 64, 7, stride=2), _pool_v1()
    if lrn:
        layers["lrn1"] = nn.LocalResponseNorm(5)
    layers["reduce2"], layers["conv2"] = _unit(64, 64, 1), _unit(64, 192, 3)
    if lrn:
        layers["lrn2"] = nn.LocalResponseNorm(5)
    layers["pool2"] = _pool_v1()
    return nn.Sequential(layers)


def _pool_v1() -> nn.MaxPool2d:
    """Halves the sides as published: windows may hang over the right and lower edge."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _unit(inputs: int, filters: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, filters, kernel, stride=stride, padding=kernel // 2)
    return _chain(conv=conv, relu=nn.ReLU())


def _norm_unit(inputs: int, filters: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, filters, kernel, stride=stride, padding=kernel // 2, bias=False)
    return _chain(conv=conv, norm=nn.BatchNorm2d(filters), relu=nn.ReLU())


def _separable(inputs: int, filters: int) -> nn.Sequential:
    depthwise = nn.Conv2d(inputs, 8 * inputs, 7, stride=2, padding=3, groups=inputs, bias=False)
    conv = nn.Conv2d(8 * inputs, filters, 1, bias=False)
    return _chain(depthwise=depthwise, conv=conv, norm=nn.BatchNorm2d(filters), relu=nn.ReLU())


def _chain(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))
