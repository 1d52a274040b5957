"""When training ends in Lightning, counted in epochs or in steps."""

from __future__ import annotations

import math
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging


def end_of(trainer: Trainer, unit: Literal["epoch", "step"]) -> int | None:
    """How many units there will be in all; ``None`` where that is not known, or training is just tried out.

    Without the pass that SWA adds, which takes statistics only.
    """
    if trainer.fast_dev_run:
        return None
    epochs = [one._max_epochs for one in trainer.callbacks if isinstance(one, StochasticWeightAveraging)]
    limit = trainer.max_steps if unit == "step" else (*epochs, trainer.max_epochs)[0]
    if limit is not None and limit >= 0:
        return int(limit)
    if epochs or not trainer.lightning_module.automatic_optimization:  # of two optimizers each counts its steps
        return None
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches  # the first reads the loader
    if math.isinf(steps) or math.isinf(batches) or steps < 0:
        return None
    return math.ceil(steps * trainer.accumulate_grad_batches / batches) if unit == "epoch" else int(steps)
