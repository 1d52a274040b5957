"""What torchrun, Slurm or Fabric say of this process in its environment; nothing is imported that takes time."""

from __future__ import annotations

import os


def started() -> tuple[int, int] | None:
    """The processes on each machine, and the machines, of a job that torchrun or Slurm has started."""
    found = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(found("LOCAL_WORLD_SIZE", "1"))
        return here, int(found("WORLD_SIZE", "1")) // here
    if int(found("SLURM_NTASKS", "1")) > 1 and found("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(found("SLURM_NNODES", "1"))
        return int(found("SLURM_NTASKS_PER_NODE", found("SLURM_NTASKS", "1"))), nodes
    return None


def several() -> bool:
    """Whether this process is one of several that train together, wherever they were started."""
    return started() is not None or "LOCAL_RANK" in os.environ


def rank() -> int:
    """The number of this process among those that train together, from 0, wherever it was started."""
    ranks = ("RANK", "SLURM_PROCID") if started() else ("LOCAL_RANK",)
    return next((int(os.environ[name]) for name in ranks if name in os.environ), 0)
