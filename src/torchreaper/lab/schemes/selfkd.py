"""Learn from the network as it was some epochs ago, in one training; after Yang et al. 2019, snapshot distillation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Batch, Setup, Spec
from torchreaper.lab.schemes.distillation import divergence


class SelfTaught(Attached):
    """From epoch ``start`` on the teacher is a copy of the network, taken then and anew after every so many epochs."""

    def __init__(self, setup: Setup, spec: SelfKDSpec) -> None:
        self._setup, self._spec = setup, spec
        self._teacher: nn.Module | None = None

    def loss(self, batch: Batch, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Ask the network as it was about the same images."""
        if self._teacher is None:
            return loss
        with torch.no_grad():
            said = batch.said_by(self._teacher)
        return torch.lerp(loss, divergence(batch.outputs, said, self._spec.temperature), self._spec.weight)

    def ended(self, epoch: int) -> tr.Transition | None:
        """Take the copy where it is due; of the whole network, in a sub-network phase too."""
        since = epoch - self._spec.start
        if since >= 0 and since % self._spec.every == 0 and epoch < self._setup.epochs:
            self._becomes(self._setup.model.state_dict())
        return None

    def _becomes(self, weights: dict[str, Any]) -> None:
        if self._teacher is None:
            self._teacher, _ = self._setup.sibling(0)
            self._teacher.requires_grad_(False).eval()
        self._teacher.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """The teacher too."""
        teacher = None if self._teacher is None else self._teacher.state_dict()
        return {**super().state_dict(), "teacher": teacher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the teacher of `state`."""
        super().load_state_dict(state)
        if state["teacher"] is not None:
            self._becomes(state["teacher"])


class SelfKDSpec(Spec):
    """The scheme `self-kd`.

    `start`, `every`: the network learns from a copy of itself, taken after epoch `start` and anew after each further
    `every` epochs. Together with RePr, `self-kd+repr` with `start` = `full` and `every` = `full` + `sub`, all four
    named (the defaults go with 20/10/3), takes it right before filters go: the smaller network learns from the whole
    one. `temperature`, `weight`: of the teacher's part in the loss, see `kd`.
    """

    summary: ClassVar[str] = "learn from the network as it was some epochs ago"
    source: ClassVar[str] = "after Yang et al. 2019, snapshot distillation"
    hands: ClassVar[frozenset[str]] = frozenset({"the teacher"})
    tasks: ClassVar[frozenset[str] | None] = frozenset({"classification", "vqa"})  # it reads logits
    name: Literal["self-kd"] = "self-kd"
    start: int = Field(default=20, ge=1)
    every: int = Field(default=30, ge=1)
    temperature: float = Field(default=4.0, gt=0)
    weight: float = Field(default=0.5, gt=0, le=1)

    def check(self, epochs: int) -> None:
        """Refuse a start after which nothing is trained."""
        if self.start >= epochs:
            raise UserError(f"scheme.start={self.start}: must be below the {epochs} epochs; lower it or raise epochs")

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work."""
        return SelfTaught(setup, self)
