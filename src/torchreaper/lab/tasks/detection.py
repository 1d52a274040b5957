"""Where the objects on a photograph are, and of which class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from torchreaper.lab import data
from torchreaper.lab.average_precision import average_precision, names_of_classes
from torchreaper.lab.models.checking import check_detections
from torchreaper.lab.schemes import drawing_aside
from torchreaper.lab.tasks.base import Judged, Loaded, Task

FEW_CLASSES = 20
"""Up to so many, the average precision of each class is told."""


class Exact(Tensor):
    """Numbers that a cast to half precision leaves as they are: Fabric casts all floats that a network is called with.

    In bfloat16 corners of boxes above 512 would be multiples of 4, and not every class above 256 has a number.
    What is computed from them is an ordinary tensor.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Of every function the usual result, but for ``to``."""
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
            if func is Tensor.to and found.dtype in (torch.bfloat16, torch.float16):
                return args[0].to(found.device).as_subclass(cls)
        return found


class Detection(Task):
    """Targets are boxes [n, most, 5], rows (x1, y1, x2, y2, class) in pixels of the input; class -1 is no box.

    A network has `takes_targets`, `loss(outputs, targets)` and `detections(outputs)`, see
    `torchreaper.lab.models.detector`; the metric is COCO's mean average precision.
    """

    name: ClassVar[str] = "detection"
    metric: ClassVar[str] = "mAP"
    answers: ClassVar[str] = "boxes"

    def load(self, spec: Any, base: Path, *, progress: data.Progress | None = None) -> Loaded:
        """Photographs and the boxes on them."""
        return data.load_boxes(spec, base, progress=progress)

    def arguments(self, network: nn.Module, inputs: Any, targets: Tensor) -> tuple[Any, ...]:
        """The images; of a network of two stages the boxes too: its second stage learns from a sample around them."""
        return (inputs, targets.as_subclass(Exact)) if self.needs_targets(network) else (inputs,)

    def needs_targets(self, network: nn.Module) -> bool:
        """Whether it is one of two stages."""
        return bool(getattr(network, "takes_targets", False))

    def read_at_once(self, batch: int) -> int:
        """No more than training does: photographs are large, and so is what a detector makes of them."""
        return min(super().read_at_once(batch), batch)

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
        only: Int64[Tensor, " some"] | None = None,
    ) -> Judged:
        """The network's loss and mean average precision, in pixels of the photographs. Each process judges them all."""
        assert isinstance(split, data.BoxSplit)
        network.eval()
        loss, found = 0.0, []
        # Several processes call the network itself: it then reads and says what it would inside Fabric's wrapper.
        precision = fabric.strategy.precision
        # What a network samples in its loss must not move the random numbers of training, and is the same each time.
        with drawing_aside(network, 0), torch.no_grad(), fabric.autocast():
            for images, targets in data.judging(split, mean, std, batch=batch, only=only):
                images = precision.convert_input(images)
                outputs = precision.convert_output(call(*self.arguments(network, images, targets)))
                loss += float(self.loss(network, outputs, targets)) * len(targets)
                if self.needs_targets(network):
                    outputs = precision.convert_output(call(images))
                mine = network.detections(outputs)
                check_detections(mine, "model", images=len(targets), classes=len(classes))
                found += [one.cpu() if one.is_floating_point() else one.cpu().float() for one in mine]
        there = range(len(split)) if only is None else only.tolist()
        for one, factor in zip(found, split.scale.cpu()[there].tolist()):
            one[:, :4] /= factor
        truths, crowds = split.truths(), split.crowds()
        figures = average_precision(
            found, [truths[one] for one in there], classes, crowd=[crowds[one] for one in there]
        )
        score = figures.pop("mAP")
        left = set(names_of_classes(classes)) if len(classes) > FEW_CLASSES else set()
        return Judged(loss / len(there), score, {name: value for name, value in figures.items() if name not in left})

    def judged_of_training(self, train: data.Readable, test: data.Readable) -> Int64[Tensor, " some"] | None:
        """As many as there are test images: the gap needs no more, and COCO has 118,287 to train on.

        They are taken from everywhere, as a data set may begin with all photographs that have no box; where none of
        them has one, there is nothing to be precise about, and all are judged.
        """
        if len(train) <= len(test):
            return None
        chosen = torch.arange(len(test)) * len(train) // len(test)
        there = (train.labels[:, :, -1] >= 0).any(1).cpu()
        return chosen if there[chosen].any() else None
