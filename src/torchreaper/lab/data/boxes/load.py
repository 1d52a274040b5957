"""From a detection recipe's ``data:`` section to photographs with boxes that can be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from torchreaper.lab.data.boxes.categories import class_numbers
from torchreaper.lab.data.boxes.checking import Marked, Notes, marked
from torchreaper.lab.data.boxes.coco import read_coco
from torchreaper.lab.data.boxes.columns import open_columns
from torchreaper.lab.data.boxes.geometry import FILLING, padded
from torchreaper.lab.data.boxes.photographs import Letterboxed, Photographs
from torchreaper.lab.data.boxes.spec import BoxesSpec
from torchreaper.lab.data.boxes.split import BoxSplit
from torchreaper.lab.data.cache import cached, state_of
from torchreaper.lab.data.finding import find_folder
from torchreaper.lab.data.gather import SAMPLE, gathered
from torchreaper.lab.data.hub import read_hub
from torchreaper.lab.data.memory import check_table
from torchreaper.lab.data.parquet import find_files, read_parquet
from torchreaper.lab.data.split import Dataset, choose, divide, histogram, judged_on, keep_of_test, moments_of
from torchreaper.lab.data.stream import Form, Streamed
from torchreaper.lab.data.table import Progress
from torchreaper.lab.errors import UserError

_BATCH = 100
_BOX_BYTES = 5 * torch.float32.itemsize
# Where the images of a split come from, what they are called, and what they are for.
_USES = {
    "train": ("data.train", "training", "learn"),
    "validation": ("data.train", "validation", "judge by"),
    "test": ("data.test", "test", "judge by"),
}


def load_boxes(spec: BoxesSpec, base: Path | str = ".", *, progress: Progress | None = None) -> Dataset:
    """Load the photographs of ``spec`` and their boxes, or prepare to read them; the splits are `BoxSplit`.

    Relative paths start at ``base``, else at the current folder. Only images that are used are looked at. As of `load`,
    what was last read is kept for the life of the process until a file changes; do not write to it. Mean and deviation
    are those of the photographs, without what fills the input beside them: of all training images where they are in
    memory, else of at most ``gather.SAMPLE``.
    Boxes that stick out are clipped, those without area left out; one line in the log "torchreaper" counts each.
    Raises ``UserError``, with file, image and box, for what is missing, not readable, or makes no sense.
    """
    there, read = _found(spec, Path(base))
    return judged_on(spec.judge, cached(spec, there, lambda: _load(spec, *read(), progress)))


def _found(spec: BoxesSpec, base: Path) -> tuple[str, Callable[[], tuple[Photographs, Photographs]]]:
    """The state of the files of ``spec``, and how they are read."""
    keys = "data.train", "data.test"
    if spec.name == "hub":
        names = spec.train or "train", spec.test or "test"
        tables = (read_hub(spec.hub or "", name, key) for name, key in zip(names, keys))
        return "", lambda: _columns(spec, *tables)
    train, test = (find_files(name or "", base, key) for name, key in zip((spec.train, spec.test), keys))
    if spec.name == "parquet":
        tables = (read_parquet(files, key, memory=spec.memory) for files, key in zip((train, test), keys))
        return state_of([*train, *test]), lambda: _columns(spec, *tables)
    first, second = (
        find_folder(name or "", base, f"{key}_images", "the folder of the pictures")
        for name, key in zip((spec.train_images, spec.test_images), keys)
    )
    pictures = [file for folder in dict.fromkeys((first, second)) for file in _files(folder)]
    return (
        state_of([*train, *test, *pictures]),
        lambda: (read_coco(train, first, keys[0]), read_coco(test, second, keys[1])),
    )


def _files(folder: Path) -> list[Path]:
    every = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(file for file in every if file.is_file())


def _columns(spec: BoxesSpec, train: object, test: object) -> tuple[Photographs, Photographs]:
    return open_columns(train, spec, "data.train"), open_columns(test, spec, "data.test")


def _load(spec: BoxesSpec, train: Photographs, test: Photographs, progress: Progress | None) -> Dataset:
    classes, numbers, of_test = class_numbers(train, test, spec.classes)
    every, tests = (torch.zeros(len(one.table.rows), dtype=torch.int64) for one in (train, test))  # of no class
    trained, held_out = divide(every, validation=spec.validation, limit=spec.limit, classes=1, seed=spec.split_seed)
    judged = keep_of_test(tests, limit=spec.test_limit, classes=1, seed=spec.split_seed)
    parts = {
        "train": (train, trained, numbers),
        "validation": (train, held_out, numbers),
        "test": (test, judged, of_test),
    }
    notes, found = Notes(), {}
    for what, (photographs, rows, known) in parts.items():
        if len(rows):
            marks = marked(photographs, rows, form=spec.box, size=spec.size, numbers=known, notes=notes)
            found[what] = photographs, marks
    for what, (_, marks) in found.items():
        unused = what == "test" and spec.judge == "validation"
        if not any(map(len, marks.boxes)) and not unused:
            key, kind, use = _USES[what]
            raise UserError(f"{key}: no {kind} image has a box of {', '.join(classes)}; there is nothing to {use}")
    splits = _splits(spec, found, progress)
    mean, std = _moments(splits["train"], spec.memory)
    notes.tell()
    return Dataset(splits["train"], splits.get("validation"), splits["test"], classes, mean, std)


def _splits(
    spec: BoxesSpec, found: dict[str, tuple[Photographs, Marked]], progress: Progress | None
) -> dict[str, BoxSplit]:
    marks = {what: mark for what, (_, mark) in found.items()}
    most = max(1, *(len(boxes) for mark in marks.values() for boxes in mark.boxes))
    crowds = max(len(crowds) for mark in marks.values() for crowds in mark.crowds)
    count = sum(len(mark.rows) for mark in marks.values())
    table = f"boxes of {count:,} images, room for {most + crowds:,} an image,"
    check_table("data", table, count * (most + crowds) * _BOX_BYTES)
    form = Form(3, *spec.size, torch.uint8, None)
    images: dict[str, Streamed] = {}
    for what, (photographs, mark) in found.items():
        source = Letterboxed(photographs.table, spec.size, mark.sizes)
        workers = 0 if spec.memory else spec.workers
        images[what] = Streamed(source, mark.rows, torch.arange(len(mark.rows)), form, workers)
    inner = Dataset(images["train"], images.get("validation"), images["test"], (), torch.zeros(3), torch.ones(3))
    if spec.memory:
        inner = gathered(inner, progress)
    return {
        what: BoxSplit(
            getattr(inner, what), padded(mark.boxes, most), mark.scale, mark.filled, padded(mark.crowds, crowds)
        )
        for what, mark in marks.items()
    }


def _moments(split: BoxSplit, every: bool) -> tuple[Tensor, Tensor]:
    """Mean and deviation of what is photograph, of ``every`` image or of some."""
    count = len(split) if every else min(SAMPLE, len(split))
    chosen: Int64[Tensor, " n"] = choose(torch.zeros(len(split), dtype=torch.int64), count, seed=0, balanced=False)
    _, height, width = split.shape
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for images, _ in split.read(torch.split(chosen, _BATCH)):
        counts += histogram(images)
    counts[:, FILLING] -= (height * width - split.filled[chosen].prod(1)).sum()
    return moments_of(counts)
