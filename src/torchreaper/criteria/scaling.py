"""Scores of different layers on one scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def by_layer_norm(scores: Mapping[str, Float[Tensor, " filters"]]) -> dict[str, Float[Tensor, " filters"]]:
    """Each layer's scores over their Euclidean length (Molchanov 2016, section 2.2); a layer of zeros stays zero.

    Gradients and activations differ by orders of magnitude between layers: ranked as they are, over the whole network,
    the layer with the smallest would lose all its filters. It is no perfect scale: J equal filters get 1 / sqrt(J)
    each, so wide layers lose more.
    """
    scaled = {}
    for name, values in scores.items():
        largest = values.abs().max()  # first, so that squares neither overflow nor vanish
        unit = values / torch.where(largest > 0, largest, 1.0)
        length = unit.norm()
        scaled[name] = unit / torch.where(length > 0, length, 1.0)
    return scaled
