"""How a dropped filter comes back: directions as pure functions of the layer's rows, then :class:`Reinit`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Union

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchreaper.candidates import Candidates
from torchreaper.errors import ReaperError
from torchreaper.geometry import overlap, unit_rows

Rows = Float[Tensor, "filters dims"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "bias": ("zero", "keep"),
    "consumers": ("keep", "zero", "random"),
    "optimizer_state": ("zero", "layer-mean", "keep"),
    "norms": ("reset", "small", "keep"),
}
_FRESH = {"optimizer_state": "zero", "norms": "reset"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "orthogonal": {"gain": "kept", "bias": "zero", "consumers": "zero", **_FRESH},
    "random": {"gain": "kept", "bias": "zero", "consumers": "zero", **_FRESH},
    "zero": {"gain": 0.0, "bias": "zero", "consumers": "keep", **_FRESH},
    "released": {"gain": 1.0, "bias": "keep", "consumers": "keep", **_FRESH},
    "keep": {"bias": "keep", "consumers": "keep", "optimizer_state": "keep", "norms": "keep"},
}
METHODS = tuple(_DEFAULTS)


@dataclass(frozen=True)
class Reinit:
    """What a returning filter and everything that belongs to it start from (section 4 of the paper).

    Attributes:
        method: "orthogonal": orthogonal to the old values of the dropped and the current values of the kept
            filters. "random": random directions, the honest control. "zero": zeros; where a ReLU follows, such a filter
            gets no gradient and never wakes, with a fresh norm between them neither. "released": the release's, the
            Gram-Schmidt residual of the filter's own old value against the filters before it. "keep": the values it had
            when it was dropped, the control for re-initialising at all; all below but ``gain`` defaults to "keep".
        gain: length of the new filters: "kept", the mean length of the kept ones, or a number. Default: "kept";
            1.0 for "released".
        bias: "zero" or "keep" (the value when dropped). Default: "zero"; "keep" for "released".
        consumers: what later layers' slices that read the filter hold: "zero", so that what is computed does not change
            at first; "keep" (the values when dropped); or "random": normal, with the root mean square of the rest of
            that tensor. Rows that return in those layers themselves are new throughout. Default: "zero"; "keep" for
            "released", which has it so, and for "zero", whose filters would never wake with both at 0.
        optimizer_state: per-weight state of all that: "zero" (the default: what a new optimizer holds), "layer-mean"
            (second moments start from the mean of the rest of their tensor) or "keep" (as when dropped).
        norms: the filter's BatchNorm entries: "reset" (the default) to gamma 1, beta 0, mean 0, variance 1; "small":
            the same, but gamma 0.01 where the map goes from its norm right into a sum, much as residual blocks begin in
            Goyal et al. 2017: with ``consumers="zero"`` what returns changes next to nothing at first; or "keep".
            A norm whose parameters are frozen keeps all; one with ``momentum=None`` counts its batches anew.
        candidates: ``None``: directions are left to chance. A :class:`Candidates`: of several as random ones, those
            return that the loss wants most, for "orthogonal" and "random". Where a layer has no room for more than
            return, or a filter is not read by later layers alone (it enters a sum, say), they are left to chance, and
            the transition's notes say so.

    Raises:
        ReaperError: a value that is none of these.
    """

    method: str = "orthogonal"
    gain: Union[str, int, float, None] = None
    bias: str | None = None
    # None: the method's own, put in when the object is made.
    consumers: str = None  # type: ignore[assignment]
    optimizer_state: str = None  # type: ignore[assignment]
    norms: str = None  # type: ignore[assignment]
    candidates: Any = None

    def __post_init__(self) -> None:
        if self.method not in _DEFAULTS:
            raise ReaperError(f"reinit={self.method!r}: must be one of {', '.join(METHODS)}")
        for name, value in _DEFAULTS[self.method].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ReaperError(f"reinit.{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        self._check_gain()
        self._check_candidates()
        if self.method == self.consumers == "zero":
            raise ReaperError(
                "reinit.consumers='zero': with method \"zero\" nothing would ever wake what returns: filter and slices "
                'at 0 give each other no gradient; leave it out ("keep")'
            )

    def _check_gain(self) -> None:
        gain = self.gain
        if self.method == "keep":
            if gain is not None:
                raise ReaperError(f'reinit.gain={gain!r}: has no effect with method "keep"; leave it out')
            return
        number = isinstance(gain, (int, float)) and not isinstance(gain, bool) and isfinite(gain)
        if self.method == "zero":
            if not number or gain != 0:
                raise ReaperError(f'reinit.gain={gain!r}: has no effect with method "zero"; leave it out')
        elif gain != "kept" and not (number and gain > 0):  # type: ignore[operator]
            raise ReaperError(f'reinit.gain={gain!r}: must be "kept" or a number above 0')

    def _check_candidates(self) -> None:
        given = self.candidates
        if given is None:
            return
        if not isinstance(given, Candidates):
            raise ReaperError(f"reinit.candidates={given!r}: must be a tr.Candidates(batches, loss_fn), or None")
        if self.method not in ("orthogonal", "random"):
            raise ReaperError(
                f"reinit.candidates={given.times} times: has no effect with method {self.method!r}, whose directions "
                'are not random; leave it out, or use "orthogonal" or "random"'
            )

    def describe(self) -> dict[str, Any]:
        """Every choice by name but the images of candidates, for a fingerprint or a log."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "candidates"}
        return chosen if self.candidates is None else {**chosen, "candidates": self.candidates.describe()}


