"""What a network costs with and without some filters: multiply-adds, parameters, activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Int
from torch import Tensor, nn

from torchreaper.channels import Flow
from torchreaper.filters import cuts
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


Shapes = Mapping[str, Mapping[str, torch.Size]]
"""Module -> tensor -> shape."""


def tensor_shapes(model: nn.Module) -> dict[str, dict[str, torch.Size]]:
    """The shapes of all parameters, by the module that holds them."""
    return {
        name: {tensor: p.shape for tensor, p in module._parameters.items() if p is not None}
        for name, module in model.named_modules()
    }


def network_cost(model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"], shapes: Shapes) -> Cost:
    """The cost of ``model`` without the filters ``ids`` (flow ids; none: the whole network).

    Args:
        shapes: of the whole network, whose tensors may be smaller now.
    """
    gone = {
        name: {tensor: cut.size(shapes[name][tensor]) for tensor, cut in entries.items() if tensor in shapes[name]}
        for name, entries in cuts(flow, ids).items()
    }
    parameters = sum(_count(shapes, name) for name, _ in model.named_parameters())
    parameters -= sum(lost for entries in gone.values() for lost in entries.values())
    multiply_adds = activations = 0
    for name, positions in flow.positions.items():
        module, weight = model.get_submodule(name), shapes[name].get("weight")
        if weight is None and isinstance(module, CONVOLUTIONS):  # computed from other parameters; nothing of it can go
            multiply_adds += (
                positions * module.out_channels * module.in_channels // module.groups * prod(module.kernel_size)
            )
        elif weight is not None and len(weight) > 1:
            multiply_adds += positions * (weight.numel() - gone.get(name, {}).get("weight", 0))
        site = flow.sites.get(name)
        lost = int(torch.isin(site.origin, ids).sum()) if site is not None else 0
        activations += positions * (flow.widths[name] - lost)
    return Cost(multiply_adds, parameters, activations)


def _count(shapes: Shapes, parameter: str) -> int:
    module, _, tensor = parameter.rpartition(".")
    return shapes[module][tensor].numel()
