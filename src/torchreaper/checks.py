"""What a scheme is asked for, and what it is given back, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer, weight_parameters
from torchreaper.state import all_finite
from torchreaper.transitions import planned

_LEAST = {"epochs": 1, "full": 1, "sub": 0, "cycles": 0, "min_filters": 1, "seed": 0}


def is_count(name: str, value: Any) -> bool:
    """Whether a setting can be that number."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= _LEAST[name]


def check_counts(**values: Any) -> None:
    """Raise :class:`ReaperError` for what is no whole number, or too small a one."""
    for name, value in values.items():
        if not is_count(name, value):
            raise ReaperError(f"{name}={value!r}: must be a whole number of at least {_LEAST[name]}")
        if name == "seed" and int(value) >= 2**63:  # of what torch's generators take
            raise ReaperError(f"seed={value!r}: must be below {2**63}")


def checked_phases(epochs: int | None, full: int | None, sub: int | None, cycles: int | None) -> tuple[int, int, int]:
    """As :func:`planned`, of what is given and can be."""
    asked = {"epochs": epochs, "full": full, "sub": sub, "cycles": cycles}
    check_counts(**{name: value for name, value in asked.items() if value is not None})
    return planned(epochs, full, sub, cycles)


def check_end(epochs: int, full: int, sub: int, cycles: int) -> None:
    """Raise :class:`ReaperError` where the filters that return last would not be trained any more."""
    need = cycles * (full + sub)
    if cycles and need >= epochs:
        raise ReaperError(
            f"full={full}, sub={sub}, cycles={cycles}: need {need} epochs and at least one more for the filters that "
            f"return last, epochs={epochs}; raise epochs or lower full, sub or cycles"
        )


def check_weights(layers: Iterable[FilterLayer]) -> None:
    """Raise :class:`ReaperError` where the weights of a layer are not finite: its filters could never return.

    Criteria that read the weights see it by their scores; those that read something else do not.
    """
    for layer in layers:
        if not all(map(all_finite, weight_parameters(layer.module))):
            raise ReaperError(
                f"drop: the weights of layer {layer.name!r} are not finite, training has diverged; lower the "
                "learning rate or clip gradients, and go on from an earlier checkpoint"
            )
