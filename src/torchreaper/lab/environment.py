"""The machine a run is on, and its random numbers: read, seeded, put back."""

from __future__ import annotations

import logging
import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from torchreaper.lab.data import epoch_seed
from torchreaper.lab.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def machine(device: torch.device) -> dict[str, Any]:
    """What could change the last bits of a run."""
    return {
        "torch": str(torch.__version__),  # it is of a class of its own
        "cpu": _cpu(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
    }


def environment(*, device: torch.device, precision: str, base: Path) -> dict[str, Any]:
    """The machine, the versions, when and how the run was started, and where its relative data paths begin."""
    return {
        "python": platform.python_version(),
        "torchreaper": version("torchreaper"),
        "platform": platform.platform(),
        **machine(device),
        "precision": precision,
        "base": str(base.absolute()),
        "command": shlex.join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def make_fabric(device: str, precision: str, *, devices: int = 1, nodes: int = 1) -> Fabric:
    """A `Fabric` on "auto" (the best device there is), "cpu", "cuda" or "mps"; `UserError` for others.

    With several `devices` (on each of `nodes` machines) there is a process for each, and DDP over them.
    """
    if device not in DEVICES:
        raise UserError(f"device={device!r}: unknown; choose one of {', '.join(DEVICES)}")
    strategy = "ddp" if devices * nodes > 1 else "auto"
    how: dict[str, Any] = {"devices": devices, "num_nodes": nodes, "strategy": strategy, "precision": precision}
    try:
        with fabric_quiet():
            return Fabric(accelerator=device, **how)
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        many = f", {devices} processes a machine" if devices * nodes > 1 else ""
        raise UserError(f"device={device!r}{many}: cannot be used here ({reason}); use auto or cpu") from error


@contextmanager
def fabric_quiet() -> Iterator[None]:
    """Fabric would announce precision and processes, in the middle of a progress bar."""
    talk = logging.getLogger("lightning_fabric")
    level = talk.level
    talk.setLevel(logging.WARNING)
    try:
        yield
    finally:
        talk.setLevel(level)


def rng_state() -> dict[str, Any]:
    """The state of every global random generator, in types that `torch.load(weights_only=True)` reads."""
    name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    kind, numbers, normal = random.getstate()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": (kind, torch.tensor(numbers), normal),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back into a state that `rng_state` gave."""
    kind, numbers, normal = state["python"]
    random.setstate((kind, tuple(numbers.tolist()), normal))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def own_random_numbers(seed: int, rank: int = 0) -> Iterator[None]:
    """Seed the global generators; they and torch's thread count are the caller's again afterwards."""
    before, threads = rng_state(), torch.get_num_threads()
    seed_python(seed, rank)
    torch.manual_seed(epoch_seed(seed, 0, f"torch{_mine(rank)}"))
    try:
        yield
    finally:
        set_rng_state(before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def seed_python(seed: int, rank: int = 0) -> None:
    """Seed the global generators of Python and NumPy: again when all is built, as what is imported on the way may draw.

    rich does; a second run in the same process does not import it again, and would get other numbers than a first one.
    """
    random.seed(epoch_seed(seed, 0, f"python{_mine(rank)}"))
    np.random.seed(epoch_seed(seed, 0, f"numpy{_mine(rank)}") % 2**32)


def _mine(rank: int) -> str:
    """Processes that train together drop out other activations."""
    return f"-{rank}" if rank else ""


@cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The git commit of the current folder, if it is in a repository that has one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
