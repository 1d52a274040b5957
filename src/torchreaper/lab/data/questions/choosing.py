"""Which questions are trained on, validate and judge: at random, from a seed."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from torchreaper.lab.errors import UserError


def hold_out(
    pictures: Int64[Tensor, " questions"], count: int, *, seed: int
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " validation"]]:
    """Indices to train on and to validate on, ascending: all questions about a picture go to one side.

    Pictures are taken in random order, each whose questions still go into ``count``: so at most that many are held
    out, and fewer only where every picture that is left has more than are missing.
    Raises ``UserError`` where that leaves nothing on a side.
    """
    if not count:
        return torch.arange(len(pictures)), torch.arange(0)
    _, picture, sizes = torch.unique(pictures, return_inverse=True, return_counts=True)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    taken, room = torch.zeros(len(sizes), dtype=torch.bool), count
    for one, size in zip(order.tolist(), sizes[order].tolist()):
        if size <= room:
            taken[one] = True
            room -= size
    if taken.all():
        raise UserError(
            f"data.validation={count}: leaves nothing to train on, there are {len(pictures)} training questions"
        )
    if not taken.any():
        raise UserError(
            f"data.validation={count}: every picture has {int(sizes.min())} questions or more, which stay together; "
            f"use validation >= {int(sizes.min())}"
        )
    held = taken[picture]
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def limited(index: Int64[Tensor, " n"], limit: int | None, *, seed: int, key: str, what: str) -> Int64[Tensor, " kept"]:
    """``limit`` of these indices, ascending, at random; all for None.

    Raises ``UserError``, which names ``key``, where there are fewer.
    """
    if limit is None:
        return index
    if limit > len(index):
        raise UserError(f"data.{key}={limit}: only {len(index)} {what} questions are there; use {key} <= {len(index)}")
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))
    return index[order[:limit].sort().values]
