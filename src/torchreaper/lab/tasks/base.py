"""What a task is: what its data are, what a network says of them, what that costs, and how good it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from torchreaper.lab import data, models
from torchreaper.lab.models import ModelSpec


@dataclass(frozen=True)
class Judged:
    """What a network is worth on some images.

    Attributes:
        loss: averaged over the images.
        score: the task's metric, 0 to 1.
        parts: further shares by name, such as those of each kind of question.
    """

    loss: float
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Loaded(Protocol):
    """What a run is trained and judged on; see `data.Dataset`."""

    @property
    def train(self) -> data.Readable:
        """What is trained on."""

    @property
    def validation(self) -> data.Readable | None:
        """What chooses an epoch, and what criteria read."""

    @property
    def test(self) -> data.Readable:
        """What is judged on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of classes or answers, by number."""

    @property
    def mean(self) -> Float[Tensor, " channels"]:
        """Of the training images, 0 to 1."""

    @property
    def std(self) -> Float[Tensor, " channels"]:
        """Of the training images, 0 to 1."""


class Task(ABC):
    """How networks are trained and judged on one kind of data; it holds nothing itself.

    Inputs are images [n, c, h, w] as the network reads them, or a tuple that begins with them; targets are one tensor
    whose first dimension is n.

    Attributes:
        name: as a recipe's `task` has it.
        metric: what `Judged.score` is, as people call it.
        answers: what a network is asked for: "classes", "answers" (several may be right), or "boxes".
    """

    name: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    answers: ClassVar[str] = "classes"

    @abstractmethod
    def load(self, spec: Any, base: Path, *, progress: data.Progress | None = None) -> Loaded:
        """The images of a recipe's `data:` section, or what reads them; `UserError` as `data.load`."""

    def build(self, model: ModelSpec, dataset: Loaded, *, seed: int, base: Path | None) -> nn.Module:
        """The network of a recipe's `model:` section for these data; `UserError` as `models.build`."""
        channels, height, width = dataset.train.shape
        return models.build(
            model.name,
            model.options,
            in_channels=channels,
            classes=len(dataset.classes),
            image_size=(height, width),
            generator_seed=seed,
            base=base,
            task=self.name,
            **self.sizes(dataset),
        )

    def sizes(self, dataset: Any) -> dict[str, int]:
        """What a network of this task has to know of its data beside images and classes, as `models.build` calls it."""
        return {}

    def arguments(self, network: nn.Module, inputs: Any, targets: Tensor) -> tuple[Any, ...]:
        """What the network is called with in training."""
        return inputs if isinstance(inputs, tuple) else (inputs,)

    def needs_targets(self, network: nn.Module) -> bool:
        """Whether `arguments` has more than the inputs: a network that cannot compute its loss from outputs alone."""
        return False

    def read_at_once(self, batch: int) -> int:
        """How many images criteria read at a time, where training reads `batch`."""
        return data.FixedBatches.batch

    @abstractmethod
    def loss(self, network: nn.Module, outputs: Any, targets: Tensor, *, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """What the outputs cost, averaged over the batch; `smoothing` of labels where they are classes."""

    def right(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """How many answers of a batch are right, on its device; None where there is no such thing."""
        return None

    @abstractmethod
    def judge(
        self,
        fabric: Fabric,
        call: nn.Module,
        network: nn.Module,
        split: data.Readable,
        *,
        classes: Sequence[str],
        mean: Float[Tensor, " channels"],
        std: Float[Tensor, " channels"],
        batch: int,
        only: Int64[Tensor, " some"] | None = None,
    ) -> Judged:
        """Judge a network in evaluation mode, `batch` images at a time, on all images or on those at `only`.

        `call` is `network`, or what wraps it for the precision that it is trained in. Several processes each get what
        all have found.
        """

    def judged_of_training(self, train: data.Readable, test: data.Readable) -> Int64[Tensor, " some"] | None:
        """Which training images a trained network is judged on, for the gap; None: all of them."""
        return None
