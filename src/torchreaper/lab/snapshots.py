"""Snapshots: the weights of a network as they were after some epochs, kept in a run's folder for later analysis.

`snapshots/epoch-0010.pt` is a dict: `epoch`; `phase`, "full" or "sub", that the epoch was trained in; `dropped`, the
filters that were absent in it, by layer; `model`, the state dict, full shapes in every phase, on the CPU. It is the
state at the end of the epoch, before the scheme's step: what the epoch trained, and what its metrics are about.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from torchreaper import loading
from torchreaper.lab.checksums import SUFFIX, agrees, write_checked
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import Json, bytes_of

FOLDER = "snapshots"
_NAME = re.compile(r"epoch-(\d{4,})\.pt")


def due(epoch: int, *, every: int | None, epochs: int) -> bool:
    """Whether something is due after `epoch`: after each `every`-th one and after the last; never where None."""
    return every is not None and (epoch % every == 0 or epoch == epochs)


def take(model: nn.Module, epoch: int, phase: str, dropped: Mapping[str, Sequence[int]]) -> Json:
    """The network as it is now; a copy, so that it may go on changing."""
    return {
        "epoch": epoch,
        "phase": phase,
        "dropped": {name: list(filters) for name, filters in dropped.items()},
        "model": {name: value.detach().cpu().clone() for name, value in model.state_dict().items()},
    }


def write(run: Path, snapshot: Json) -> None:
    """Put a snapshot into a run's folder, in the place of one of the same epoch."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    write_checked(folder / f"epoch-{snapshot['epoch']:04d}.pt", buffer.getvalue())


def read(path: Path) -> Json:
    """The snapshot in a file that `find` names, on the CPU.

    Raises:
        UserError: The file does not agree with its checksum, or is no snapshot.
    """
    data = bytes_of(path)
    if not agrees(path, data):
        raise UserError(f"{path}: damaged, it does not agree with its checksum")
    try:
        snapshot: Json = loading.load(data)
        if snapshot.keys() >= {"epoch", "phase", "dropped", "model"}:
            return snapshot
    except Exception:  # whatever the bytes make torch raise
        pass
    raise UserError(f"{path}: cannot be read")


def find(run: Path) -> dict[int, Path]:
    """The snapshots in a run's folder by epoch, in order; `read` reads one."""
    found = {int(name[1]): path for path in (Path(run) / FOLDER).glob("*") if (name := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def delete(run: Path, *, after: int = 0) -> None:
    """Delete the snapshots of the epochs after `after`, and what is left of one that was being written."""
    folder = run / FOLDER
    if not folder.is_dir():
        return
    for epoch, path in find(run).items():
        if epoch > after:
            path.unlink()
    for path in folder.glob("epoch-*.pt*.tmp"):
        path.unlink()
    for path in folder.glob(f"epoch-*.pt{SUFFIX}"):
        if not path.with_name(path.name.removesuffix(SUFFIX)).exists():
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
