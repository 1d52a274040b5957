"""What a scheme is put to work on, on images of random numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.lab.data import FixedBatches, Split
from torchreaper.lab.schemes import Attached, Setup, Spec


def pictures(count: int = 40) -> FixedBatches:
    """Grey images of 8x8 random pixels, sorted by class."""
    images = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    split = Split(images, torch.arange(count) * 10 // max(1, count))
    return FixedBatches(split, "validation", torch.tensor([0.5]), torch.tensor([0.25]), batch=16)


def setup(model: nn.Module, optimizer: Optimizer | None = None, **changes: Any) -> Setup:
    """`model` with SGD and momentum, 40 pictures to read and to train on, ten epochs."""
    initial = copy.deepcopy(model)

    def sibling(seed: int) -> tuple[nn.Module, Optimizer]:
        other = copy.deepcopy(initial)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in other.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        return other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)

    def drawn(seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(pictures().take(32, seed=1000 * seed + epoch))

    values: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "example_inputs": torch.zeros(2, 1, 8, 8),
        "seed": 1,
        "batches": pictures(),
        "training": pictures(),
        "lengths": (10,),
        "sibling": sibling,
        "drawn": drawn,
        **changes,
    }
    return Setup(**values)


def attach(spec: Spec, model: nn.Module, optimizer: Optimizer | None = None, **changes: Any) -> Attached:
    """The scheme at work on `model`."""
    return spec.attach(setup(model, optimizer, **changes))
