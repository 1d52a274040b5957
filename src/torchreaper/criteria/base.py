"""What a criterion is, what it may see, and the names it is found by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer
from torchreaper.flow.channels import Flow


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
    @property
    def flow(self) -> Flow: ...  # noqa: D102
    @property
    def history(self) -> Sequence[Any]: ...  # noqa: D102


@runtime_checkable
class Criterion(Protocol):
    """Anything with ``scores``; a user's own needs no more than that."""

    def scores(self, bank: Any) -> dict[str, Tensor]:
        """Layer name -> one finite score per filter, higher = dropped earlier; every ranked layer."""
        ...


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., Criterion]
    data: bool


_REGISTRY: dict[str, _Entry] = {}


def register(name: str, factory: Any, *, data: bool = False) -> None:
    """Make a criterion known by name to this process: in ``RePr(criterion=...)``, and in recipes that it runs.

    Args:
        name: what it is called.
        factory: makes it; called without arguments, or, with ``data``, as ``factory(batches, loss_fn)``.
        data: whether it reads images.

    Raises:
        ReaperError: the name is taken.
    """
    if not callable(factory):
        raise ReaperError(
            f"factory={type(factory).__name__}: must make the criterion: a class or a function, not an object"
        )
    if name in _REGISTRY:
        raise ReaperError(f"criterion={name!r}: is registered already; choose another name")
    _REGISTRY[name] = _Entry(factory, data)


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def needs_data(name: str) -> bool:
    """Whether the criterion of that name reads images; of an unknown name, ``False``."""
    return name in _REGISTRY and _REGISTRY[name].data


def make(criterion: Any, batches: Any = None, loss_fn: Any = cross_entropy) -> Criterion:
    """The criterion of that name, or the object itself when it has ``scores``.

    Args:
        criterion: a registered name, or an object.
        batches: what a criterion that reads images reads: something that can be iterated over again and again and
            gives ``(inputs, targets)``, such as a list or a ``DataLoader``. Others, and objects, do not look at it.
        loss_fn: ``loss_fn(outputs, targets)``, averaged over the batch.

    Raises:
        ReaperError: an unknown name, an object without ``scores``, or no batches where some are needed.
    """
    if isinstance(criterion, str):
        if criterion not in _REGISTRY:
            raise ReaperError(
                f"criterion={criterion!r}: must be one of {', '.join(names())}, or an object with scores(bank)"
            )
        entry = _REGISTRY[criterion]
        if not entry.data:
            return entry.factory()
        if batches is None:
            raise ReaperError(
                f"criterion={criterion!r}: reads images; pass "
                f"criterion=tr.criteria.make({criterion!r}, batches, loss_fn), batches such as a DataLoader"
            )
        return entry.factory(batches, loss_fn)
    if isinstance(criterion, type) and hasattr(criterion, "scores"):
        raise ReaperError(
            f"criterion={criterion.__name__}, a class: must be an object of it, {criterion.__name__}(...), or one of "
            f"{', '.join(names())}"
        )
    if not isinstance(criterion, Criterion) or isinstance(criterion, type):
        raise ReaperError(
            f"criterion={criterion!r}: must be an object with scores(bank), or one of {', '.join(names())}"
        )
    return criterion
