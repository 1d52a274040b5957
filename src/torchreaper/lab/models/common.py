"""What the networks share: their last layers, the first draw of the weights, and the refusal of too small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from torchreaper.lab.errors import UserError


def add_classifier(layers: OrderedDict[str, nn.Module], channels: int, classes: int, *, dropout: float = 0.0) -> None:
    """Append mean over the pixels, dropout (if any) and the fully connected layer: pool, flatten, dropout, fc."""
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["fc"] = nn.Linear(channels, classes)


def draw_he_normal(net: nn.Module) -> None:
    """Draw the weights of all convolutions and fully connected layers: He normal, fan in; biases 0.

    Source: He et al., Delving Deep into Rectifiers (2015), equation 10.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def refuse_small(name: str, image_size: tuple[int, int], *, least: int) -> None:
    """Raise ``UserError`` where a side of the images [height, width] is under ``least`` pixels."""
    if min(image_size) < least:
        size = "x".join(map(str, image_size))
        raise UserError(f"model.name={name!r}: needs images of at least {least}x{least} pixels, these have {size}")
