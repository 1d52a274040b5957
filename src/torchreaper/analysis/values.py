"""What a mapping of layer -> one value per filter must be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchreaper.errors import ReaperError


def checked(argument: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values in float64 on the CPU, without gradient; layers keep their order.

    Args:
        argument: what the caller knows the mapping by, for the message.
        values: layer -> ``[filters]``, on any device, of any type.

    Raises:
        ReaperError: no layer, or one whose values are not one finite number per filter.
    """
    if not values:
        raise ReaperError(f"{argument}={{}}: no layer; give one value per filter for at least one layer")
    found = {}
    for name, given in values.items():
        layer = torch.as_tensor(given)
        if layer.ndim != 1 or not len(layer):
            raise ReaperError(
                f"{argument} of layer {name!r}: shape {list(layer.shape)}; must be [filters] with at least one filter"
            )
        found[name] = layer.detach().cpu().double()
        if not torch.isfinite(found[name]).all():
            raise ReaperError(
                f"{argument} of layer {name!r}: not finite; look for weights that are not, or leave the layer out"
            )
    return found
