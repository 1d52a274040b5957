"""The networks of ImageNet's size, from torchvision and timm, and what one of them trains with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from training import Training

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.zoo import torchvision_importable

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-7, weight_decay=0.05),
}
"""Their steps are tiny: a network without norms (VGG-16) diverges within a few on random images at usual rates."""


@dataclass(frozen=True)
class Published:
    """A network and how it is measured.

    Attributes:
        key: what ``--only`` takes.
        label: what the tables say.
        name: "package:model".
        batch: images in a batch.
        optimizers: those whose memory is measured; the first one is timed.
        side: of the square images.
    """

    key: str
    label: str
    name: str
    batch: int
    optimizers: tuple[str, ...] = ("sgd",)
    side: int = 224

    def build(self) -> nn.Module:
        """The network, with random weights."""
        torchvision_importable()
        package, name = self.name.split(":")
        torch.manual_seed(0)
        if package == "torchvision":
            from torchvision.models import get_model

            model: nn.Module = get_model(name, weights=None)
            return model
        import timm

        return timm.create_model(name, pretrained=False)

    def training(self, optimizer: str, batch: int, device: torch.device = CPU) -> Training:
        """It in training on one random batch."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, self.side, self.side, generator=generator).to(device)
        training = Training(self.build(), images, torch.randint(10, (batch,), generator=generator).to(device))
        training.optimizer = OPTIMIZERS[optimizer](training.model.parameters())
        return training


PUBLISHED = (
    Published("resnet50", "ResNet-50", "torchvision:resnet50", 4, ("sgd", "adamw")),
    Published("vgg16", "VGG-16", "torchvision:vgg16", 2, ("sgd", "adamw")),
    Published("resnet152", "ResNet-152", "torchvision:resnet152", 2),
    Published("convnext_large", "ConvNeXt-L", "torchvision:convnext_large", 1, ("adamw",)),
)
TINY = Published("tiny", "tiny ResNet (timm:test_resnet)", "timm:test_resnet", 2, side=64)
"""For tests."""
NETWORKS = {network.key: network for network in (*PUBLISHED, TINY)}