def as_reinit(value: Any) -> Reinit:
    """A :class:`Reinit`, also from the name of its method."""
    if isinstance(value, (str, Reinit)):
        return value if isinstance(value, Reinit) else Reinit(value)
    raise ReaperError(f"reinit={value!r}: must be one of {', '.join(METHODS)}, or a Reinit")


@dataclass(frozen=True)
class Return:
    """The new rows of one layer.

    Attributes:
        rows: float64 ``[returning, dims]``, at their final length.
        case: one line on how much room there was.
    """

    rows: Float[Tensor, "returning dims"]
    case: str


def returning_rows(
    rows: Rows, dropped: Int[Tensor, " returning"], reinit: Reinit, generator: torch.Generator
) -> Return:
    """New rows for the ``dropped`` filters of one layer (or one group of it).

    Args:
        rows: every filter of the layer: the dropped ones as they were when dropped, the others as they are now.
        generator: a CPU generator; values are drawn in float64 on the CPU, the same on every device.
    """
    rows = rows.detach().double().cpu()
    count, dims = len(dropped), rows.shape[1]
    if reinit.method == "zero":
        return Return(torch.zeros(count, dims, dtype=torch.float64, device="cpu"), "zeros")
    if reinit.method == "keep":
        return Return(rows[dropped], "as they were")
    if reinit.method == "orthogonal":
        directions, case = orthogonal_directions(rows, count, generator)
    elif reinit.method == "released":
        directions, case = released_directions(rows, dropped, generator)
    else:
        directions, case = random_directions(count, dims, generator), "random directions"
    return Return(directions * _length(rows, dropped, reinit.gain), case)


def candidate_rows(
    rows: Rows, dropped: Int[Tensor, " returning"], reinit: Reinit, generator: torch.Generator
) -> Return | None:
    """More rows than return, any of which could: with "orthogonal", to all ``rows`` and to each other.

    Args:
        rows, dropped, generator: as for :func:`returning_rows`.
        reinit: with candidates.

    Returns:
        At most ``times`` rows for every returning one; ``None`` where there is no room for more than return.
    """
    rows = rows.detach().double().cpu()
    count, dims = len(dropped), rows.shape[1]
    wanted = reinit.candidates.times * count
    if reinit.method == "random":
        directions, case = random_directions(wanted, dims, generator), "random directions"
    else:
        basis = span(rows)
        room = dims - basis.shape[1]
        if room <= count:
            return None
        directions, case = complement(basis, min(wanted, room), generator), f"room {room} of {dims}"
    return Return(directions * _length(rows, dropped, reinit.gain), case)


def _length(rows: Rows, dropped: Int[Tensor, " returning"], gain: Any) -> float:
    if gain != "kept":
        return float(gain)
    kept = torch.ones(len(rows), dtype=torch.bool, device="cpu")
    kept[dropped] = False
    # A group may have lost all its filters; then the old lengths are the best guide there is.
    some = rows[kept if kept.any() else ~kept]
    largest = float(some.abs().max()) or 1.0  # scaled by it, squares neither overflow nor vanish
    return float((some / largest).norm(dim=1).mean()) * largest or 1.0


def random_directions(count: int, dims: int, generator: torch.Generator) -> Float[Tensor, "count dims"]:
    """Rows of unit length, uniform over directions."""
    return unit_rows(torch.randn(count, dims, dtype=torch.float64, generator=generator, device="cpu"))


def span(rows: Rows) -> Float[Tensor, "dims rank"]:
    """An orthonormal basis of what the normalised rows span, as columns.

    By the eigenvectors of the smaller Gram matrix, never larger than ``min(filters, dims)`` squared. Rows that all but
    coincide count once (redundant filters are the usual case here), and the result does not jump when a row moves by
    1e-13, as that of a thin QR does.
    """
    unit = unit_rows(rows)
    filters, dims = unit.shape
    wide = filters <= dims
    values, vectors = torch.linalg.eigh(unit @ unit.T if wide else unit.T @ unit)
    largest = float(values[-1]) if len(values) else 0.0
    kept = values > max(1e-12, filters * torch.finfo(torch.float64).eps * largest)
    if not wide:
        own: Tensor = vectors[:, kept]
        return own
    basis = unit.T @ (vectors[:, kept] / values[kept].sqrt())
    # Dividing by small roots loses digits. The columns are near enough to orthonormal for one Cholesky factor to make
    # them so to the last digit, in a fraction of the time of a QR.
    factor = torch.linalg.cholesky(basis.T @ basis)
    orthonormal: Tensor = torch.linalg.solve_triangular(factor, basis.T, upper=False).T
    return orthonormal


