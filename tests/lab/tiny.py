"""A run of well under a second: 60 digits, a network of two narrow layers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torchreaper.lab.recipe import Recipe

TINY: dict[str, Any] = {
    "name": "tiny",
    "epochs": 5,
    "batch": 25,  # 60 images: two full batches, and 10 images left over
    "data": {"name": "digits", "limit": 60, "validation": 20},
    "model": {"name": "cnet", "options": {"depth": 2, "width": 6, "batch_norm": True, "dropout": 0.2}},
    "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "eval_batch": 300,
    "scheme": {"name": "repr", "full": 1, "sub": 2, "cycles": 1, "fraction": 0.4},
}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.01}


def recipe(**changes: Any) -> Recipe:
    """The tiny recipe with some sections replaced, `model__options__width=8` reaching inside one."""
    values = deepcopy(TINY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = values
        for parent in parents:
            section = section[parent]
        section[last] = value
    return Recipe.model_validate(values)
