"""How good a network in training and its average are, on images that it is not trained on."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import distribute_bn
from torch import nn
from torch.nn.functional import cross_entropy

from torchreaper.integrations.timm_epoch import autocast, on_device
from torchreaper.integrations.timm_parts import Parts


def judge(args: Any, parts: Parts) -> dict[str, float]:
    """Mean loss and top-1 (%) of the model, and of its average with the prefix ``ema_``.

    Running statistics, which each process has of its own batches, become the means of all.
    """
    found: dict[str, float] = {}
    for prefix, module in [("", parts.model), *([("ema_", parts.ema.module)] if parts.ema else [])]:
        if args.distributed:
            distribute_bn(module, args.world_size, reduce=True)
        found |= {prefix + name: value for name, value in _validate(args, parts, module).items()}
    return found


@torch.no_grad()
def _validate(args: Any, parts: Parts, model: nn.Module) -> dict[str, float]:
    """The mean loss and the percentage that is right, over all processes."""
    model.eval()
    device, sums = parts.inputs.device, torch.zeros(3, device=parts.inputs.device)
    for batch in parts.images.validation:
        images, labels = on_device(args, device, *batch)
        with autocast(args, device):
            outputs = model(images)
        right = (outputs.argmax(1) == labels).sum()
        sums += torch.stack(
            [cross_entropy(outputs.float(), labels, reduction="sum"), right, labels.new_tensor(len(labels))]
        )
    if args.distributed:
        torch.distributed.all_reduce(sums)
    total, hits, count = sums.tolist()
    return {"loss": total / count, "top1": 100 * hits / count}
