"""Several processes that train one network (DDP): how they begin, what one of them does for all, what they add up.

Fabric starts them, or finds those that torchrun or Slurm has started. Each takes its share of every batch. Files
are the affair of rank 0 alone; the others need not see its disk, except for the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from torchreaper.errors import ReaperError
from torchreaper.lab import stopping
from torchreaper.lab.environment import fabric_quiet, make_fabric
from torchreaper.lab.errors import UserError
from torchreaper.lab.launched import rank as rank
from torchreaper.lab.launched import started

Value = TypeVar("Value")


def begin(
    device: str, precision: str, devices: int | None, nodes: int | None, *, batch: int | None = None
) -> Fabric | None:
    """The processes that were asked for, each with its `Fabric`; None for a single one.

    Returns in every process. Those that torchrun or Slurm has not started begin the command anew, from its first line,
    and are ended when this one is told to stop.

    Args:
        device: As in `make_fabric`.
        precision: As in a recipe.
        devices: Processes on each machine; None: as many as torchrun or Slurm has started, else one.
        nodes: Machines; None: likewise.
        batch: What they are to share, if that is known: better refused before they begin.

    Raises:
        UserError: The numbers are not those of torchrun or Slurm, or there are fewer devices.
    """
    there = started()
    for name, asked, found in zip(("devices", "nodes"), (devices, nodes), there or ()):
        if asked is not None and asked != found:
            raise UserError(
                f"{name}={asked}: torchrun or Slurm has started {found}; leave --{name} out, or ask for that"
            )
    devices, nodes = there or (devices or 1, nodes or 1)
    if devices * nodes == 1:
        return None
    if batch is not None:
        check_batch(batch, devices * nodes)
    fabric = make_fabric(device, precision, devices=devices, nodes=nodes)
    stopping.take_along(lambda: _end_started(fabric))
    with fabric_quiet():
        fabric.launch()
    return fabric


def _end_started(fabric: Fabric) -> None:
    """End the processes that this one has started, if any.

    They would wait for it in vain and then fail, each with an error of its own; none of them writes files.
    """
    for process in getattr(fabric.strategy.launcher, "procs", ()):
        process.kill()


def check_batch(batch: int, processes: int) -> None:
    """Raise `UserError` where so many processes cannot share a batch evenly."""
    if batch % processes:
        raise UserError(f"batch={batch}: {processes} processes cannot share it evenly; use a multiple of that")


def by_rank_zero(fabric: Fabric | None, work: Callable[[], Value]) -> Value:
    """What `work` returns, or refuses, in the first process, in all of them; the others only wait for it.

    Raises:
        UserError, ReaperError: That of the first process, so that none goes on alone.
    """
    if fabric is None or fabric.world_size == 1:
        return work()
    held: tuple[Any, Exception | None] = None, None
    if fabric.is_global_zero:
        try:
            held = work(), None
        except (UserError, ReaperError) as error:
            held = None, error.with_traceback(None)
    value, refusal = fabric.broadcast(held)
    if refusal is not None:
        raise refusal
    found: Value = value
    return found


def summed(fabric: Fabric, value: Tensor) -> Tensor:
    """The sum of `value` over all processes, in all of them."""
    if fabric.world_size == 1:
        return value
    total: Tensor = fabric.all_reduce(value, reduce_op="sum")
    return total


def of_every_rank(fabric: Fabric, value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks."""
    if fabric.world_size == 1:
        return [value]
    held: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(held, value)
    return held


@torch.no_grad()
def same_buffers(fabric: Fabric, *modules: nn.Module) -> None:
    """Give all processes the first one's buffers: running statistics are of each one's own share of the batches."""
    if fabric.world_size > 1:
        for buffer in {id(buffer): buffer for module in modules for buffer in module.buffers()}.values():
            torch.distributed.broadcast(buffer, src=0)
