"""Which class an image belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from torchreaper.lab import data
from torchreaper.lab.measures import evaluate
from torchreaper.lab.tasks.base import Judged, Loaded, Task


class Classification(Task):
    """Targets are classes [n], or where images are mixed the probability of each class [n, classes]."""

    name: ClassVar[str] = "classification"

    def load(self, spec: Any, base: Path, *, progress: data.Progress | None = None) -> Loaded:
        """Images and their classes."""
        return data.load(spec, base, progress=progress)

    def loss(self, network: nn.Module, outputs: Any, targets: Tensor, *, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """Cross entropy."""
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

    def right(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Of mixed images the class that has the larger share counts."""
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        found: Tensor = (outputs.argmax(1) == classes).sum()
        return found

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
        """Cross entropy and accuracy."""
        return Judged(*evaluate(fabric, call, split, mean=mean, std=std, batch=batch, only=only))
