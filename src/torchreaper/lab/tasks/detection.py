"""Where the objects on a photograph are, and of which class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from torchreaper.lab import data
from torchreaper.lab.average_precision import average_precision
from torchreaper.lab.schemes import drawing_aside
from torchreaper.lab.tasks.base import Judged, Loaded, Task

FEW_CLASSES = 20
"""Up to so many, the average precision of each class is told."""


class Detection(Task):
    """Targets are boxes [n, most, 5], rows (x1, y1, x2, y2, class) in pixels of the input; class -1 is no box.

    A network has `takes_targets`, `loss(outputs, targets)` and `detections(outputs)`, see
    `torchreaper.lab.models.detector`; the metric is COCO's mean average precision.
    """

    metric: ClassVar[str] = "mAP"
    answers: ClassVar[str] = "boxes"

    def load(self, spec: Any, base: Path, *, progress: data.Progress | None = None) -> Loaded:
        """Photographs and the boxes on them."""
        return data.load_boxes(spec, base, progress=progress)

    def arguments(self, network: nn.Module, inputs: Any, targets: Tensor) -> tuple[Any, ...]:
        """The images; of a network of two stages the boxes too: its second stage learns from a sample around them."""
        return (inputs, targets) if self.needs_targets(network) else (inputs,)

    def needs_targets(self, network: nn.Module) -> bool:
        """Whether it is one of two stages."""
        return bool(getattr(network, "takes_targets", False))

    def loss(self, network: Any, outputs: Any, targets: Tensor, *, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """The network's own."""
        found: Tensor = network.loss(outputs, targets)
        return found

    def judge(
        self,
        fabric: Fabric,
        call: nn.Module,
        network: Any,
        split: data.Readable,
        *,
        classes: Sequence[str],
        mean: Float[Tensor, " channels"],
        std: Float[Tensor, " channels"],
        batch: int,
        most: int | None = None,
    ) -> Judged:
        """The network's loss and mean average precision, in pixels of the photographs. Each process judges them all."""
        assert isinstance(split, data.BoxSplit)
        network.eval()
        loss, found = 0.0, []
        # What a network samples in its loss must not move the random numbers of training, and is the same each time.
        with drawing_aside(network, 0), torch.no_grad(), fabric.autocast():
            for images, targets in data.judging(split, mean, std, batch=batch, most=most):
                outputs = call(*self.arguments(network, images, targets))
                loss += float(self.loss(network, outputs, targets)) * len(targets)
                if self.needs_targets(network):
                    outputs = call(images)
                found += [one.cpu() for one in network.detections(outputs)]
        scale = split.scale.cpu().tolist()
        for one, factor in zip(found, scale):
            one[:, :4] /= factor
        there = len(found)
        figures = average_precision(found, split.truths()[:there], classes, crowd=split.crowds()[:there])
        score = figures.pop("mAP", 0.0)
        told = {
            name: value for name, value in figures.items() if len(classes) <= FEW_CLASSES or name not in _of(classes)
        }
        return Judged(loss / there, score, told)

    def judged_of_training(self, train: data.Readable, test: data.Readable) -> int | None:
        """As many as there are test images: the gap needs no more, and COCO has 118,287 to train on."""
        return min(len(train), len(test))


def _of(classes: Sequence[str]) -> set[str]:
    """What the average precision of single classes is called."""
    return {f"AP {name}" for name in classes} | {f"AP {name} (class)" for name in classes}
