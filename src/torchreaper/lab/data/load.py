"""From a ``data:`` section to images that can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torchreaper.lab.data import own
from torchreaper.lab.data.cache import cached, state_of
from torchreaper.lab.data.digits import CLASSES, digits
from torchreaper.lab.data.folder import read_folder, rows_of
from torchreaper.lab.data.gather import gathered, streamed
from torchreaper.lab.data.hub import read_hub
from torchreaper.lab.data.memory import check_memory
from torchreaper.lab.data.parquet import find_files, read_parquet
from torchreaper.lab.data.spec import DataSpec
from torchreaper.lab.data.split import (
    Dataset,
    Split,
    channel_moments,
    divide,
    judged_on,
    keep_of_test,
    of_classes,
    with_noise,
)
from torchreaper.lab.data.stream import Part
from torchreaper.lab.data.table import Progress, Table, class_names, decode, open_table, read_labels
from torchreaper.lab.errors import UserError


def load(spec: DataSpec, base: Path | str = ".", *, progress: Progress | None = None) -> Dataset:
    """Load the images of ``spec``, or prepare to read them.

    Relative paths start at ``base``, else at the current folder. Only images that are used are decoded. The last
    data sets are kept for the life of the process and read again only when a file has changed, so many runs on one
    data set cost one reading; do not write to them.
    Raises ``UserError``: no such file, unreadable file, no or several image or label columns, missing labels
    or labels out of range, images that cannot be decoded or differ in size, fewer images than asked for, noise that
    changes no label, more than memory holds, and what `own.open_own` refuses.
    """
    state, read = _found(spec, Path(base))
    return judged_on(spec.judge, cached(spec, state, partial(read, progress)))


def _found(spec: DataSpec, base: Path) -> tuple[str, Callable[[Progress | None], Dataset]]:
    """The state of the files of ``spec``, and how they are read."""
    if spec.own:
        return str(base.absolute()), partial(_from_own, spec, base)
    match spec.name:
        case "digits":
            return "", lambda _: _from_digits(spec)
        case "folder":
            train = read_folder(spec.train or "", base, "data.train")
            test = read_folder(spec.test or "", base, "data.test", classes=train.classes)
            state = state_of(one.path / file for one in (train, test) for file in one.files)
            tables = (
                lambda: Table(rows_of(train), "image", "label", "data.train", train.files, by_path=True),
                lambda: Table(rows_of(test), "image", "label", "data.test", test.files, by_path=True),
            )
            return state, lambda progress: _from_tables(spec, tables[0](), tables[1](), progress)
        case "parquet":
            files = find_files(spec.train or "", base, "data.train"), find_files(spec.test or "", base, "data.test")
            return state_of([*files[0], *files[1]]), partial(_from_parquet, spec, files[0], files[1])
        case _:
            return "", partial(_from_hub, spec)


def _from_parquet(spec: DataSpec, train: list[Path], test: list[Path], progress: Progress | None) -> Dataset:
    return _from_rows(
        spec,
        read_parquet(train, "data.train", memory=spec.memory),
        read_parquet(test, "data.test", memory=spec.memory),
        progress,
    )


def _from_hub(spec: DataSpec, progress: Progress | None) -> Dataset:
    name = spec.hub or ""
    return _from_rows(
        spec,
        read_hub(name, spec.train or "train", "data.train"),
        read_hub(name, spec.test or "test", "data.test"),
        progress,
    )


def _from_rows(spec: DataSpec, train: Any, test: Any, progress: Progress | None) -> Dataset:
    # The library unpacks some data sets into files; a local parquet file that names others is not believed.
    by_path = spec.name == "hub"
    first = open_table(train, image=spec.image, label=spec.label, key="data.train", by_path=by_path)
    second = open_table(test, image=first.image, label=first.label, key="data.test", by_path=by_path)
    return _from_tables(spec, first, second, progress)


def _from_digits(spec: DataSpec) -> Dataset:
    every, test = digits()
    parts, classes = _parts(spec, every, every.labels, test, test.labels, CLASSES)
    held = {"train": every.images, "validation": every.images, "test": test.images}
    splits = {what: Split(held[what][part.rows], part.labels) for what, part in parts.items()}
    mean, std = channel_moments(splits["train"].images)
    return Dataset(splits["train"], splits.get("validation"), splits["test"], classes, mean, std)


def _from_own(spec: DataSpec, base: Path, progress: Progress | None) -> Dataset:
    train, test = own.open_own(spec.name, spec.options, base, seed=spec.split_seed, workers=spec.workers)
    classes = own.class_names(train, test)
    assert train.known is not None
    assert test.known is not None
    parts, classes = _parts(spec, train, train.known, test, test.known, classes)
    dataset = streamed(parts, classes, size=spec.size, workers=spec.workers, base=base)
    return gathered(dataset, progress) if spec.memory else dataset


def _from_tables(spec: DataSpec, train: Table, test: Table, progress: Progress | None) -> Dataset:
    classes = class_names(train)
    known = read_labels(train, classes), read_labels(test, classes)
    parts, classes = _parts(spec, train, known[0], test, known[1], classes)
    return images_of(parts, classes, size=spec.size, memory=spec.memory, workers=spec.workers, progress=progress)


def images_of(
    parts: Mapping[str, Part],
    classes: tuple[str, ...],
    *,
    size: int | None,
    memory: bool,
    workers: int,
    progress: Progress | None = None,
) -> Dataset:
    """The pictures of ``parts`` ("train", "test", and "validation" if any) in memory, or to be read when needed.

    ``size``, ``memory``, ``workers``: as of ``DataSpec``.
    Raises ``UserError`` for pictures that cannot be decoded or differ in size, and for more than memory holds.
    """
    if not memory:
        return streamed(parts, classes, size=size, workers=workers)
    if size is not None:  # else the size is known when the first image is
        check_memory(sum(len(part.rows) for part in parts.values()), (3, size, size))
    decoded = {}
    for what in ("train", "validation", "test"):
        if what in parts:
            part = parts[what]
            decoded[what] = decode(part.source, part.rows, what=what, size=size, progress=progress)
    sides = decoded["train"][0].shape[2:]
    for what, (images, _) in decoded.items():
        if images.shape[2:] != sides:
            raise UserError(
                f"data.{what}: images of {_by(images.shape[2:])} pixels, those of data.train have {_by(sides)}; set "
                "data.size to bring all to one size"
            )
    # Grey images count as grey only where all are: one network reads them all.
    channels = 1 if all(grey for _, grey in decoded.values()) else 3
    splits = {
        what: Split(images[:, :channels].contiguous(), parts[what].labels) for what, (images, _) in decoded.items()
    }
    mean, std = channel_moments(splits["train"].images)
    return Dataset(splits["train"], splits.get("validation"), splits["test"], classes, mean, std)


def _parts(
    spec: DataSpec, train: Any, labels: torch.Tensor, test: Any, test_labels: torch.Tensor, classes: tuple[str, ...]
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Which images of the training set are trained on and which judge it, and which of the test set do; the classes."""
    names = spec.classes or classes
    there, mine = of_classes(labels, classes, names)
    if len(mine) and bool((mine == mine[0]).all()):
        raise UserError(
            f"data.train: all images are of one class, {names[int(mine[0])]!r}; there must be two or more to learn"
        )
    test_there, test_mine = of_classes(test_labels, classes, names)
    trained, held_out = divide(
        mine, validation=spec.validation, limit=spec.limit, classes=len(names), seed=spec.split_seed
    )
    judged = keep_of_test(test_mine, limit=spec.test_limit, classes=len(names), seed=spec.split_seed)
    learnt = with_noise(mine[trained], spec.label_noise, classes=len(names), seed=spec.split_seed)
    parts = {
        "train": Part(train, there[trained], learnt),
        "test": Part(test, test_there[judged], test_mine[judged]),
    }
    if spec.validation:
        parts["validation"] = Part(train, there[held_out], mine[held_out])
    return parts, names


def _by(size: torch.Size) -> str:
    return "x".join(map(str, size))
