"""One epoch of training, as timm's script trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad, reduce_tensor
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from torchreaper.integrations.timm_images import naming
from torchreaper.integrations.timm_parts import Parts

Tell = Callable[[int, int, int, float], None]


def autocast(args: Any, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision, if it is asked for."""
    return torch.autocast(device.type, getattr(torch, args.amp_dtype)) if args.amp else nullcontext()


def on_device(args: Any, device: torch.device, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch as the model takes it."""
    layout = torch.channels_last if args.channels_last else torch.preserve_format
    return images.to(device, memory_format=layout), labels.to(device)


def wrapped(args: Any, parts: Parts) -> Any:
    """The model as it is called in training: under DDP, compiled, or itself."""
    device, called = parts.inputs.device, parts.model
    if args.distributed:
        called = DistributedDataParallel(called, device_ids=[device] if device.type == "cuda" else None)
    if args.torchcompile:
        with naming("torchcompile", args.torchcompile):
            called = torch.compile(called, backend=args.torchcompile)  # type: ignore[assignment]
    return called


def train_epoch(args: Any, parts: Parts, called: Any, epoch: int, tell: Tell) -> float:
    """Train.

    Args:
        args: those of timm's ``train.py``, by its names.
        parts: what trains.
        called: the model, or what wraps it.
        epoch: its number, from 0.
        tell: is given the epoch, the batches done, those of the epoch, and the mean loss so far.

    Returns:
        The mean loss of all processes, not finite where training has diverged in one.
    """
    batches, every, mixup = len(parts.images.training), args.grad_accum_steps, parts.images.mixup
    if mixup is not None:
        mixup.mixup_enabled = not (args.mixup_off_epoch and epoch >= args.mixup_off_epoch)
    called.train()
    device, total = parts.inputs.device, torch.zeros((), device=parts.inputs.device)
    updates = epoch * -(-batches // every)
    parts.optimizer.zero_grad()
    for number, batch in enumerate(parts.images.training, 1):
        images, labels = on_device(args, device, *batch)
        if mixup is not None and not args.prefetcher:  # a prefetching loader mixes as it collates
            images, labels = mixup(images, labels)
        due = number % every == 0 or number == batches
        together = min(every, batches - (number - 1) // every * every)
        with nullcontext() if due or not args.distributed else called.no_sync():
            with autocast(args, device):
                loss = parts.loss(called(images), labels)
            _backward(args, parts, loss / together, update=due)
        total += loss.detach()
        if due:
            updates += 1
            parts.optimizer.zero_grad()
            if parts.ema is not None:
                parts.ema.update(parts.model, step=updates)
            if parts.schedule is not None:
                parts.schedule.step_update(updates)
        if number % args.log_interval == 0 or number == batches:
            tell(epoch, number, batches, total.item() / number)
    return float(reduce_tensor(total, args.world_size) if args.distributed else total) / batches


def _backward(args: Any, parts: Parts, loss: Tensor, *, update: bool) -> None:
    """Gradients, and where it is time the optimizer's step, as timm takes it."""
    clip = {"clip_grad": args.clip_grad, "clip_mode": args.clip_mode}
    clipped = model_parameters(parts.model, exclude_head="agc" in args.clip_mode)
    second = getattr(parts.optimizer, "is_second_order", False)
    if parts.scaler is not None:
        parts.scaler(loss, parts.optimizer, **clip, parameters=clipped, create_graph=second, need_update=update)
        return
    loss.backward(create_graph=second)  # type: ignore[no-untyped-call]
    if update:
        if args.clip_grad is not None:
            dispatch_clip_grad(clipped, value=args.clip_grad, mode=args.clip_mode)
        parts.optimizer.step()
