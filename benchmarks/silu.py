"""A network for readings.py in which a map before its activation and behind it are not the same."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchreaper.lab.models.cnet import CNetOptions
from torchreaper.lab.models.cnet import cnet as plain


def cnet(in_channels: int, classes: int, image_size: tuple[int, int], **options: Any) -> nn.Module:
    """The zoo's ``cnet`` with SiLU for ReLU; the names of its children stay."""
    made = plain(CNetOptions(**options), in_channels=in_channels, classes=classes, image_size=image_size)
    for name, module in made.named_children():
        if isinstance(module, nn.ReLU):
            setattr(made, name, nn.SiLU())
    return made
