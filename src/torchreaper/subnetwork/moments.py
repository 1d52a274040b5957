"""The optimizer state of a sub-network: what belongs to the dropped filters is stored, and checkpoints are whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreaper.errors import ReaperError
from torchreaper.state import ELEMENTWISE, fresh, parameter_ids, per_weight_state
from torchreaper.subnetwork.leaves import IN_A_PHASE
from torchreaper.subnetwork.parts import Contents, Part, Stored


@dataclass(frozen=True, eq=False)
class _Entry:
    """One parameter, the part of it that is left out, and what that part of its state held, by key."""

    tensor: Tensor
    part: Part
    stored: dict[str, Stored] = field(default_factory=dict)


class Moments:
    """The state of the dropped filters in one optimizer; its methods are the optimizer's hooks."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._entries: list[_Entry] = []
        self._handles: list[Any] = []
        self.install()

    def install(self) -> None:
        """Register the hooks; a copied or unpickled optimizer has none."""
        self._handles = [
            self._optimizer.register_state_dict_post_hook(self.complete),
            self._optimizer.register_load_state_dict_pre_hook(self.refuse_loading),
        ]
        if type(self._optimizer) not in ELEMENTWISE:
            self._handles.append(self._optimizer.register_step_post_hook(self.clear))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def take(self, parts: Sequence[tuple[Tensor, Part]]) -> None:
        """Take the parts out of the state of every tensor, while the tensors themselves are still whole."""
        held = parameter_ids([self._optimizer])
        self._entries = [_Entry(tensor, part.to(tensor.device)) for tensor, part in parts if id(tensor) in held]
        for entry in self._entries:
            for _, state, key in per_weight_state([self._optimizer], entry.tensor):
                state[key], entry.stored[key] = entry.part.take(state[key])

    def put(self) -> None:
        """Put it back, while the tensors are still as in the phase."""
        while self._entries:
            entry = self._entries[-1]
            for _, state, key in per_weight_state([self._optimizer], entry.tensor):
                state[key] = entry.part.put(state[key], self._contents(entry, key))
            self._entries.pop()  # with what it stored: all of it twice would be much

    @torch.no_grad()
    def clear(self, *unused: Any) -> None:
        """After a step of an optimizer that may move a weight whose gradient is 0 (LARS, Muon): back to 0."""
        for entry in self._entries:
            if not entry.part.keeps_values:
                entry.part.hold(entry.tensor.detach())
            for _, state, key in per_weight_state([self._optimizer], entry.tensor):
                entry.part.hold(state[key])

    @property
    def stored_bytes(self) -> int:
        """What the stored state takes."""
        return sum(stored.bytes for entry in self._entries for stored in entry.stored.values())

    def complete(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """State-dict hook: everything at full shape; the live state is not touched."""
        if not self._entries:
            return
        numbers = {
            id(tensor): number
            for group, saved in zip(optimizer.param_groups, state_dict["param_groups"])
            for tensor, number in zip(group["params"], saved["params"])
        }
        packed: dict[int, Mapping[str, Any]] = dict(state_dict["state"])
        for entry in self._entries:
            number = numbers[id(entry.tensor)]
            whole = {
                key: entry.part.completed(value, self._contents(entry, key))
                for key, value in packed.get(number, {}).items()
                if isinstance(value, Tensor) and value.shape == entry.tensor.shape
            }
            if whole:
                packed[number] = {**packed[number], **whole}
        state_dict["state"] = packed

    def refuse_loading(self, *_: Any) -> None:
        """Pre-hook of ``load_state_dict``."""
        if self._entries:
            raise ReaperError(f"optimizer.load_state_dict: {IN_A_PHASE}")

    def _contents(self, entry: _Entry, key: str) -> Contents:
        """What was stored; for state that first arose in the phase, what a new optimizer holds."""
        return entry.stored[key] if key in entry.stored else fresh(self._optimizer, entry.tensor, key)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.install()
