"""What a scheme is: a `Spec` says what is asked for, an `Attached` is the scheme at work in one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

import torchreaper as tr
from torchreaper.lab.data import FixedBatches
from torchreaper.lab.settings import Settings

Phase = Literal["full", "sub"]


class Attached:
    """A scheme at work in one run. The training loop calls these; a scheme overrides what it changes.

    Inherit from it: every member has the behaviour of standard training.
    """

    @property
    def phase(self) -> Phase:
        """The phase the next epoch is trained in."""
        return "full"

    @property
    def dropped(self) -> dict[str, tuple[int, ...]]:
        """The filters that are absent now, by layer; only layers that miss some."""
        return {}

    @property
    def bank(self) -> tr.FilterBank | None:
        """The filters the scheme ranks, where it ranks any."""
        return None

    def loss(
        self,
        model: Callable[..., Tensor],
        images: Float[Tensor, "batch channels height width"],
        targets: Int[Tensor, " batch"],
        outputs: Float[Tensor, "batch classes"],
    ) -> Float[Tensor, ""]:
        """The loss of one training batch, averaged over its images: cross entropy."""
        return F.cross_entropy(outputs, targets)

    def step(self) -> tr.Transition | None:
        """End an epoch; return the transition that this was the moment for."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beyond the model's and the optimizer's states: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the model's and the optimizer's own states are loaded before."""

    def close(self) -> None:
        """Take everything off the model that `Spec.attach` put on it."""


class Spec(Settings):
    """What a recipe says about a scheme: a subclass has a literal `name`, options, and how it attaches."""

    name: str
    #: One line for help texts.
    summary: ClassVar[str] = ""

    def check(self, epochs: int) -> None:
        """Raise `UserError` where the scheme cannot be run in a recipe of `epochs` epochs."""

    def attach(
        self, model: nn.Module, optimizer: Optimizer, example_inputs: Tensor, *, seed: int, batches: FixedBatches
    ) -> Attached:
        """Put the scheme to work.

        Args:
            model: The network, on its device, its weights drawn.
            optimizer: The optimizer of its parameters.
            example_inputs: One small batch [n, c, h, w], only to find channels.
            seed: Of the scheme's own random draws.
            batches: The images that criteria read; nothing is loaded or computed unless one does.
        """
        raise NotImplementedError
