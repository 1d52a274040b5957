"""How well one way of scoring filters agrees with another, such as a criterion with the oracle (section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.analysis.values import checked
from torchreaper.criteria import rounded, worst_first
from torchreaper.errors import ReaperError

Values = Float[Tensor, " filters"]


@dataclass(frozen=True)
class Agreement:
    """Correlations between two scores of the same filters, each in [-1, 1].

    A side on which all filters tie ranks nothing: all three are NaN then. Scores that agree to 1e-9 of the largest are
    ties, as in the ranking itself.

    Attributes:
        filters: how many.
        pearson: on the values.
        pearson_ranks: on the positions in the global ranking, where ties go in order of layer, then index. Filters that
            tie on both sides stand in the same order on both, which raises it.
        spearman: on average ranks, which do not depend on the order of the filters.
    """

    filters: int
    pearson: float
    pearson_ranks: float
    spearman: float


def agreement(scores: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Agreement:
    """Agreement over all filters of all layers (the paper: 0.38 on values, 0.58 on ranks for orthogonality).

    Args:
        scores: layer -> one score per filter; layers in order of execution, which decides ties.
        truth: the same layers, in any order. Both must be oriented alike: a score is higher for a filter that goes
            earlier, so the oracle's truth is MINUS the accuracy lost.

    Raises:
        ReaperError: other layers or shapes, or values that are not finite.
    """
    pairs = _paired(scores, truth)
    return _agreement(torch.cat([a for a, _ in pairs.values()]), torch.cat([b for _, b in pairs.values()]))


def by_layer(scores: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Agreement]:
    """:func:`agreement` of each layer on its own, as if it were the whole network."""
    return {name: _agreement(a, b) for name, (a, b) in _paired(scores, truth).items()}


def _paired(scores: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    for argument, mine, other in (("scores", scores, truth), ("truth", truth, scores)):
        if missing := [name for name in other if name not in mine]:
            raise ReaperError(f"{argument}: no layer {', '.join(map(repr, missing))}; both sides must hold the same")
    first, second = checked("scores", scores), checked("truth", truth)
    for name in first:
        if len(first[name]) != len(second[name]):
            raise ReaperError(
                f"layer {name!r}: {len(first[name])} filters in scores, {len(second[name])} in truth; must be as many"
            )
    return {name: (first[name], second[name]) for name in first}


def _agreement(first: Values, second: Values) -> Agreement:
    if any(bool((side == side[0]).all()) for side in (rounded(first), rounded(second))):
        return Agreement(len(first), nan, nan, nan)
    return Agreement(
        filters=len(first),
        pearson=_pearson(first, second),
        pearson_ranks=_pearson(_positions(first), _positions(second)),
        spearman=_pearson(_average_ranks(first), _average_ranks(second)),
    )


def _positions(values: Values) -> Values:
    """Place in the ranking, worst = 0."""
    places = torch.empty_like(values)
    places[worst_first(values)] = torch.arange(len(values), dtype=values.dtype, device="cpu")
    return places


def _average_ranks(values: Values) -> Values:
    """Ranks from 1 on; filters that tie share the mean of their ranks."""
    values = rounded(values)
    ordered = values.sort().values
    first = torch.searchsorted(ordered, values)
    last = torch.searchsorted(ordered, values, right=True)
    return (first + last + 1).double() / 2


def _pearson(first: Values, second: Values) -> float:
    a, b = (_standardised(side) for side in (first, second))
    return max(-1.0, min(1.0, float(a @ b)))


def _standardised(values: Values) -> Values:
    """Mean 0, length 1; scaled first, so that the squares of very large or small values stay in range."""
    values = values / values.abs().max()
    values = values - values.mean()
    length: Tensor = torch.linalg.vector_norm(values)
    return values / length
