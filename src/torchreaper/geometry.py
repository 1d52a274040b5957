"""The geometry of a layer's filters, as pure functions of its weight: directions and overlap."""

from __future__ import annotations

from math import exp, lgamma, pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.errors import ReaperError

VARIANTS = ("paper", "released", "corrected")


def unit_rows(rows: Float[Tensor, "filters dims"]) -> Float[Tensor, "filters dims"]:
    """Every row at unit length, in float64; a row of zeros stays zero."""
    rows = rows.detach().double()
    # Scaled first, so that the squares of very large or very small weights neither overflow nor vanish.
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


def overlap(
    weight: Float[Tensor, "filters *kernel"], variant: str = "paper", groups: int = 1
) -> Float[Tensor, " filters"]:
    """How much each filter overlaps with the others of its layer; higher means more redundant.

    Args:
        weight: ``[filters, d]`` or a convolution's weight; filters are its rows.
        variant: "paper": O_f = sum_j P[f, j] / J with P = |W^ W^T - I|, rows of W^ at unit length (section 3 of
            the paper). "released": the released code: W divided by one norm for the whole layer, signed products
            averaged, the absolute value last.
            "corrected": the paper's O_f over its expectation for random directions in this d and J.
        groups: filters are compared inside each of this many blocks of rows (grouped convolutions).

    Returns:
        float64, on the device of ``weight``.

    Raises:
        ReaperError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ReaperError(f"variant={variant!r}: must be one of {', '.join(VARIANTS)}")
    blocks = [_one_group(block.flatten(1), variant) for block in weight.detach().chunk(groups)]
    return torch.cat(blocks)


def _one_group(rows: Float[Tensor, "filters dims"], variant: str) -> Float[Tensor, " filters"]:
    filters, dims = rows.shape
    if variant == "released":
        rows = rows.double()
        rows = rows / rows.norm().clamp_min(torch.finfo(torch.float64).tiny)
        # The products' sum over j is one product with the sum of all rows: no J x J matrix is needed.
        return ((rows @ rows.sum(dim=0) - (rows * rows).sum(dim=1)) / filters).abs()
    unit = unit_rows(rows)
    scores = _overlaps(unit) / filters
    if variant == "corrected" and filters > 1:
        scores = scores / expected_overlap(filters, dims)
    return scores


_BLOCK = 256
"""Rows of the J x J cosine matrix that exist at a time."""


def _overlaps(unit: Float[Tensor, "filters dims"]) -> Float[Tensor, " filters"]:
    """Sum of |cos| of every filter with all others. The matrix is symmetric: only one half of it is computed."""
    sums = unit.new_zeros(len(unit))
    for first in range(0, len(unit), _BLOCK):
        last = first + _BLOCK
        cosines = (unit[first:last] @ unit[first:].T).abs_()
        cosines.diagonal().zero_()
        sums[first:last] += cosines.sum(dim=1)
        sums[last:] += cosines[:, _BLOCK:].sum(dim=0)
    return sums


def expected_cosine(dims: int) -> float:
    """E |cos| between two random directions in ``dims`` dimensions; near ``sqrt(2 / (pi dims))``."""
    return exp(lgamma(dims / 2) - lgamma((dims + 1) / 2)) / sqrt(pi)


def expected_overlap(filters: int, dims: int) -> float:
    """E O_f of a layer of ``filters`` random directions in ``dims`` dimensions; the zero diagonal counts."""
    return (filters - 1) / filters * expected_cosine(dims)
