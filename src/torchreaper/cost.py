"""What a network costs with and without some filters: multiply-adds, parameters, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from torchreaper.filters import cuts, tensor_of
from torchreaper.flow.channels import Flow, Share
from torchreaper.flow.operations import CONVOLUTIONS
from torchreaper.state import Cut


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
    """The cost of ``model`` without the filters ``ids`` (flow ids; none: the whole network), in any phase."""
    gone, mine = cuts(flow, ids), flow.marked(ids)
    parameters = 0
    for name, parameter in model.named_parameters():
        module, _, tensor = name.rpartition(".")
        parameters += _left(parameter, flow.shares.get(module, {}).get(tensor, ()), gone.get(module, {}).get(tensor))
    multiply_adds = activations = 0
    for name, positions in flow.positions.items():
        layer: Any = model.get_submodule(name)
        weight = tensor_of(layer, "weight")
        if weight is None and isinstance(layer, CONVOLUTIONS):  # computed from other parameters; nothing of it can go
            kernel = prod(layer.kernel_size)
            multiply_adds += flow.applications[name] * layer.out_channels * layer.in_channels // layer.groups * kernel
        elif weight is not None and weight.ndim > 1:
            shares = flow.shares.get(name, {}).get("weight", ())
            multiply_adds += flow.applications[name] * _left(weight, shares, gone.get(name, {}).get("weight"))
        site = flow.sites.get(name)
        lost = int(mine[site.origin].sum()) if site is not None else 0
        activations += positions * (flow.widths[name] - lost)
    return Cost(multiply_adds, parameters, activations)


def _left(tensor: Tensor, shares: Sequence[Share], cut: Cut | None) -> int:
    """How many entries the tensor has without ``cut``; in a compact phase some of them are not there now."""
    shape = list(tensor.shape)
    for share in shares:
        shape[share.dim] = len(share.origin)
    if cut is not None:
        for dim, positions in enumerate((cut.rows, cut.columns)):
            if len(positions):
                shape[dim] -= len(positions)
    return prod(shape)
