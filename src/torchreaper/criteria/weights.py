"""The parameters that a filter's weights are, or are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchreaper.criteria.base import Bank
from torchreaper.filters import FilterLayer


@dataclass(frozen=True, eq=False)
class OwnWeight:
    """A parameter whose entries along ``dim`` are the filters' own."""

    parameter: nn.Parameter
    dim: int


def own_weights(bank: Bank, layer: FilterLayer) -> list[OwnWeight]:
    """The parameters that hold the weights of the layer's filters, without biases, as far as they are trained."""
    ids = range(layer.start, layer.start + layer.filters)
    found = []
    for name, tensors in bank.flow.shares.items():
        for tensor, shares in tensors.items():
            mine = [s for s in shares if s.role == "filter" and len(s.origin) and int(s.origin[0]) in ids]
            parameter = bank.model.get_submodule(name)._parameters.get(tensor)
            if mine and tensor != "bias" and parameter is not None and parameter.requires_grad:
                found.append(OwnWeight(parameter, mine[0].dim))
    return found


def per_filter(layer: FilterLayer, parts: Sequence[tuple[OwnWeight, Tensor]]) -> Float[Tensor, " filters"]:
    """For every filter, the sum of the given values over its own entries; float64 on the CPU."""
    total = torch.zeros(layer.filters, dtype=torch.float64, device="cpu")
    for weight, values in parts:
        total += values.detach().double().movedim(weight.dim, 0).flatten(1).sum(1).cpu()
    return total
