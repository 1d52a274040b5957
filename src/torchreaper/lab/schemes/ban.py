"""Born-again networks (Furlanello et al. 2018): the same network again from scratch, taught by the one before."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.lab.data import epoch_seed
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Batch, Setup, Spec
from torchreaper.lab.schemes.distillation import divergence


class BornAgain(Attached):
    """At the end of each generation but the last the network becomes the teacher, and is drawn anew."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._teacher: nn.Module | None = None
        self._generation = 0

    @property
    def counts(self) -> bool:
        """Only the last generation."""
        return self._generation == len(self._setup.lengths) - 1

    def loss(self, batch: Batch, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Cross entropy, and from the second generation on the divergence from the teacher, with the same weight."""
        if self._teacher is None:
            return loss
        with torch.no_grad():
            said = batch.said_by(self._teacher)
        return loss + divergence(batch.outputs, said, 1.0)

    @torch.no_grad()
    def ended(self, epoch: int) -> tr.Transition | None:
        """Weights, running statistics and the optimizer's state begin anew."""
        lengths = self._setup.lengths
        ends = {sum(lengths[: number + 1]) for number in range(len(lengths) - 1)}
        if epoch in ends:
            self._generation += 1
            self._teacher = _frozen(copy.deepcopy(self._setup.model))
            fresh, _ = self._setup.sibling(epoch_seed(self._setup.seed, self._generation, "generation"))
            self._setup.model.load_state_dict(fresh.state_dict())
            self._setup.optimizer.state.clear()
        return None

    def state_dict(self) -> dict[str, Any]:
        """The teacher too."""
        teacher = None if self._teacher is None else self._teacher.state_dict()
        return {**super().state_dict(), "generation": self._generation, "teacher": teacher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the generation of `state`."""
        super().load_state_dict(state)
        self._generation = state["generation"]
        if state["teacher"] is not None:
            self._teacher, _ = self._setup.sibling(0)
            self._teacher.load_state_dict(state["teacher"])
            _frozen(self._teacher)


def _frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval()


class BANSpec(Spec):
    """The scheme `ban`.

    `generations`: how many networks are trained one after the other; the last one counts. `each`: each is trained for
    all the epochs of the recipe, as the authors do; else they share them, and the budget is that of the other schemes.
    """

    summary: ClassVar[str] = "train the network again from scratch, taught by the one before"
    source: ClassVar[str] = "Furlanello et al. 2018, section 3"
    hands: ClassVar[frozenset[str]] = frozenset({"weights", "the teacher", "the epochs", "the average"})
    tasks: ClassVar[frozenset[str] | None] = frozenset({"classification", "vqa"})  # it reads logits
    name: Literal["ban"] = "ban"
    generations: int = Field(default=3, ge=2)
    each: bool = False

    def check(self, epochs: int) -> None:
        """Refuse generations without an epoch."""
        if epochs < self.generations and not self.each:
            raise UserError(
                f"scheme.generations={self.generations}: more than the {epochs} epochs that they share; "
                "lower it, or set each: true"
            )

    def lengths(self, epochs: int) -> tuple[int, ...]:
        """A training for each generation; what does not divide evenly goes to the last ones."""
        if self.each:
            return (epochs,) * self.generations
        length, rest = divmod(epochs, self.generations)
        return (length,) * (self.generations - rest) + (length + 1,) * rest

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work."""
        return BornAgain(setup)
