"""What a task is: what its data are, what a network says of them, what that costs, and how good it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
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


class Task(ABC):
    """How networks are trained and judged on one kind of data; it holds nothing itself.

    Inputs are images [n, c, h, w] as the network reads them, or a tuple that begins with them; targets are one tensor
    whose first dimension is n.

    Attributes:
        metric: what `Judged.score` is, as people call it.
        answers: what the outputs are: "logits", one for each class, or "boxes".
    """

    metric: ClassVar[str] = "accuracy"
    answers: ClassVar[str] = "logits"

    @abstractmethod
    def load(self, spec: Any, base: Path, *, progress: data.Progress | None = None) -> data.Dataset:
        """The images of a recipe's `data:` section, or what reads them; `UserError` as `data.load`."""

    def build(self, model: ModelSpec, dataset: data.Dataset, *, seed: int, base: Path | None) -> nn.Module:
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
        )

    def arguments(self, network: nn.Module, inputs: Any, targets: Tensor) -> tuple[Any, ...]:
        """What the network is called with in training."""
        return inputs if isinstance(inputs, tuple) else (inputs,)

    def needs_targets(self, network: nn.Module) -> bool:
        """Whether `arguments` has more than the inputs: a network that cannot compute its loss from outputs alone."""
        return False

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
        mean: Float[Tensor, " channels"],
        std: Float[Tensor, " channels"],
        batch: int,
    ) -> Judged:
        """Judge a network in evaluation mode, `batch` images at a time.

        `call` is `network`, or what wraps it for the precision that it is trained in. Several processes each get what
        all have found.
        """

    def training_share(self, train: data.Readable, test: data.Readable) -> data.Readable:
        """The training images that a trained network is judged on, for the gap: all of them."""
        return train
