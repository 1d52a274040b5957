"""Folders of images, a subfolder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torchreaper.lab.data.finding import find_folder, is_text
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import did_you_mean, show

# Of all formats that are read (opening.FORMATS).
SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)


class ImageFolder(NamedTuple):
    """A folder's classes, in the order of their names, and its images as paths below it, each with its class."""

    path: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]


def read_folder(name: str, base: Path, key: str, *, classes: tuple[str, ...] | None = None) -> ImageFolder:
    """List the images of a folder, below ``base`` or else the current one; those of deeper folders count as well.

    Hidden files and files that are no images by their suffix are left out. ``classes``: those it may have, and their
    order; None: those it has.
    Raises ``UserError``, which names ``key``, where there is no such folder, it has no classes, or one without images,
    or a name in it is no text.
    """
    path = find_folder(name, base, key, "a folder with a subfolder of images for each class")
    there = tuple(sorted(one.name for one in os.scandir(path) if one.is_dir() and not one.name.startswith(".")))
    if not there:
        raise UserError(
            f"{key}={name!r}: {path} has no subfolders; put the images of each class into one, named after it"
        )
    known = there if classes is None else classes
    if strange := [one for one in there if one not in known]:
        raise UserError(
            f"{key}={name!r}: class {strange[0]!r} is not one of data.train; {did_you_mean(strange[0], known)}"
        )
    files: list[str] = []
    labels: list[int] = []
    for kind in there:
        found = sorted(os.path.relpath(file, path) for file in _images(path / kind))
        if not found:
            raise UserError(f"{key}={name!r}: {path / kind} has no images ({', '.join(sorted(SUFFIXES))})")
        if odd := [file for file in found if not is_text(file)]:
            raise UserError(f"{key}={name!r}: {show(odd[0])}: a name that is not UTF-8; rename the file")
        files += found
        labels += [known.index(kind)] * len(found)
    return ImageFolder(path, known, tuple(files), tuple(labels))


def rows_of(folder: ImageFolder) -> Any:
    """The folder as a ``datasets.Dataset`` of paths and classes; nothing is opened."""
    from datasets import ClassLabel, Dataset, Features, Image  # a slow import, needed here only

    return Dataset.from_dict(
        {"image": [str(folder.path / file) for file in folder.files], "label": list(folder.labels)},
        features=Features({"image": Image(decode=False), "label": ClassLabel(names=list(folder.classes))}),
    )


def _images(folder: Path) -> list[str]:
    found = []
    for place, inside, names in os.walk(folder, followlinks=True):
        inside[:] = [one for one in inside if not one.startswith(".")]
        found += [
            os.path.join(place, name)
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    return found
