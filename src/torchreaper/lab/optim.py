"""The recipe's optimizer and its learning rate schedule, both torch's."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torchreaper.lab.recipe import OptimSpec, ScheduleSpec


def build_optimizer(spec: OptimSpec, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer that `spec` names."""
    lr, decay = spec.lr, spec.weight_decay
    match spec.name:
        case "sgd":
            momentum, nesterov = spec.momentum, spec.nesterov
            return torch.optim.SGD(parameters, lr, momentum, weight_decay=decay, nesterov=nesterov)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr, momentum=spec.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, lr, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, weight_decay=decay)


def build_schedule(spec: ScheduleSpec, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """The schedule as a torch scheduler whose `step` is called once per optimizer step."""
    return LambdaLR(optimizer, lambda step: factor(spec, step, epochs=epochs, steps_per_epoch=steps_per_epoch))


def factor(spec: ScheduleSpec, step: int, *, epochs: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by in the optimizer step number `step` (from 0) of a run.

    "halving" changes every `every` steps; "step" and "cosine" change between epochs. A warm-up of w epochs rises in
    a straight line, step by step, to the full rate; "cosine" falls over the epochs after it, the milestones
    of "step" and the steps of "halving" count from the beginning of the run.
    """
    epoch = step // steps_per_epoch
    warm = spec.warmup * steps_per_epoch
    rising = min(1.0, (step + 1) / (warm + 1))
    match spec.name:
        case "constant":
            return rising
        case "step":
            return rising * spec.gamma ** sum(epoch >= milestone for milestone in spec.milestones)
        case "cosine":
            part = max(0, epoch - spec.warmup) / max(1, epochs - spec.warmup)
            return rising * (1 + math.cos(math.pi * min(part, 1))) / 2
        case "halving":
            return rising * spec.factor ** (step // (spec.every or 1))
