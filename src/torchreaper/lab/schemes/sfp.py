"""Soft filter pruning (He et al. 2018): set the smallest filters to 0 after every epoch, and let them grow again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.criteria.ranking import quota
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Setup, Spec

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def shortest(weight: Float[Tensor, "filters ..."], share: float) -> Int[Tensor, " chosen"]:
    """The `share` of a layer's filters with the smallest L2 norms, floor(share * filters); of equals, the first."""
    norms = weight.flatten(1).norm(dim=1)
    chosen: Tensor = norms.argsort(stable=True)[: quota(share, len(weight))]
    return chosen


class SoftPruning(Attached):
    """Sets filters to 0 at the end of an epoch; nothing holds them there."""

    def __init__(self, layers: Mapping[str, Convolution], spec: SFPSpec, last: int) -> None:
        self._layers, self._spec, self._last = dict(layers), spec, last

    @torch.no_grad()
    def ended(self, epoch: int) -> tr.Transition | None:
        """The network was judged with all its filters; the next epoch begins without the smallest."""
        if epoch <= self._last and epoch % self._spec.every == 0:
            for layer in self._layers.values():
                gone = shortest(layer.weight, self._spec.fraction)
                layer.weight[gone] = 0
                if layer.bias is not None and layer.bias.requires_grad:
                    layer.bias[gone] = 0
        return None


class SFPSpec(Spec):
    """The scheme `sfp`: soft pruning's regrowth, without the pruning that the authors end with: nothing is cut off.

    `fraction`: of each layer's filters. `every`: so many epochs. `until`: share of the epochs after which filters are
    left alone, so that those set to 0 last can grow again.
    """

    summary: ClassVar[str] = "set the smallest filters to 0 after every epoch, and let them grow again"
    source: ClassVar[str] = "He et al. 2018, algorithm 1"
    hands: ClassVar[frozenset[str]] = frozenset({"weights"})
    name: Literal["sfp"] = "sfp"
    fraction: float = Field(default=0.3, gt=0, lt=1)
    every: int = Field(default=1, ge=1)
    until: float = Field(default=0.8, gt=0, lt=1)

    def last(self, epochs: int) -> int:
        """The last epoch after which filters may be set to 0; at least one epoch follows."""
        return min(epochs - 1, quota(self.until, epochs))

    def check(self, epochs: int) -> None:
        """Refuse a schedule in which nothing happens."""
        if self.last(epochs) < self.every:
            raise UserError(
                f"scheme: every={self.every}, until={self.until}: nothing is ever set to 0 in {epochs} epochs; "
                "lower every, raise until or epochs"
            )

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work on every convolution whose share is at least one filter; not depthwise ones.

        Nor those whose filters could not grow again, as they are frozen, or would not be 0, as they are computed.
        """
        trained = {
            name: module
            for name, module in setup.model.named_modules()
            if isinstance(module, Convolution)
            # Not by its attribute: to read a weight that is computed may change what computes it.
            and (weight := module._parameters.get("weight")) is not None
            and weight.requires_grad
        }
        if not trained:
            raise UserError("scheme='sfp': no convolution has a weight that is trained and its own; leave sfp out")
        layers = {
            name: module
            for name, module in trained.items()
            if quota(self.fraction, module.out_channels) and (module.groups == 1 or module.groups < module.in_channels)
        }
        if not layers:
            raise UserError(f"scheme.fraction={self.fraction}: is less than one filter in every layer; raise it")
        return SoftPruning(layers, self, self.last(setup.epochs))
