"""What a scheme is put to work on, on images of random numbers, and the training loop in a few lines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.lab.data import FixedBatches, Split
from torchreaper.lab.schemes import Attached, Batch, Setup, Spec


def pictures(count: int = 40, dtype: torch.dtype = torch.float32) -> FixedBatches:
    """Grey images of 8x8 random pixels, sorted by class."""
    images = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    split = Split(images, torch.arange(count) * 10 // max(1, count))
    mean, std = torch.tensor([0.5], dtype=dtype), torch.tensor([0.25], dtype=dtype)
    return FixedBatches(split, "validation", mean, std, batch=16)


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """Two convolutions of 8 and 6 filters, one with BatchNorm, and a fully connected layer; for `pictures`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        return nn.Sequential(*first, nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 10)).to(dtype)


def optimizer_of(name: str, model: nn.Module) -> Optimizer:
    """SGD with momentum, or AdamW, both with weight decay."""
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def setup(model: nn.Module, optimizer: Optimizer | None = None, **changes: Any) -> Setup:
    """`model` with SGD and momentum, 40 pictures to read and to train on, ten epochs of two batches."""
    initial = copy.deepcopy(model)
    dtype = next(model.parameters()).dtype

    def sibling(seed: int) -> tuple[nn.Module, Optimizer]:
        other = copy.deepcopy(initial)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in other.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        return other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)

    def drawn(seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(pictures(dtype=dtype).take(32, seed=1000 * (seed % 1000) + epoch))

    values: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "example_inputs": torch.zeros(2, 1, 8, 8, dtype=dtype),
        "seed": 1,
        "batches": pictures(dtype=dtype),
        "training": pictures(dtype=dtype),
        "lengths": (10,),
        "sibling": sibling,
        "drawn": drawn,
        **changes,
    }
    return Setup(**values)


def attach(spec: Spec, model: nn.Module, optimizer: Optimizer | None = None, **changes: Any) -> Attached:
    """The scheme at work on `model`."""
    return spec.attach(setup(model, optimizer, **changes))


def train_step(scheme: Attached, on: Setup, images: Tensor, targets: Tensor) -> tuple[Batch, Tensor]:
    """One optimizer step as the lab makes it; the batch and its loss."""

    def backward() -> tuple[Batch, Tensor]:
        on.optimizer.zero_grad()
        batch = Batch(on.model, (images,), targets, on.model(images))
        loss = scheme.loss(batch, F.cross_entropy(batch.outputs, batch.targets, label_smoothing=scheme.label_smoothing))
        loss.backward()
        return batch, loss.detach()

    images, targets = scheme.mix(images, targets)
    batch, loss = backward()
    scheme.gradients(backward)
    on.optimizer.step()
    scheme.stepped(batch)
    return batch, loss


def train_epoch(scheme: Attached, on: Setup) -> list[Tensor]:
    """An epoch up to the judging of the network: without `Attached.step`; the losses."""
    on.model.train()
    losses = [train_step(scheme, on, images, targets)[1] for images, targets in on.drawn(0, scheme.epoch + 1)]
    scheme.trained()
    return losses


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def hooks_on(model: nn.Module) -> int:
    """How many hooks sit on the modules and on the parameters."""
    on_modules = [hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
    on_tensors = [
        hooks or () for p in model.parameters() for hooks in (p._backward_hooks, p._post_accumulate_grad_hooks)
    ]
    return sum(map(len, [*on_modules, *on_tensors]))
