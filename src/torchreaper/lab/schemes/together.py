"""Schemes at work together in one run, such as RePr with distillation: ``repr+kd``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from pydantic import SerializeAsAny
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Batch, Images, Phase, Setup, Spec, Targets, loss_of
from torchreaper.lab.sections import OptimSpec


class Together(Attached):
    """Several schemes as one: what one hands on the next receives, in the order of `parts`.

    States are loaded in the order of `attached`, in which they were put to work: a copy of the whole network before
    RePr takes filters out of it.
    """

    def __init__(self, parts: Sequence[Attached], attached: Sequence[Attached]) -> None:
        self._parts, self._attached = tuple(parts), tuple(attached)

    @property
    def label_smoothing(self) -> float:  # type: ignore[override]
        """Of the part that smooths."""
        return max(part.label_smoothing for part in self._parts)

    @property
    def lr_factor(self) -> float:  # type: ignore[override]
        """The product of all."""
        factor = 1.0
        for part in self._parts:
            factor *= part.lr_factor
        return factor

    @property
    def phase(self) -> Phase:
        """A sub-network phase where one of them is in one."""
        return "sub" if any(part.phase == "sub" for part in self._parts) else "full"

    @property
    def counts(self) -> bool:
        """Only what each of them could end with."""
        return all(part.counts for part in self._parts)

    @property
    def dropped(self) -> dict[str, tuple[int, ...]]:
        """The filters that are absent now; at most one part drops any."""
        return next((part.dropped for part in self._parts if part.dropped), {})

    @property
    def bank(self) -> tr.FilterBank | None:
        """Of the part that ranks filters."""
        return next((part.bank for part in self._parts if part.bank is not None), None)

    @property
    def network(self) -> nn.Module | None:
        """The average, where one part keeps one."""
        return next((part.network for part in self._parts if part.network is not None), None)

    def mix(self, images: Images, targets: Targets) -> tuple[Images, Targets]:
        """By each in turn."""
        for part in self._parts:
            images, targets = part.mix(images, targets)
        return images, targets

    def loss(self, batch: Batch, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """By each in turn."""
        for part in self._parts:
            loss = loss_of(part, batch, loss)
        return loss

    def gradients(self, again: Callable[[], object]) -> None:
        """By each in turn."""
        for part in self._parts:
            part.gradients(again)

    def stepped(self, batch: Batch) -> None:
        """Each is told."""
        for part in self._parts:
            part.stepped(batch)

    def trained(self) -> None:
        """Each is told."""
        for part in self._parts:
            part.trained()

    def ended(self, epoch: int) -> tr.Transition | None:
        """Each ends its epoch; at most one has a transition to tell."""
        transitions = [part.step() for part in self._parts]
        return next((transition for transition in transitions if transition is not None), None)

    def state_dict(self) -> dict[str, Any]:
        """Of all parts."""
        return {**super().state_dict(), "parts": [part.state_dict() for part in self._attached]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """To all parts."""
        super().load_state_dict(state)
        for part, own in zip(self._attached, state["parts"], strict=True):
            part.load_state_dict(own)

    def close(self) -> None:
        """The last first."""
        for part in reversed(self._attached):
            part.close()


class TogetherSpec(Spec):
    """Several schemes, by the keys that stand in the name between the plus signs."""

    name: str
    parts: dict[str, SerializeAsAny[Spec]]

    def check(self, epochs: int) -> None:
        """Ask each part, with the epochs that the run will have."""
        for part in self.parts.values():
            if part.name == "standard":
                raise UserError(f"scheme={self.name!r}: standard is what there is without a scheme; leave it out")
        names = list(self.parts)
        for number, name in enumerate(names):
            for other in names[:number]:
                both = self.parts[name].hands & self.parts[other].hands
                if both:
                    raise UserError(
                        f"scheme={self.name!r}: {other} and {name} cannot be combined, both change "
                        f"{' and '.join(sorted(both))}; leave one out"
                    )
        total = sum(self.lengths(epochs))
        changes = [name for name, part in self.parts.items() if part.lengths(epochs) != (epochs,)]
        for name, part in self.parts.items():
            try:
                part.check(epochs if name in changes else total)
            except UserError as error:
                if name in changes or total == epochs:
                    raise
                raise UserError(f"{error} (it has {epochs}, of which {changes[0]} makes {total})") from error

    def fits(self, task: str) -> bool:
        """Whether all parts can."""
        return all(part.fits(task) for part in self.parts.values())

    def lengths(self, epochs: int) -> tuple[int, ...]:
        """Of the part that changes them."""
        found = [part.lengths(epochs) for part in self.parts.values()]
        return next((lengths for lengths in found if lengths != (epochs,)), (epochs,))

    def optim(self, spec: OptimSpec) -> OptimSpec:
        """As each part in turn would have it."""
        for part in self.parts.values():
            spec = part.optim(spec)
        return spec

    def teachers(self) -> tuple[dict[str, Any], ...]:
        """Those of all parts."""
        return tuple(teacher for part in self.parts.values() for teacher in part.teachers())

    def attach(self, setup: Setup) -> Attached:
        """Attach the parts by their turns; they work in the order of their names."""
        made: dict[str, Attached] = {}
        for key in sorted(self.parts, key=lambda key: self.parts[key].turn):
            made[key] = self.parts[key].attach(setup)
        return Together([made[key] for key in self.parts], list(made.values()))
