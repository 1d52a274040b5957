"""Which network a recipe asks for: a name from ``MODELS`` and the options of its builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from torchreaper.lab.models.cnet import CNetOptions, cnet
from torchreaper.lab.models.resnet import DEPTHS, ResNetOptions, resnet
from torchreaper.lab.settings import Settings, did_you_mean, parse, parse_nested


class Builder(NamedTuple):
    """How one network is made: its options, and the function that makes it out of them."""

    options: type[Settings]
    build: Callable[..., nn.Module]


def _resnet(depth: int) -> Builder:
    def build(options: ResNetOptions, **shape: Any) -> nn.Module:
        return resnet(options, depth=depth, **shape)

    return Builder(ResNetOptions, build)


MODELS: dict[str, Builder] = {
    "cnet": Builder(CNetOptions, cnet),
    **{f"resnet{depth}": _resnet(depth) for depth in DEPTHS},
}


class ModelSpec(Settings):
    """The recipe's ``model:`` section.

    ``options`` are those of the network (``CNetOptions``, ``ResNetOptions``); after checking, all stand here.
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
