"""Numbers that figures are drawn from, refused where they are empty, not finite or do not belong together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np


def filled(argument: str, table: Mapping[Any, Any], what: str) -> None:
    """Refuse an empty mapping; ``what`` is the word for one of its keys."""
    if not table:
        raise ValueError(f"{argument} is empty: at least one {what} is needed")


def numbers(argument: str, values: Any) -> np.ndarray:
    """``values`` as a vector of finite float64, not empty."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{argument}: of shape {vector.shape}, but a list with a number for every filter is needed")
    if not np.isfinite(vector).all():
        worst = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ValueError(f"{argument}: filter {worst} is {vector[worst]}, not a finite number")
    return vector


def alike(argument: str, names: Collection[str], other: str, wanted: Collection[str]) -> None:
    """Refuse ``names`` that are not those of the argument ``other``."""
    missing, extra = [n for n in wanted if n not in names], [n for n in names if n not in wanted]
    if missing or extra:
        lacks = [f"lacks {missing}"] if missing else []
        has = [f"has {extra} more"] if extra else []
        raise ValueError(f"{argument} {' and '.join(lacks + has)} than {other}: both must name the same")


def within(argument: str, values: Any, low: float, high: float) -> np.ndarray:
    """``values`` as an array, none outside ``low`` to ``high`` but for rounding; NaN (undefined) may be among them."""
    array = np.asarray(values, dtype=np.float64)
    outside = array[(array < low - 1e-6) | (array > high + 1e-6)]
    if outside.size:
        raise ValueError(f"{argument}: {outside.flat[0]:g} is not from {low:g} to {high:g}")
    return array


def at_most(argument: str, table: Collection[Any], most: int, what: str) -> None:
    """Refuse more of something than a figure has room for."""
    if len(table) > most:
        raise ValueError(f"{argument}: {len(table)} {what}, but there is room for {most}; draw several figures")
