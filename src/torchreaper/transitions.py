"""What a scheme does and when: the schedule of drops and returns, and the record of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """What :meth:`RePr.step` just did.

    Attributes:
        kind: "drop" or "restore"; with ``sub`` 0 each "restore" is both, and has the scores.
        cycle: 1 for the first cycle.
        step: how many times ``step`` had been called, this call included.
        filters: layer -> indices dropped or brought back; only layers with any.
        scores: layer -> score of every filter, for a drop; empty for a restore, and in the history for drops that are
            long past.
        seconds: what it took.
        notes: what is worth knowing, in sentences.
    """

    kind: Literal["drop", "restore"]
    cycle: int
    step: int
    filters: dict[str, tuple[int, ...]]
    scores: dict[str, Tensor]
    seconds: float
    notes: tuple[str, ...]


def transition_at(step: int, full: int, sub: int, cycles: int) -> tuple[Literal["drop", "restore"], int] | None:
    """What the ``step``-th unit ends with, and in which cycle.

    With 20, 10, 3: drops at 20, 50, 80, returns at 30, 60, 90. With ``sub`` 0 what goes returns at once.
    """
    cycle, within = divmod(step - 1, full + sub)
    if step < 1 or cycle >= cycles:
        return None
    if within == full - 1 and sub:
        return "drop", cycle + 1
    return ("restore", cycle + 1) if within == full + sub - 1 else None


PHASES = {"full": 2, "sub": 2, "cycles": 8}
"""Where nobody says how many epochs there will be: what gained accuracy in 40 (docs/replication.md, steps 4 and 5)."""


def planned(
    epochs: int | None, full: int | None = None, sub: int | None = None, cycles: int | None = None
) -> tuple[int, int, int]:
    """The phases for a training of ``epochs`` units; of ``full``, ``sub`` and ``cycles`` those given stay as they are.

    The others stretch 2, 2 and 8 of 40 epochs: phases of about a twentieth of the training, less where more cycles were
    asked for, as often as they fit into four fifths of it. Without sub-network phases the full ones are twice as long.
    """
    # numpy's small numbers would overflow
    given = {name: int(value) for name, value in zip(PHASES, (full, sub, cycles), strict=True) if value is not None}
    if epochs is None:
        alone = {"full": PHASES["full"] + PHASES["sub"]} if sub == 0 else {}
        plan = PHASES | alone | given
        return plan["full"], plan["sub"], plan["cycles"]
    full, sub, cycles = map(given.get, PHASES)
    epochs = int(epochs)
    last = 4 * epochs // 5
    room = last // (cycles or 1)
    if full is None:
        full = (epochs + 5) // 10 if sub == 0 else (epochs + 10) // 20
        full = max(1, min(full, room - sub if sub is not None else room // 2))
    if sub is None:
        sub = max(1, min(full, room - full))
    return full, sub, max(1, last // (full + sub)) if cycles is None else cycles


SCORED = 32
"""Of so many drops a history keeps the scores: its tensors must not grow without end, least of all in checkpoints."""


def forget_scores(history: list[Transition]) -> None:
    """Take the scores out of the newest entry that has too many others with scores after it."""
    scored = 0
    for place in reversed(range(len(history))):
        if history[place].scores:
            scored += 1
            if scored > SCORED:
                history[place] = replace(history[place], scores={})
                return


def packed(transition: Transition) -> dict[str, Any]:
    """A transition as plain containers, for a state dict."""
    fields = {**vars(transition), "notes": list(transition.notes)}
    fields["filters"] = {name: list(indices) for name, indices in transition.filters.items()}
    return fields


def unpacked(packed: Mapping[str, Any]) -> Transition:
    """A transition from its entry in a scheme's state."""
    filters = {name: tuple(indices) for name, indices in packed["filters"].items()}
    return Transition(**{**packed, "filters": filters, "notes": tuple(packed["notes"])})
