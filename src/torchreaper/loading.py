"""Checkpoints from anywhere, read without running what is in them: the one place that calls ``torch.load``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from torchreaper.errors import ReaperError


def load(file: Path | bytes) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors, numbers, texts and containers of these.

    No code in the file is run (``weights_only=True``), and it cannot unpack to more than its own size: torch stores
    its archives as they are, so a compressed one is none of torch's.

    Raises:
        ReaperError: it is compressed, or no file.
        Exception: whatever the bytes make torch raise; `reason` makes a line of it.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ReaperError(f"{file}: no such file")
    stream: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            if packed := [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]:
                raise ReaperError(f"{packed[0]!r} in it is compressed, as nothing is that torch.save writes")
    if isinstance(file, bytes):
        stream.seek(0)
    return torch.load(stream, map_location="cpu", weights_only=True)


def reason(error: Exception) -> str:
    """The first sentence of what reading a checkpoint raised."""
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