def complement(
    basis: Float[Tensor, "dims rank"], count: int, generator: torch.Generator
) -> Float[Tensor, "count dims"]:
    """``count`` orthonormal rows, random in the orthogonal complement of an orthonormal ``basis``.

    There must be room: ``count <= dims - rank``.
    """
    while True:
        rows = torch.randn(count, basis.shape[0], dtype=torch.float64, generator=generator, device="cpu")
        for _ in range(2):  # once leaves rounding errors of the size of what was projected away
            rows = rows - rows @ basis @ basis.T
        q, r = torch.linalg.qr(rows.T)
        diagonal = r.diagonal()
        # What is left of a draw inside the span is rounding noise, and QR would make a direction of it. It happens:
        # a generator of the same seed as the one that drew the weights begins with those very weights. What is left
        # of one that almost lies there is a direction only to as many digits less, so these are drawn again too.
        if (diagonal.abs() > 1e-3).all():
            signed: Tensor = q * torch.where(diagonal < 0, -1.0, 1.0)
            return signed.T


def orthogonal_directions(
    rows: Rows, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "count dims"], str]:
    """Unit directions orthogonal to all ``rows`` and to each other, as far as there is room.

    Room = dims - rank. Filters beyond it are orthogonal to the new ones and to the most overlapping rows, as many as
    leave a dimension for each (the author's advice); when no dimension is left, random.
    """
    dims = rows.shape[1]
    basis = span(rows)
    room = dims - basis.shape[1]
    free = min(count, room)
    new = complement(basis, free, generator)
    case = f"room {room} of {dims}"
    relaxed = min(count - free, dims - free)
    if relaxed:
        honoured, taken = 0, span(new)
        if free + relaxed < dims:  # else no dimension is left for any of them, and the ranking is not needed
            worst = rows[overlap(rows).argsort(descending=True, stable=True)]
            honoured, taken = _most_that_leave(worst, new, relaxed)
        new = torch.cat([new, complement(taken, relaxed, generator)])
        case += f", {relaxed} orthogonal to the {honoured} most overlapping only"
    rest = count - free - relaxed
    if rest:
        new = torch.cat([new, random_directions(rest, dims, generator)])
        case += f", {rest} random"
    return new, case


def _most_that_leave(rows: Rows, new: Float[Tensor, "free dims"], room: int) -> tuple[int, Float[Tensor, "dims rank"]]:
    """How many of ``rows``, from the first, can be honoured beside ``new`` so that ``room`` dimensions are left.

    Returns:
        That number, and a basis of what these rows and ``new`` span.
    """
    dims = rows.shape[1]
    # What they span only grows, so halving finds it; where no row repeats another, the first two looks do.
    low, high, basis = 0, len(rows), span(new)
    first = [dims - room - len(new), dims - room - len(new) + 1]
    while low < high:
        look = first.pop(0) if first else (low + high + 1) // 2
        if low < look <= high:
            found = span(torch.cat([rows[:look], new]))
            if dims - found.shape[1] >= room:
                low, basis = look, found
            else:
                high = look - 1
    return low, basis


def released_directions(
    rows: Rows, dropped: Int[Tensor, " returning"], generator: torch.Generator
) -> tuple[Float[Tensor, "count dims"], str]:
    """The released code's: each dropped row's residual against all rows before it, at unit length, sign kept.

    It is one QR of the whole layer. Rows from ``dims`` on have no residual; the release does not treat them, here they
    get random directions.
    """
    dims = rows.shape[1]
    q, r = torch.linalg.qr(rows.T)
    q = (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T
    lost = int((dropped >= dims).sum())
    new = random_directions(len(dropped), dims, generator)
    new[dropped < dims] = q[dropped[dropped < dims]]
    return new, "residual of the old value" + (f", {lost} random: more filters than dims {dims}" if lost else "")


def worst_cosine(new: Float[Tensor, "count dims"], rows: Rows) -> float:
    """Largest |cos| of a new direction with any of ``rows`` or with another new one."""
    # In the precision of the weights: more would be twice the work for digits that they do not have.
    unit, others = (unit_rows(some).to(new.dtype) for some in (new, rows))
    worst = 0.0
    for first in range(0, len(unit), _BLOCK):
        block = unit[first : first + _BLOCK]
        between = (block @ unit[first:].T).fill_diagonal_(0.0)
        worst = max(worst, float((block @ others.T).abs_().max()), float(between.abs_().max()))
    return worst


_BLOCK = 256
"""New rows whose cosines with all others exist at a time."""
