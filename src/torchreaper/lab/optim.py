"""The recipe's optimizer and its learning rate schedule, both torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torchreaper.lab.sections import OptimSpec, ScheduleSpec


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


def build_schedule(
    spec: ScheduleSpec,
    optimizer: Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    lengths: Sequence[int] | None = None,
    scale: Callable[[], float] = lambda: 1.0,
) -> LambdaLR:
    """The schedule as a torch scheduler whose `step` is called once per optimizer step.

    Args:
        spec: What the learning rate does.
        optimizer: Whose.
        epochs: The recipe's, which `spec` is written for.
        steps_per_epoch: Optimizer steps in an epoch.
        lengths: Epochs of the trainings that follow each other; each goes through the schedule once, stretched or
            pressed to its length. None: one, of the recipe's epochs.
        scale: The rate is multiplied by it; call `reapply` when it has changed.
    """
    lengths = lengths or (epochs,)

    def rate(step: int) -> float:
        at = position(step, lengths, epochs=epochs, steps_per_epoch=steps_per_epoch)
        return scale() * factor(spec, at, epochs=epochs, steps_per_epoch=steps_per_epoch)

    return LambdaLR(optimizer, rate)


def reapply(schedule: LambdaLR) -> None:
    """Set the learning rate of the next step again."""
    groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, base, rate in groups:
        group["lr"] = base * rate(schedule.last_epoch)


def position(step: int, lengths: Sequence[int], *, epochs: int, steps_per_epoch: int) -> int:
    """The step of a schedule of `epochs` epochs that step number `step` (from 0) of a run stands for.

    The trainings of a run follow each other with the epochs of `lengths`; each passes through the whole schedule.
    """
    for length in lengths[:-1]:
        if step < length * steps_per_epoch:
            return step * epochs // length
        step -= length * steps_per_epoch
    return step * epochs // lengths[-1]


def factor(spec: ScheduleSpec, step: int, *, epochs: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by in the optimizer step number `step` (from 0) of a run.

    "halving" changes every `every` steps, "cyclic", "restarts" and the fall of "trapezoid" in each one; "step" and
    "cosine" between epochs. A warm-up of w epochs rises in a straight line, step by step, to the full rate; "cosine"
    falls over the epochs after it, the milestones of "step", the steps of "halving" and the periods count from the
    beginning of the run.
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
        case "trapezoid":
            left = epochs * steps_per_epoch - step
            return rising * min(1.0, max(0, left) / ((spec.fall or 1) * steps_per_epoch))
        case "cyclic":
            away = abs(2 * _within(spec, step, steps_per_epoch) - 1)  # 1 at both ends of a period, 0 in the middle
            return rising * (1 - away * (1 - spec.low))
        case "restarts":
            return rising * (1 + math.cos(math.pi * _within(spec, step, steps_per_epoch))) / 2


def _within(spec: ScheduleSpec, step: int, steps_per_epoch: int) -> float:
    """How much of its period has passed, from 0 to below 1."""
    period = (spec.period or 1) * steps_per_epoch
    return (step % period) / period
