"""Averages of the weights, which are judged instead of the weights: EMA and SWA, by `torch.optim.swa_utils`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from torchreaper.criteria.ranking import quota
from torchreaper.lab.data import FixedBatches
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Batch, Setup, Spec, drawing_aside


class Averaging(Attached):
    """A copy of the network that holds an average of its weights."""

    def __init__(self, model: nn.Module, average: AveragedModel) -> None:
        self._model, self._average = model, average

    @property
    def copy(self) -> nn.Module:
        """The copy, whether it holds an average yet or not."""
        return self._average.module

    @property
    def network(self) -> nn.Module | None:
        """The average; None as long as there is none."""
        return self.copy if self._average.n_averaged else None

    @property
    def counts(self) -> bool:
        """Only an average does."""
        return self.network is not None

    def state_dict(self) -> dict[str, Any]:
        """The average is a state too."""
        return {**super().state_dict(), "average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the average of `state`."""
        super().load_state_dict(state)
        self._average.load_state_dict(state["average"])


class MovingAverage(Averaging):
    """After every step the average moves towards the weights; BatchNorm's statistics are averaged too.

    The decay rises as min(decay, (1 + n) / (10 + n)) with the number n of steps, so that the first, random weights
    are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        def move(averages: Any, values: Any, count: Tensor | int) -> None:
            get_ema_multi_avg_fn(min(decay, (1 + self._steps) / (10 + self._steps)))(averages, values, count)  # type: ignore[no-untyped-call]

        self._steps = 0
        super().__init__(model, AveragedModel(model, multi_avg_fn=move, use_buffers=True))

    def stepped(self, batch: Batch) -> None:
        """Move."""
        self._average.update_parameters(self._model)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of steps too."""
        return {**super().state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the average and the count of `state`."""
        super().load_state_dict(state)
        self._steps = state["steps"]


class StochasticAverage(Averaging):
    """From some epoch on, the plain mean of the weights at the end of each epoch.

    BatchNorm's statistics are those of the training images in the averaged network, taken anew after each epoch.
    """

    def __init__(self, model: nn.Module, first: int, training: FixedBatches) -> None:
        self._first, self._training = first, training
        super().__init__(model, AveragedModel(model))

    def trained(self) -> None:
        """Take the weights of this epoch in."""
        if self.epoch + 1 < self._first:
            return
        self._average.update_parameters(self._model)
        with drawing_aside(self._model):
            update_bn(self._training, self._average)


class EMASpec(Spec):
    """The scheme `ema`. `decay`: share of the average that stays in a step."""

    summary: ClassVar[str] = "judge the moving average of the weights"
    source: ClassVar[str] = "Polyak and Juditsky 1992; torch.optim.swa_utils"
    hands: ClassVar[frozenset[str]] = frozenset({"the average"})
    turn: ClassVar[int] = 0
    name: Literal["ema"] = "ema"
    decay: float = Field(default=0.999, gt=0, lt=1)

    def attach(self, setup: Setup) -> Attached:
        """Copy the network, before anything is put on it."""
        average = MovingAverage(setup.model, self.decay)
        setup.followers.append(average.copy)
        return average


class SWASpec(Spec):
    """The scheme `swa`. `start`: after which share of the epochs averaging begins.

    The recipe's learning rate schedule stays as it is; the authors keep the rate high and constant while they average.
    """

    summary: ClassVar[str] = "judge the mean of the weights of the last epochs"
    source: ClassVar[str] = "Izmailov et al. 2018, algorithm 1"
    hands: ClassVar[frozenset[str]] = frozenset({"the average"})
    turn: ClassVar[int] = 0
    tasks: ClassVar[frozenset[str] | None] = frozenset({"classification"})
    name: Literal["swa"] = "swa"
    start: float = Field(default=0.75, gt=0, lt=1)

    def first(self, epochs: int) -> int:
        """The first epoch whose weights count."""
        return quota(self.start, epochs) + 1

    def check(self, epochs: int) -> None:
        """Refuse an average of one epoch, which is none."""
        if self.first(epochs) >= epochs:
            raise UserError(
                f"scheme.start={self.start}: leaves one of {epochs} epochs to average; lower it or train longer"
            )

    def attach(self, setup: Setup) -> Attached:
        """Copy the network, before anything is put on it."""
        # In random order: batches of one class, as of a folder of images, have narrower statistics than all together.
        images = setup.training.take(setup.training.images, seed=setup.seed)
        average = StochasticAverage(setup.model, self.first(setup.epochs), images)
        setup.followers.append(average.copy)
        return average
