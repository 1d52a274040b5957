"""Orthogonality loss (the RePr paper, section 6): filters of a layer that point in similar directions cost loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Batch, Setup, Spec

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def overlap_sum(weight: Float[Tensor, "filters ..."], groups: int = 1) -> Float[Tensor, ""]:
    """Sum of |W^ W^T - I| over all pairs of filters of a layer, W^ with rows of unit length; within groups.

    The diagonal is left out, which is 0 for every filter but one of length 0; such a filter, dropped and held at full
    width, adds nothing and gets no gradient. So a masked layer costs what the narrow one does.
    """
    rows = F.normalize(weight.flatten(1), dim=1)
    products = rows.reshape(groups, -1, rows.shape[1])
    # Of filters that are orthogonal but for rounding, as those that RePr brings back, it would decide on the gradient.
    products = F.hardshrink(products @ products.mT, 100 * torch.finfo(rows.dtype).eps).abs()
    total: Tensor = products.sum() - products.diagonal(dim1=1, dim2=2).sum()
    return total


class OrthogonalityLoss(Attached):
    """Adds `strength` times the overlap of all convolutions to the loss."""

    def __init__(self, layers: Sequence[Convolution], strength: float) -> None:
        self._layers, self._strength = tuple(layers), strength

    def loss(self, batch: Batch, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss so far and the overlap, in full precision."""
        with torch.autocast(loss.device.type, enabled=False):
            # A layer in a sub-network phase may have any number of filters left: groups that no longer divide it are
            # compared with each other.
            overlaps = [
                overlap_sum(layer.weight, layer.groups if len(layer.weight) % layer.groups == 0 else 1)
                for layer in self._layers
            ]
            return loss + self._strength * torch.stack(overlaps).sum()


class OrthogonalityLossSpec(Spec):
    """The scheme `ol`. `strength`: lambda; the paper's 0.01 is of C3(32), whose sum has about 3,000 terms."""

    summary: ClassVar[str] = "add the overlap of the filters to the loss"
    source: ClassVar[str] = "Prakash et al. 2019, section 6"
    name: Literal["ol"] = "ol"
    strength: float = Field(default=0.01, gt=0)

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work on every convolution that has several filters in a group, of several weights each."""
        layers = [
            module
            for module in setup.model.modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            and module.out_channels > module.groups
            and module.weight[0].numel() > 1
        ]
        if not layers:
            raise UserError("scheme: ol finds no convolution of several filters in the network; leave it out")
        return OrthogonalityLoss(layers, self.strength)
