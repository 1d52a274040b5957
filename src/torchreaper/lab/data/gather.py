"""Splits that are read when they are needed: what their images have in common, found from some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from torchreaper.lab.data.memory import check_memory
from torchreaper.lab.data.split import Dataset, Split, choose, histogram, moments_of
from torchreaper.lab.data.stream import Form, Part, Streamed, own_modules
from torchreaper.lab.data.table import Progress
from torchreaper.lab.objects import drawing

SAMPLE = 2000  # training images that tell mean and deviation, and whether all are grey
_TEST_SAMPLE = 200
_BATCH = 100


def streamed(
    parts: Mapping[str, Part], classes: tuple[str, ...], *, size: int | None, workers: int, base: Path | None = None
) -> Dataset:
    """The data set of ``parts`` ("train", "test", and "validation" if any), read when it is needed.

    Mean and deviation are those of at most ``SAMPLE`` training images; of images of floats 0 and 1. Pictures are grey
    where those looked at are: a coloured one that comes later is a ``UserError``.
    """
    source, rows, _ = parts["train"]
    where = source.where(int(rows[0]))
    with own_modules(base), drawing(0):
        form = Form.of(next(iter(source.read([int(rows[0])]))), size, where)
    splits = {what: Streamed(*part, form, workers, base) for what, part in parts.items()}
    counts, grey = _looked_at(splits["train"], SAMPLE)
    # Of the test images too, whatever those of training are: what does not fit is told before an epoch, not after it.
    if _looked_at(splits["test"], _TEST_SAMPLE)[1] and grey:
        form = replace(form, channels=1)
        splits = {what: replace(split, form=form) for what, split in splits.items()}
    if form.dtype.is_floating_point:
        mean, std = torch.zeros(form.channels), torch.ones(form.channels)
    else:
        mean, std = moments_of(counts[: form.channels])
    return Dataset(splits["train"], splits.get("validation"), splits["test"], classes, mean, std)


def gathered(dataset: Dataset, progress: Progress | None) -> Dataset:
    """The same images in memory, each read once."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    there = {what: split for what, split in splits.items() if split is not None}
    size = torch.float32.itemsize if dataset.train.prepared else 1
    check_memory(sum(map(len, there.values())), dataset.train.shape, size=size)
    held = {}
    for what, split in there.items():
        # Filled as they come: joining them at the end would take their room twice.
        images = torch.empty(len(split), *split.shape, dtype=torch.float32 if split.prepared else torch.uint8)
        done = 0
        for some, _ in split.read(torch.split(torch.arange(len(split)), _BATCH)):
            images[done : done + len(some)] = some
            done += len(some)
            if progress is not None:
                progress(what, done, len(split))
        held[what] = Split(images, split.labels)
    return replace(dataset, train=held["train"], validation=held.get("validation"), test=held["test"])


def _looked_at(split: Streamed, count: int) -> tuple[Tensor, bool]:
    """How often each value occurs in a sample of bytes, per channel; whether all its images are stored as grey."""
    chosen = choose(split.labels, min(count, len(split)), seed=0, balanced=False)
    counts = torch.zeros(split.form.channels, 256, dtype=torch.int64)
    grey = True
    for (images, plain), _ in split.found(torch.split(chosen, _BATCH)):
        grey = grey and plain
        if images.dtype == torch.uint8:
            counts += histogram(images)
    return counts, grey
