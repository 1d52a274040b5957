"""What a scheme is asked for, and what it is given back, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer, weight_parameters

_LEAST = {"full": 1, "sub": 1, "cycles": 0, "min_filters": 1, "seed": 0}


def check_counts(**values: Any) -> None:
    """Raise :class:`ReaperError` for what is no whole number, or too small a one."""
    for name, value in values.items():
        minimum = _LEAST[name]
        if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
            raise ReaperError(f"{name}={value!r}: must be a whole number of at least {minimum}")


def check_weights(layers: Iterable[FilterLayer]) -> None:
    """Raise :class:`ReaperError` where the weights of a layer are not finite: its filters could never return.

    Criteria that read the weights see it by their scores; those that read something else do not.
    """
    for layer in layers:
        if not all(weight.isfinite().all() for weight in weight_parameters(layer.module)):
            raise ReaperError(
                f"drop: the weights of layer {layer.name!r} are not finite, training has diverged; lower the "
                "learning rate or clip gradients, and go on from an earlier checkpoint"
            )


def check_state(state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise :class:`ReaperError` unless ``state`` is of a scheme with the settings ``config``."""
    if not isinstance(state, Mapping) or "config" not in state or state.get("version") != 1:
        raise ReaperError(
            "load_state_dict: not the state of a RePr scheme of this version; pass what scheme.state_dict() gave"
        )
    saved, now = _flat(state["config"]), _flat(config)
    for name in {**now, **saved}:
        if saved.get(name) != now.get(name):
            raise ReaperError(
                f"load_state_dict: {name} was {saved.get(name)!r} when saved and is {now.get(name)!r} now; "
                "build the scheme with the settings and the model of the checkpoint"
            )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, so that a difference is named by one key."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
