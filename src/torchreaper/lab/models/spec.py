"""Which network a recipe asks for: of the zoo, of a library, or of the user's own, and the arguments of its builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.callable_ import EXAMPLE, build_callable
from torchreaper.lab.models.checking import check_detector, check_logits
from torchreaper.lab.models.cnet import CNetOptions, cnet
from torchreaper.lab.models.densenet import DEPTHS as DENSENETS
from torchreaper.lab.models.densenet import DenseNet5Options, DenseNetOptions, densenet
from torchreaper.lab.models.detector import DetectorOptions, detector
from torchreaper.lab.models.faster_rcnn import VARIANTS as FASTER_RCNNS
from torchreaper.lab.models.faster_rcnn import FasterRCNNOptions, faster_rcnn
from torchreaper.lab.models.imagenet_resnet import BLOCKS as IMAGENET_RESNETS
from torchreaper.lab.models.imagenet_resnet import ImageNetResNetOptions, imagenet_resnet
from torchreaper.lab.models.inception import InceptionV1Options, InceptionV2Options, inception_v1, inception_v2
from torchreaper.lab.models.library import build_from_library, library_of
from torchreaper.lab.models.mobilenet_v2 import MobileNetV2Options, mobilenet_v2
from torchreaper.lab.models.resnet import DEPTHS as RESNETS
from torchreaper.lab.models.resnet import ResNetOptions, resnet
from torchreaper.lab.models.vgg import VGG16Options, vgg16
from torchreaper.lab.objects import check_form, check_options, drawing, is_object, reason
from torchreaper.lab.settings import Settings, did_you_mean, parse, parse_nested, show


class Builder(NamedTuple):
    """How one network is made: its options, the function that makes it out of them, and what it is for."""

    options: type[Settings]
    build: Callable[..., nn.Module]
    task: str = "classification"


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
    "detector": Builder(DetectorOptions, detector, "detection"),
    **{name: Builder(FasterRCNNOptions, partial(faster_rcnn, variant=name), "detection") for name in FASTER_RCNNS},
}


_OTHERS = "timm:NAME, torchvision:NAME, package.module:callable"


class ModelSpec(Settings):
    """The recipe's ``model:`` section. Checking it imports nothing; `build` does.

    Attributes:
        name: one of ``MODELS``, ``timm:NAME``, ``torchvision:NAME``, or ``package.module:callable``.
        options: of a network of ``MODELS`` its options (``CNetOptions``, ``ResNetOptions``, ...), all of them once
            checked; of the others the arguments of their builder, as they are.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the network is for; of the user's own nobody knows: ()."""
        if self.name in MODELS:
            return (MODELS[self.name].task,)
        return ("classification",) if library_of(self.name) else ()

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if library := library_of(name):
            if not name.partition(":")[2]:
                raise ValueError(f"names no network; {library}:resnet18 is one")
        elif is_object(name):
            check_form(name, EXAMPLE)
        elif name not in MODELS:
            raise ValueError(f"unknown model; {did_you_mean(name, MODELS)}; or {_OTHERS}")
        return name

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("name")
        if name is None:  # refused already
            return options
        if name in MODELS:
            return parse_nested(MODELS[name].options, options).model_dump()
        check_options(options)
        return options


def build(
    name: str,
    options: Mapping[str, Any],
    *,
    in_channels: int,
    classes: int,
    image_size: tuple[int, int],
    generator_seed: int,
    base: Path | None = None,
    task: str = "classification",
    **more: int,
) -> nn.Module:
    """Make the network ``name`` for images [n, in_channels, *image_size] and ``classes`` classes.

    All weights are drawn on the CPU from ``generator_seed`` alone; the global random state is left as it was.
    A ``package.module:callable`` is looked for in ``base`` and the current folder too. It gets, beside its options,
    what its signature names of ``classes``, ``num_classes``, ``in_channels``, ``in_chans``, ``image_size`` and
    ``more``: for the task vqa ``vocabulary`` and ``words``. ``task`` says what it has to give then.
    Raises ``UserError`` for an unknown name, unknown or wrong options, images too small for the network, sizes that
    no machine holds, and for a network that is not the zoo's if it gives no logits, or is no detector.
    """
    spec = parse(ModelSpec, {"name": name, "options": dict(options)}, at="model")
    if spec.name in MODELS:
        builder = MODELS[spec.name]
        try:
            with drawing(generator_seed):
                # Of another network of the user's own, that this one is built around.
                where = {"base": base, **more} if builder.task == "vqa" else {}
                return builder.build(
                    builder.options(**spec.options),
                    in_channels=in_channels,
                    classes=classes,
                    image_size=image_size,
                    **where,
                )
        except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # of sizes that no machine has
            asked = f"{in_channels}x{'x'.join(map(str, image_size))} pixels, {classes} classes, {show(spec.options)}"
            raise UserError(
                f"model.name={name!r}: cannot be built for {asked} ({reason(error)[:150]}); make it smaller"
            ) from error
    if library_of(spec.name):
        model = build_from_library(
            spec.name,
            spec.options,
            argument="model.name",
            in_channels=in_channels,
            classes=classes,
            seed=generator_seed,
        )
    else:
        offered = {
            "classes": classes,
            "num_classes": classes,
            "in_channels": in_channels,
            "in_chans": in_channels,
            "image_size": image_size,
            **more,
        }
        model = build_callable(
            spec.name, spec.options, argument="model.name", base=base, offered=offered, seed=generator_seed
        )
    look = check_detector if task == "detection" else partial(check_logits, words=more.get("words"))
    with drawing(generator_seed):
        look(model, f"model.name={spec.name!r}", in_channels=in_channels, classes=classes, image_size=image_size)
    return model
