"""The networks that are measured, and the training batches they are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from training import Training

import torchreaper as tr
from torchreaper.lab.models import MODELS, build

FRACTION = 0.30
ENDLESS = 10**6  # cycles: more than are ever measured


@dataclass(frozen=True)
class Net:
    """A network and its batch.

    Attributes:
        key: what ``--only`` takes.
        label: what the table says.
        model, options: name and options in ``torchreaper.lab.models``.
        batch: images in a batch, for the CPU; ``cuda_batch`` on a GPU.
        side: of the square images; ``cuda_side`` on a GPU, where it differs.
    """

    key: str
    label: str
    model: str
    batch: int
    cuda_batch: int
    options: Mapping[str, Any] = field(default_factory=dict)
    side: int = 32
    cuda_side: int | None = None
    classes: int = 10

    def image_side(self, device: torch.device) -> int:
        return self.cuda_side if device.type == "cuda" and self.cuda_side else self.side

    def batch_size(self, device: torch.device) -> int:
        return self.cuda_batch if device.type == "cuda" else self.batch

    def build(self, side: int) -> nn.Module:
        return build(
            self.model,
            self.options,
            in_channels=3,
            classes=self.classes,
            image_size=(side, side),
            generator_seed=0,
        )


_POOLED = {"kernel": 5, "pool": True, "init": "normal"}
NETS = (
    Net("c3-32", "C3(32) 3x3", "cnet", 64, 512, {"depth": 3, "width": 32}),
    Net("c3-32-pooled", "C3(32) 5x5, pooled", "cnet", 64, 512, {"depth": 3, "width": 32, **_POOLED}),
    Net("c8-32", "C8(32)", "cnet", 64, 512, {"depth": 8, "width": 32}),
    Net("c8-128", "C8(128)", "cnet", 16, 256, {"depth": 8, "width": 128}),
    Net("resnet20", "ResNet-20", "resnet20", 64, 512),
    Net("resnet50", "ResNet-50", "resnet50", 16, 64, side=64, cuda_side=224, classes=1000),
    Net("vgg16", "VGG-16 (CIFAR)", "vgg16", 32, 256),
    Net("densenet40", "DenseNet-40", "densenet40", 32, 128),
    Net("mobilenet_v2", "MobileNetV2 (CIFAR)", "mobilenet_v2", 32, 256, {"strides": "cifar"}),
)
KEYS = tuple(net.key for net in NETS)


def available(net: Net) -> bool:
    """Whether this version of the lab has the network."""
    return net.model in MODELS


class Bench:
    """One network with one batch on one device: makes trainings of the same weights, as many as are wanted."""

    def __init__(
        self,
        net: Net,
        device: torch.device,
        *,
        batch: int | None = None,
        channels_last: bool = False,
        amp: bool = False,
    ) -> None:
        self.net, self.device = net, device
        self.side = net.image_side(device)
        self.batch = batch or net.batch_size(device)
        self.model = net.build(self.side)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(self.batch, 3, self.side, self.side, generator=generator).to(device)
        self.labels = torch.randint(net.classes, (self.batch,), generator=generator).to(device)
        self._options = {"channels_last": channels_last, "amp": amp}

    @property
    def example(self) -> torch.Tensor:
        """Two images on the CPU, where ``model`` is: enough to find the channels."""
        return self.images[:2].cpu()

    def training(self, model: nn.Module | None = None) -> Training:
        """``model``, or a copy of the network, in training."""
        model = deepcopy(self.model) if model is None else model
        return Training(model, self.images, self.labels, **self._options)

    def without(self, filters: Mapping[str, tuple[int, ...]], mode: str) -> Training:
        """A copy of the network in training, in the sub-network phase without ``filters``."""
        training = self.training()
        bank = tr.find_filters(training.model, training.images)
        bank.attach(training.optimizer)
        bank.drop(filters, mode=mode)
        return training

    def uniform(self) -> dict[str, tuple[int, ...]]:
        """floor(0.3 J) random filters of every ranked layer."""
        bank = tr.find_filters(self.model, self.example)
        return bank.preview(FRACTION, "random", max_per_layer=FRACTION).filters

    def describe(self) -> dict[str, Any]:
        return {"key": self.net.key, "net": self.net.label, "batch": self.batch, "image": f"{self.side}x{self.side}"}


def repr_on(training: Training, mode: str, cycles: int = ENDLESS) -> tr.RePr:
    """RePr that drops at one call of ``step`` and restores at the next, evenly over the layers."""
    return tr.RePr(
        training.model,
        training.optimizer,
        training.images,
        full=1,
        sub=1,
        cycles=cycles,
        fraction=FRACTION,
        max_per_layer=FRACTION,
        subnetwork=mode,
    )
