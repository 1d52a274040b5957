"""Many processes: every rank drops the same filters and brings back the same values, and DDP is wrapped anew."""

from __future__ import annotations

from inspect import signature
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchreaper.errors import ReaperError

Value = TypeVar("Value")

_SETTINGS = (
    *("device_ids", "output_device", "dim", "process_group", "find_unused_parameters", "gradient_as_bucket_view"),
    *("static_graph", "device_mesh", "skip_all_reduce_unused_params", "batched_grad_copy", "mixed_precision"),
)


def of_rank_zero(value: Value) -> Value:
    """What rank 0 holds, on every rank; the value itself in a single process.

    Collective: every rank must come here. Scores can differ between ranks (data-driven criteria, running statistics,
    schemes built with other seeds); the filters that go must not.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return value
    held: list[Any] = [value]
    distributed.broadcast_object_list(held, src=0)
    found: Value = held[0]
    return found


def rewrapped(ddp: nn.Module) -> DistributedDataParallel:
    """A new DDP wrapper with the same settings, for the shapes that the parameters have now.

    DDP lays out its gradient buckets once. In compact phases parameters change their shapes at every
    :class:`Transition`, so wrap the model anew there and forget the old wrapper::

        if scheme.step() is not None:
            model = tr.rewrapped(model)

    Masked phases need nothing of the kind.

    Args:
        ddp: the wrapper in use.

    Raises:
        ReaperError: it is no DistributedDataParallel, or it has a communication hook, whose state may hold old shapes.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise ReaperError(
            f"ddp={type(ddp).__name__}: must be a torch.nn.parallel.DistributedDataParallel; a plain module needs no "
            "wrapping anew"
        )
    if getattr(ddp, "_comm_hooks", None):
        raise ReaperError(
            "ddp: has a communication hook, whose state may hold the old shapes; wrap the module anew yourself, with a "
            "fresh hook"
        )
    known = signature(DistributedDataParallel.__init__).parameters
    settings = {name: getattr(ddp, name) for name in _SETTINGS if name in known and hasattr(ddp, name)}
    if settings.get("device_mesh") is not None:
        settings.pop("process_group")  # one is made of the other
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings[buffers] = getattr(ddp, buffers)
    return DistributedDataParallel(ddp.module, bucket_cap_mb=max(1, ddp.bucket_bytes_cap >> 20), **settings)
