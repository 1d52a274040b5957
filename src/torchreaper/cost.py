"""What a network costs with and without some filters: multiply-adds, parameters, activations."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Int
from torch import Tensor, nn

from torchreaper.channels import Flow
from torchreaper.filters import cuts, tensor_of
from torchreaper.operations import CONVOLUTIONS


@dataclass(frozen=True)
class Cost:
    """Arithmetic and memory of a network.

    Attributes:
        multiply_adds: of convolutions and Linear layers, forward, for one sample. FLOPs are twice that.
        parameters: all of the model's.
        activations: elements of the outputs of convolutions, norms and Linear layers, for one sample;
            what training has to keep.
    """

    multiply_adds: int
    parameters: int
    activations: int


def network_cost(model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"]) -> Cost:
    """The cost of ``model`` without the filters ``ids`` (flow ids; none: the whole network)."""
    gone = cuts(flow, ids)
    parameters = sum(p.numel() for p in model.parameters())
    for name, entries in gone.items():
        module = model.get_submodule(name)
        for tensor, cut in entries.items():
            if isinstance(weight := tensor_of(module, tensor), nn.Parameter):
                parameters -= int(cut.mask(weight).sum())
    multiply_adds = activations = 0
    for name, positions in flow.positions.items():
        module = model.get_submodule(name)
        weight = tensor_of(module, "weight")
        if weight is None and isinstance(module, CONVOLUTIONS):  # computed from other parameters; nothing of it can go
            multiply_adds += (
                positions * module.out_channels * module.in_channels // module.groups * prod(module.kernel_size)
            )
        elif weight is not None and weight.ndim > 1:
            part = gone.get(name, {}).get("weight")
            lost = 0 if part is None else int(part.mask(weight).sum())
            multiply_adds += positions * (weight.numel() - lost)
        site = flow.sites.get(name)
        lost = int(torch.isin(site.origin, ids).sum()) if site is not None else 0
        activations += positions * (flow.widths[name] - lost)
    return Cost(multiply_adds, parameters, activations)
