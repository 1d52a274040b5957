"""The pictures that questions are about: found by the number in their names, opened when they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchreaper.lab.data.folder import SUFFIXES
from torchreaper.lab.data.opening import open_picture
from torchreaper.lab.data.parquet import first_line
from torchreaper.lab.errors import UserError

_NUMBER = re.compile(r"[0-9]{1,18}\Z")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one folder, by their place in ``files``; ``key`` is for error texts."""

    folder: Path
    files: tuple[str, ...]
    key: str
    random = False

    def where(self, row: int) -> str:
        """Such as "data.train: COCO_train2014_000000000123.jpg"."""
        return f"{self.key}: {self.files[row]}"

    def read(self, rows: list[int]) -> Iterator[Any]:
        """The pictures at ``rows``; ``UserError`` for one that cannot be decoded or is too large."""
        for row in rows:
            try:
                yield open_picture({"bytes": None, "path": str(self.folder / self.files[row])}, self.where(row))
            except UserError:
                raise
            except Exception as error:  # a decoder may raise anything
                raise UserError(
                    f"{self.where(row)}: image cannot be decoded ({first_line(error)}); mend or remove it"
                ) from None


def numbered(folder: Path, key: str) -> dict[int, str]:
    """The names of a folder's pictures by the numbers that they end in, before the suffix; nothing is opened.

    Raises ``UserError``, which names ``key``, where two have the same number or there are none.
    """
    found: dict[int, str] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        stem, suffix = os.path.splitext(name)
        number = _NUMBER.search(stem)
        if suffix.lower() not in SUFFIXES or number is None:
            continue
        if (other := found.setdefault(int(number[0]), name)) != name:
            raise UserError(f"{key}: {folder} has two pictures {int(number[0])}, {other} and {name}; remove one")
    if not found:
        raise UserError(
            f"{key}: {folder} has no pictures with a number at the end of their names ({', '.join(sorted(SUFFIXES))})"
        )
    return found
