"""A figure as a file."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from torchreaper.lab.files import write_whole
from torchreaper.lab.report.style import DPI


def save(figure: Figure, path: Path, *, says: str = "") -> Path:
    """Write ``figure`` as PNG, replacing ``path`` as a whole; what it ``says`` in words is the file's description."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Description": says} if says else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, picture.getvalue())
    return path
