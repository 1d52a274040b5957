"""Standard training: the whole network, all the time. What every other scheme is compared with."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.lab.data import FixedBatches
from torchreaper.lab.schemes.base import Attached, Spec


class StandardTraining(Attached):
    """Changes nothing."""


class StandardSpec(Spec):
    """The scheme `standard`; it has no options."""

    summary: ClassVar[str] = "the whole network, all the time"
    name: Literal["standard"] = "standard"

    def attach(
        self, model: nn.Module, optimizer: Optimizer, example_inputs: Tensor, *, seed: int, batches: FixedBatches
    ) -> Attached:
        """Put the scheme to work: there is nothing to do."""
        return StandardTraining()
