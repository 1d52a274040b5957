"""What single filters are worth: the accuracy lost when each alone is left out (section 7 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreaper.analysis.values import checked


@dataclass(frozen=True)
class Distribution:
    """The accuracy lost over the filters of one layer, in the units of the input; positive = the filter was useful.

    Attributes:
        layer: module name.
        filters: how many filters.
        mean: mean loss.
        median: half of the filters cost less; between the two middle ones where their number is even.
        low: 5 % quantile, linear between filters.
        high: 95 % quantile.
        least: the smallest loss; negative where accuracy rises.
        most: the largest loss.
        harmless: share of filters whose absence costs nothing (lost <= 0).
    """

    layer: str
    filters: int
    mean: float
    median: float
    low: float
    high: float
    least: float
    most: float
    harmless: float


def distributions(lost: Mapping[str, Tensor]) -> list[Distribution]:
    """The paper's figure of the greedy oracle in numbers, layer by layer.

    Args:
        lost: layer -> ``[filters]``: accuracy of the whole network minus accuracy without that filter.

    Raises:
        ReaperError: no layer, or one whose values are not one finite number per filter.
    """
    return [_distribution(name, values) for name, values in checked("lost", lost).items()]


def _distribution(layer: str, lost: Tensor) -> Distribution:
    points = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64, device="cpu")
    least, low, median, high, most = torch.quantile(lost, points).tolist()
    return Distribution(
        layer=layer,
        filters=len(lost),
        mean=float(lost.mean()),
        median=median,
        low=low,
        high=high,
        least=least,
        most=most,
        harmless=float((lost <= 0).double().mean()),
    )
