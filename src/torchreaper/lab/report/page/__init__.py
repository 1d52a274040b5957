"""One HTML page of what a comparison found, complete in itself: it fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchreaper.lab.errors import UserError
from torchreaper.lab.files import write_whole
from torchreaper.lab.report.page.reading import Folder, find, read
from torchreaper.lab.report.page.rendering import render

__all__ = ["NAME", "Folder", "read", "render", "write_page"]

NAME = "report.html"


def write_page(target: Path, file: Path | None = None) -> tuple[Path, Sequence[Folder]]:
    """Write the page of a comparison, or of all comparisons in a folder.

    Args:
        target: What ``reaper compare`` wrote (``runs/demo``), finished or not, or a folder of several such (``runs``).
        file: Where the page goes; `NAME` in ``target`` if None.

    Returns:
        The path of the page, and what is on it.

    Raises:
        UserError: No comparison in ``target``, a damaged file in it, or ``file`` is a folder.
    """
    try:
        folders = [read(path) for path in find(target)]
        page = render(folders)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Results of others may hold anything; what no run writes is not taken apart piece by piece.
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"out={target}: holds what no run writes ({what}); run again, or leave it out") from error
    path = target / NAME if file is None else file
    if path.is_dir():
        raise UserError(f"out={path}: is a folder; name a file, such as {path / NAME}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode(errors="backslashreplace"))
    return path, folders
