"""Questions about pictures, answered by one of the answers that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from torchreaper.lab import data
from torchreaper.lab.data.questions import KINDS, accuracy
from torchreaper.lab.tasks.base import Judged, Loaded, Task

_NONE = -1  # an answer that is not kept


class VQA(Task):
    """Inputs are (images, questions [n, words]); targets answers [n, people], the most frequent one in column 0.

    The metric is VQA's accuracy (Antol et al. 2015): an answer that three people gave is right.
    """

    name: ClassVar[str] = "vqa"
    answers: ClassVar[str] = "answers"

    def load(self, spec: Any, base: Path, *, progress: data.Progress | None = None) -> Loaded:
        """Questions and their pictures."""
        return data.load_questions(spec, base, progress=progress)

    def sizes(self, dataset: Any) -> dict[str, int]:
        """A number for each word, and the longest question."""
        return {"vocabulary": len(dataset.vocabulary), "words": dataset.words}

    def loss(self, network: nn.Module, outputs: Any, targets: Tensor, *, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """Cross entropy of the most frequent answer, over the questions whose answer is kept."""
        return F.cross_entropy(outputs, targets[:, 0], ignore_index=_NONE, label_smoothing=smoothing)

    def right(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """The sum of their shares, see `accuracy`."""
        return accuracy(outputs.argmax(1), targets).sum()

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
        """Cross entropy and accuracy; of each kind of answer too. Each process judges all questions."""
        assert isinstance(split, data.Questions)
        network.eval()
        loss, kept, shares = 0.0, 0, []
        with torch.no_grad(), fabric.autocast():
            for inputs, targets in data.judging(split, mean, std, batch=batch, only=only):
                outputs = call(*inputs).to(mean.dtype)
                loss += float(F.cross_entropy(outputs, targets[:, 0], ignore_index=_NONE, reduction="sum"))
                kept += int((targets[:, 0] != _NONE).sum())
                shares.append(accuracy(outputs.argmax(1), targets).cpu())
        right = torch.cat(shares)
        kinds = (split.kinds if only is None else split.kinds[only]).cpu()
        parts = {name: right[kinds == kind].mean().item() for kind, name in enumerate(KINDS) if (kinds == kind).any()}
        return Judged(loss / max(1, kept), right.mean().item(), parts)
