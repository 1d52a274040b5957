"""What a criterion is, what it may see, and the names it is found by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer


@runtime_checkable
class Bank(Protocol):
    """What a criterion may see of a :class:`torchreaper.FilterBank`."""

    @property
    def model(self) -> nn.Module: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[FilterLayer]: ...  # noqa: D102
    @property
    def ranked(self) -> Sequence[FilterLayer]: ...  # noqa: D102
    @property
    def generator(self) -> torch.Generator: ...  # noqa: D102


@runtime_checkable
class Criterion(Protocol):
    """Anything with ``scores``; a user's own needs no more than that."""

    def scores(self, bank: Any) -> dict[str, Tensor]:
        """Layer name -> one finite score per filter, higher = dropped earlier; every ranked layer."""
        ...


_REGISTRY: dict[str, Callable[[], Criterion]] = {}


def register(name: str, factory: Callable[[], Criterion]) -> None:
    """Make a criterion known by name, in ``RePr(criterion=...)``, in recipes and on the command line.

    Raises:
        ReaperError: the name is taken.
    """
    if name in _REGISTRY:
        raise ReaperError(f"criterion={name!r}: is registered already; choose another name")
    _REGISTRY[name] = factory


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def make(criterion: Any) -> Criterion:
    """The criterion of that name, or the object itself when it has ``scores``.

    Raises:
        ReaperError: an unknown name, or an object without ``scores``.
    """
    if isinstance(criterion, str):
        if criterion not in _REGISTRY:
            raise ReaperError(
                f"criterion={criterion!r}: must be one of {', '.join(names())}, or an object with scores(bank)"
            )
        return _REGISTRY[criterion]()
    if not isinstance(criterion, Criterion) or isinstance(criterion, type):
        raise ReaperError(
            f"criterion={criterion!r}: must be an object with scores(bank), or one of {', '.join(names())}"
        )
    return criterion
