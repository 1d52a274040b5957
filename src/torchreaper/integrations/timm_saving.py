"""What a timm training run leaves after each epoch, and goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from torchreaper import loading
from torchreaper.errors import ReaperError
from torchreaper.ranks import decided_by_rank_zero

#: Beside timm's own checkpoints, which do not know of the scheme.
LAST = "repr-last.pt"
#: Arguments that change no number.
_FREE = {"device", "workers", "log_interval", "output", "experiment", "checkpoint_hist", "rank", "local_rank"}


def what(args: Any, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What makes a run's numbers."""
    return {"args": {name: value for name, value in vars(args).items() if name not in _FREE}, "repr": settings}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What torch says of a full disk, as an `OSError` that names the folder."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        text = f"{folder}: cannot be written ({str(error).splitlines()[0]}); what was saved last is there"
        raise OSError(f"{text}, give the same command again to go on") from error


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace what is there as a whole, wherever this is cut off."""
    written = folder / f"{LAST}.tmp"
    written.unlink(missing_ok=True)  # a link there would lead the writing elsewhere
    with writing(folder), open(written, "xb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(written, folder / LAST)


def load(folder: Path, asked: dict[str, dict[str, Any]], args: Any) -> dict[str, Any] | None:
    """What was saved last, on the CPU; None where a run begins. The others need not see the first process's disk.

    Raises:
        ReaperError: it cannot be read, was begun with something else than ``asked`` (of `what`), or the folder holds
            what is not of such a run.
    """
    return decided_by_rank_zero(lambda: _read(folder, asked) if args.rank == 0 else None)


def _read(folder: Path, asked: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    file = folder / LAST
    if not file.exists():
        there = {path.name for path in folder.glob("*")} - {f"{LAST}.tmp"}
        if there:
            raise ReaperError(f"{folder}: holds {min(there)} of something else; choose another --experiment")
        return None
    try:
        state: dict[str, Any] = loading.load(file)
        began = {part: dict(state["what"][part]) for part in asked}
        history = state["history"]
    except Exception as error:  # whatever the bytes make of it
        raise ReaperError(
            f"{file}: is no checkpoint that can be read ({loading.reason(error)}); move it away to begin anew"
        ) from error
    if not history:  # nothing was trained yet
        return None
    for part, values in asked.items():
        for name in sorted(values.keys() | began[part].keys()):
            if (now := values.get(name)) != (then := began[part].get(name)):
                text = f"{name}={now!r}: the run in {folder} was begun with {then!r}"
                raise ReaperError(f"{text}; use that, or another --experiment")
    return state
