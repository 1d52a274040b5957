"""Which network a recipe asks for: a name from ``MODELS`` and the options of its builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from torchreaper.lab.models.cnet import CNetOptions, cnet
from torchreaper.lab.models.densenet import DEPTHS as DENSENETS
from torchreaper.lab.models.densenet import DenseNet5Options, DenseNetOptions, densenet
from torchreaper.lab.models.imagenet_resnet import BLOCKS as IMAGENET_RESNETS
from torchreaper.lab.models.imagenet_resnet import ImageNetResNetOptions, imagenet_resnet
from torchreaper.lab.models.inception import InceptionV1Options, InceptionV2Options, inception_v1, inception_v2
from torchreaper.lab.models.mobilenet_v2 import MobileNetV2Options, mobilenet_v2
from torchreaper.lab.models.resnet import DEPTHS as RESNETS
from torchreaper.lab.models.resnet import ResNetOptions, resnet
from torchreaper.lab.models.vgg import VGG16Options, vgg16
from torchreaper.lab.settings import Settings, did_you_mean, parse, parse_nested


class Builder(NamedTuple):
    """How one network is made: its options, and the function that makes it out of them."""

    options: type[Settings]
    build: Callable[..., nn.Module]


def _deep(options: type[Settings], make: Callable[..., nn.Module], depth: int) -> Builder:
    return Builder(options, partial(make, depth=depth))


MODELS: dict[str, Builder] = {
    "cnet": Builder(CNetOptions, cnet),
    **{f"resnet{depth}": _deep(ResNetOptions, resnet, depth) for depth in RESNETS},
    **{
        f"densenet{depth}": _deep(DenseNet5Options if depth == 5 else DenseNetOptions, densenet, depth)
        for depth in DENSENETS
    },
    "vgg16": Builder(VGG16Options, vgg16),
    **{f"resnet{depth}": _deep(ImageNetResNetOptions, imagenet_resnet, depth) for depth in IMAGENET_RESNETS},
    "inception-v1": Builder(InceptionV1Options, inception_v1),
    "inception-v2": Builder(InceptionV2Options, inception_v2),
    "mobilenet_v2": Builder(MobileNetV2Options, mobilenet_v2),
}


class ModelSpec(Settings):
    """The recipe's ``model:`` section.

    ``options`` are those of the network (``CNetOptions``, ``ResNetOptions``, ...); after checking, all stand here.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"unknown model; {did_you_mean(name, MODELS)}")
        return name

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" not in info.data:  # refused already
            return options
        return parse_nested(MODELS[info.data["name"]].options, options).model_dump()


def build(
    name: str,
    options: Mapping[str, Any],
    *,
    in_channels: int,
    classes: int,
    image_size: tuple[int, int],
    generator_seed: int,
) -> nn.Module:
    """Make the network ``name`` for images [n, in_channels, *image_size] and ``classes`` classes.

    All weights are drawn on the CPU from ``generator_seed`` alone; the global random state is left as it was.
    Raises ``UserError`` for an unknown name, unknown or wrong options, and images too small for the network.
    """
    spec = parse(ModelSpec, {"name": name, "options": dict(options)}, at="model")
    builder = MODELS[spec.name]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: that would also reseed the accelerators, which this fork does not put back.
        torch.default_generator.manual_seed(generator_seed)
        return builder.build(
            builder.options(**spec.options), in_channels=in_channels, classes=classes, image_size=image_size
        )
