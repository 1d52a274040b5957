"""Checkpoints: all that a run goes on from, with checksums; the one before is kept."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch

from torchreaper import loading
from torchreaper.lab.checksums import digest_of, read_digest, write_digest
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import Json, finite, gone_if_it_fails, sync, write_bytes
from torchreaper.lab.objects import plain
from torchreaper.lab.records import EventLine, MetricsLine
from torchreaper.lab.records import check as check_record
from torchreaper.lab.settings import show

LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", ".damaged"


def save_checkpoint(folder: Path, state: Json) -> None:
    """Make `state` the folder's `last.pt`, the one before its `previous.pt`.

    Wherever this is cut off, at least one of the two is whole and agrees with its checksum.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    fresh = last.with_name(LAST + ".tmp")
    write_bytes(fresh, data)
    with gone_if_it_fails(fresh):  # on a full disk it would take the room that its own repetition needs
        digest = read_digest(last)
        if digest is not None and last.exists():
            write_digest(previous, digest)
            os.replace(last, previous)
        write_digest(last, digest_of(data))
        os.replace(fresh, last)
    sync(folder)  # renames reach the disk in their order, so that one sync at the end does for all


def load_checkpoint(folder: Path, note: Callable[[str], None], *, mend: bool = True) -> Json | None:
    """The newest whole checkpoint of a folder, on the CPU, or None; `note` is told what was damaged.

    A damaged file is put aside as `*.damaged`, so that it never takes the place of a good `previous.pt`; with
    ``mend=False``, for those who only look at a run, nothing in the folder is touched.
    Raises `UserError` where the file is whole but is no checkpoint, or not for this version of torch.
    """
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    for path in found:
        data = path.read_bytes()
        if digest_of(data) == read_digest(path):
            return _unpack(path, data)
        aside, afresh = ("put aside, ", ": starting at epoch 1") if mend else ("", "")
        instead = "using the one before" if path != found[-1] else f"there is no other{afresh}"
        note(f"{path}: damaged, it does not agree with its checksum; {aside}{instead}")
        if mend:
            os.replace(path, path.with_name(path.name + DAMAGED))
    return None


def can_go_on(folder: Path) -> bool:
    """Whether there is a checkpoint that agrees with its checksum."""
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    try:
        return any(digest_of(path.read_bytes()) == read_digest(path) for path in found)
    except OSError:
        return False


def judged_weights(checkpoint: Json) -> dict[str, Any]:
    """The weights of the network that counts: an average, where the scheme keeps one, else those that are trained."""
    weights = checkpoint.get("network") or checkpoint.get("model")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError("checkpoint: holds no weights of a network; delete the run's folder and run again")
    return dict(weights)


def is_runs(content: object) -> TypeGuard[Json]:
    """Whether this is what a checkpoint of a run holds."""
    return isinstance(content, dict) and {"run", "epoch", "lines"} <= content.keys()


def _unpack(path: Path, data: bytes) -> Json:
    try:
        state = loading.load(data)
    except Exception as error:  # whatever the bytes make torch raise
        raise UserError(
            f"{path}: torch {torch.__version__} cannot read it ({loading.reason(error)}); use the "
            "version that wrote it (see environment.json), or delete the folder"
        ) from error
    if not is_runs(state):
        raise UserError(f"{path}: is no checkpoint of a run; delete the folder and run again")
    try:
        _check_lines_of(state, path)
    except UserError as error:
        raise UserError(f"{error}; delete the folder and run again") from None
    return state


def _check_lines_of(state: Json, path: Path) -> None:
    """Raise `UserError` where a checkpoint does not hold the lines of its own epoch."""
    epoch, lines = state["epoch"], state["lines"]
    if not isinstance(state["run"], dict) or not plain(state["run"]):
        raise UserError(f"{path}: run: is damaged")
    if not isinstance(lines, dict) or not isinstance(lines.get("events"), list):
        raise UserError(f"{path}: lines: is damaged")
    every = [lines.get("metrics"), *lines["events"]]
    for number, line in enumerate(every):
        line = finite(line)
        if not isinstance(line, dict) or not plain(line):
            raise UserError(f"{path}: lines: is damaged")
        check_record(EventLine if number else MetricsLine, line, f"{path}: lines")
        if isinstance(epoch, bool) or line["epoch"] != epoch:
            raise UserError(f"{path}: epoch={show(epoch)}: its lines are of epoch {line['epoch']}")
