"""Checkpoints: all that a run goes on from, with checksums; the one before is kept."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchreaper import loading
from torchreaper.lab.checksums import digest_of, read_digest, write_digest
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import Json, gone_if_it_fails, sync, write_bytes

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


def judged_weights(checkpoint: Json) -> dict[str, Any]:
    """The weights of the network that counts: an average, where the scheme keeps one, else those that are trained."""
    return dict(checkpoint.get("network") or checkpoint["model"])


def _unpack(path: Path, data: bytes) -> Json:
    try:
        state = loading.load(data)
    except Exception as error:  # whatever the bytes make torch raise
        raise UserError(
            f"{path}: torch {torch.__version__} cannot read it ({loading.reason(error)}); use the "
            "version that wrote it (see environment.json), or delete the folder"
        ) from error
    if not isinstance(state, dict) or not {"run", "epoch", "lines"} <= state.keys():
        raise UserError(f"{path}: is no checkpoint of a run; delete the folder and run again")
    return state
