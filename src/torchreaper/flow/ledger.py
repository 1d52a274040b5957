"""What the walks over a model's graphs write down, and what makes them start again."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn

from torchreaper.flow.channels import Flow, Origin, Role, Share, Site
from torchreaper.flow.following import Channels, Key, agree

CHANGES = 5
"""So often may the rows of a gate be found to follow other channels, before it is taken for something else."""


@dataclass
class Decisions:
    """What a walk found out too late for itself; the next walk starts with it.

    Attributes:
        opaque: operations that are barriers: used on channels that disagree, or followed by no mask.
        sited: activations with f(0) != 0 that a mask follows.
        gates: modules whose rows follow the channels that they are multiplied with.
        apart: modules that keep filters of their own, whatever they multiply or follow.
    """

    opaque: set[Key] = field(default_factory=set)
    sited: set[Key] = field(default_factory=set)
    gates: dict[str, Origin] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    changes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def state(self) -> tuple[Any, ...]:
        """For comparison: whether anything new was found."""
        gates = tuple((name, tuple(origin.tolist())) for name, origin in self.gates.items())
        return frozenset(self.opaque), frozenset(self.sited), gates, frozenset(self.apart)


class Ledger:
    """One round of walks: the flow as far as it is known, and the decisions for the next round.

    Attributes:
        decided: what earlier rounds decided; it stays the same all through the round, for both graphs.
        decisions: where this round's decisions go.
    """

    def __init__(self, flow: Flow, decisions: Decisions) -> None:
        self.flow, self.decisions, self.decided = flow, decisions, copy.deepcopy(decisions)
        self._uses: dict[str, list[Channels]] = defaultdict(list)

    def use(self, name: str, channels: Channels) -> None:
        """Note what a module is used on, nobody's channels too; uses that disagree make it a barrier."""
        seen = self._uses[name]
        seen.append(channels)
        if not agree(seen[0], channels):
            self.decisions.opaque.add(("module", name))

    def is_opaque(self, name: str) -> bool:
        """Whether a module is a barrier whatever its kind."""
        return ("module", name) in self.decided.opaque

    def barrier(self, place: str, channels: Channels) -> None:
        """The channels must stand at ``place`` at full width, exactly 0 where they are absent."""
        self.settle(channels)
        self.wide(place, channels)

    def wide(self, place: str, channels: Channels) -> None:
        """The channels must stand at ``place`` at full width, and go on from there."""
        for layer in self.flow.layers_of(channels.origin):
            if place not in self.flow.barriers[layer]:
                self.flow.barriers[layer].append(place)

    def settle(self, channels: Channels) -> None:
        """Absent channels are read here: where an offset has filled them, a mask must follow it, or it is a barrier."""
        since = channels.since
        if since is None:
            return
        can_mask = since[0] == "module" and since not in self.decided.sited
        (self.decisions.sited if can_mask else self.decisions.opaque).add(since)

    def site(self, name: str, channels: Channels) -> Channels:
        """A mask stands after module ``name``: behind it absent channels are 0."""
        line = channels.line
        if line is None:
            return channels
        self.flow.sites[name] = Site(*line)
        return Channels(channels.origin)

    def drops_out(self, name: str, channels: Channels) -> None:
        """A dropout module that the channels pass."""
        self.use(name, Channels(channels.origin))
        if (line := channels.line) is not None and not self.is_opaque(name):
            self.flow.dropouts[name] = Site(*line)

    def count_output(
        self, name: str, value: Tensor, dim: int, add: bool = True, applied_to: Tensor | None = None
    ) -> None:
        """Note how many positions a sample has at a module's output, for the cost of the network.

        Args:
            add: whether this is one more call of the module, or only counts where none is noted yet.
            applied_to: the input, where the kernel is applied once at each of its positions (transposed convolutions).
        """
        self.flow.widths[name] = value.shape[dim]
        applied = value if applied_to is None else applied_to
        for counts, tensor in ((self.flow.positions, value), (self.flow.applications, applied)):
            per_sample = prod(tensor.shape[1:]) if tensor.ndim > -dim else tensor.numel()
            positions = per_sample // tensor.shape[dim]
            counts[name] = counts.get(name, 0) + positions if add else counts.get(name, positions)

    def share(self, name: str, module: nn.Module, tensor: str, dim: int, origin: Origin, role: Role) -> None:
        """A tensor of the module, where it has it, belongs to filters."""
        if isinstance(module._parameters.get(tensor, module._buffers.get(tensor)), Tensor):
            self.flow.share(name, tensor, Share(dim, origin, role))

    def gate(self, name: str, origin: Origin) -> bool:
        """The rows of ``name`` follow ``origin`` from the next round on; ``False`` where that does not hold."""
        decisions = self.decisions
        if (known := decisions.gates.get(name)) is not None and known.equal(origin):
            return True
        decisions.changes[name] += 1
        if decisions.changes[name] > CHANGES:
            decisions.gates.pop(name, None)
            decisions.apart.add(name)
            return False
        decisions.gates[name] = origin
        return True
