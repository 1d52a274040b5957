"""Two real processes on loopback, mostly through gloo; one that waits for the other too long is killed."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 60  # a collective that waits longer fails; all of it takes a tenth of that

Scenarios = Callable[[int], dict[str, Any]]


def _work(rank: int, folder: str, scenarios: Scenarios, backend: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    meeting, wait = f"file://{folder}/meeting", timedelta(seconds=SECONDS)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=2, timeout=wait)
    try:
        torch.save(scenarios(rank), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def in_two_ranks(scenarios: Scenarios, folder: Path, backend: str = "gloo") -> list[dict[str, Any]]:
    """What ``scenarios(rank)``, a function of a module, returns in each of two processes."""
    context = mp.spawn(_work, args=(str(folder), scenarios, backend), nprocs=2, join=False)
    try:
        end = time.monotonic() + 3 * SECONDS
        while not context.join(timeout=1):
            assert time.monotonic() < end, "the ranks wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
