"""The saved state of a scheme: checked whole before any of it is taken over, so that a wrong one changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from torchreaper.errors import ReaperError
from torchreaper.text import shortened
from torchreaper.transitions import PHASES, Transition, transition_at, unpacked

_VERSION = 1
_TRANSITION = {
    **{"kind": str, "cycle": int, "step": int, "seconds": float},
    **{"filters": Mapping, "scores": Mapping, "notes": (list, tuple)},
}


@dataclass(frozen=True)
class Saved:
    """Where a scheme stood: see ``RePr.state_dict``."""

    steps: int
    cycle: int
    dropped: dict[str, tuple[int, ...]]
    generator: Tensor
    history: list[Transition]


def plain(value: Any) -> Any:
    """Settings with Python's own numbers: others, such as numpy's, could not be loaded with ``weights_only=True``."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, bool):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value


def read_state(state: Mapping[str, Any], config: Mapping[str, Any]) -> Saved:
    """The content of ``state``.

    Args:
        state: What a scheme's ``state_dict`` gave.
        config: The settings of the scheme that it is for.

    Raises:
        ReaperError: It is of other settings or another model, or damaged; it names the key.
    """
    if not isinstance(state, Mapping) or "config" not in state or not _equal(state.get("version"), _VERSION):
        raise ReaperError(
            "load_state_dict: not the state of a RePr scheme of this version; pass what scheme.state_dict() gave"
        )
    _check_config(state["config"], config)
    steps, cycle = _whole(state, "steps"), _whole(state, "cycle")
    schedule = config["full"], config["sub"], config["cycles"]
    period = schedule[0] + schedule[1]
    events = [one for step in _window(steps, *schedule) if (one := transition_at(step, *schedule))]
    begun = min(schedule[2], (steps + schedule[1]) // period)
    if cycle != begun:
        raise _damaged("cycle", cycle, f"{steps} steps begin {begun} cycles")
    dropped = _dropped(state.get("dropped"), config)
    if dropped and (not events or events[-1][0] != "drop"):
        raise _damaged("dropped", dropped, f"after {steps} steps the network is whole")
    history = state.get("history")
    if not isinstance(history, (list, tuple)):
        raise _damaged("history", history, "must be a list of transitions")
    return Saved(steps, cycle, dropped, _generator(state.get("generator")), [*map(_transition, history)])


def _window(steps: int, full: int, sub: int, cycles: int) -> range:
    """The steps among which the last transition is."""
    last = min(steps, (full + sub) * cycles)
    return range(max(1, last - full - sub), last + 1)


def _check_config(saved: Any, config: Mapping[str, Any]) -> None:
    if not isinstance(saved, Mapping):
        raise _damaged("config", saved, "must be the settings of a scheme")
    there, now = _flat(saved), _flat(config)
    for name in {**now, **there}:
        if not _equal(there.get(name), now.get(name)):
            planned = " (the same epochs= too)" if name in PHASES else ""
            raise ReaperError(
                f"load_state_dict: {' '.join(name.split())} was {shortened(there.get(name))} when saved and is "
                f"{shortened(now.get(name))} now; build the scheme with the settings{planned} and the model of the "
                "checkpoint"
            )


def _flat(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, so that a difference is named by one key."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):  # of tensors, which no setting is
        return False


def _whole(state: Mapping[str, Any], key: str) -> int:
    value = state.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _damaged(key, value, "must be a whole number of at least 0")
    return value


def _dropped(value: Any, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, Mapping):
        raise _damaged("dropped", value, "must name the filters of each layer")
    for name, indices in value.items():
        if name not in config["ranked"]:
            raise _damaged("dropped", name, "is no layer that is ranked")
        count = config["layers"][name]
        good = _indices(indices) and all(0 <= index < count for index in indices)
        if not good or not 0 < len(set(indices)) < count:
            raise _damaged("dropped", indices, f"must be indices of the {count} filters of {name!r}, and leave one")
    return {name: tuple(indices) for name, indices in value.items()}


def _indices(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(index) is int for index in value)


def _generator(value: Any) -> Tensor:
    try:
        state: Tensor = value.cpu()
        torch.Generator().set_state(state)
    except (AttributeError, RuntimeError, TypeError):
        raise _damaged("generator", value, "must be the state of a torch.Generator of the CPU") from None
    return state


def _transition(value: Any) -> Transition:
    if not isinstance(value, Mapping) or value.keys() != _TRANSITION.keys():
        raise _damaged("history", value, f"a transition has {', '.join(_TRANSITION)}")
    for key, kind in _TRANSITION.items():
        if not isinstance(value[key], kind) or isinstance(value[key], bool):  # type: ignore[arg-type]
            raise _damaged(f"history {key}", value[key], "is of another type than in a transition")
    if value["kind"] not in ("drop", "restore"):
        raise _damaged("history kind", value["kind"], "must be drop or restore")
    if odd := [name for key in ("filters", "scores") for name in value[key] if not isinstance(name, str)]:
        raise _damaged("history", odd[0], "is no name of a layer")
    if not all(map(_indices, value["filters"].values())):
        raise _damaged("history filters", value["filters"], "must be indices by layer")
    if not all(isinstance(scores, Tensor) for scores in value["scores"].values()):
        raise _damaged("history scores", value["scores"], "must be tensors by layer")
    if not all(isinstance(note, str) for note in value["notes"]):
        raise _damaged("history notes", value["notes"], "must be sentences")
    return unpacked({**value, "scores": dict(value["scores"])})


def _damaged(key: str, value: Any, why: str) -> ReaperError:
    return ReaperError(f"load_state_dict: {key}={shortened(value)}: {why}; the checkpoint is damaged, take another")
