"""The scale of the norm behind a filter (Liu 2017, "network slimming")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer
from torchreaper.flow.channels import NOBODY


@dataclass(frozen=True)
class BatchNormScale:
    """Filters that their norm scales down most go first.

    Score = minus |gamma|, the filter's entry in the weight of the norm it passes; the mean where it passes several
    (DenseNet). The source trains with a penalty on gamma; without one gammas stay near 1 for long.

    Cost: reads one number per filter and norm; no data.
    """

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus the mean scale of every filter, by layer."""
        total = torch.zeros(bank.flow.total, dtype=torch.float64, device="cpu")
        count = torch.zeros_like(total)
        for name, tensors in bank.flow.shares.items():
            gamma = bank.model.get_submodule(name)._parameters.get("weight")
            for share in tensors.get("weight", ()):
                if share.role == "norm" and gamma is not None:
                    mine = share.origin != NOBODY
                    total.index_add_(0, share.origin[mine], gamma.detach().abs().double().cpu()[mine])
                    count.index_add_(0, share.origin[mine], torch.ones_like(share.origin[mine], dtype=torch.float64))
        return {layer.name: -_mean(layer, total, count) for layer in bank.ranked}


def _mean(layer: FilterLayer, total: Tensor, count: Tensor) -> Float[Tensor, " filters"]:
    own = slice(layer.start, layer.start + layer.filters)
    if not count[own].all():
        raise ReaperError(
            f"layer {layer.name!r}: has filters that no norm with a weight follows; name it in skip, or use another "
            "criterion"
        )
    return total[own] / count[own]
