"""From a ``data:`` section to tensors."""

from __future__ import annotations

from pathlib import Path

from torchreaper.lab.data.digits import CLASSES, digits
from torchreaper.lab.data.hub import read_hub
from torchreaper.lab.data.parquet import find_files, read_parquet
from torchreaper.lab.data.spec import DataSpec
from torchreaper.lab.data.split import Dataset, Split, channel_moments, divide, keep_of_test
from torchreaper.lab.data.table import Progress, Table, class_names, decode, open_table, read_labels
from torchreaper.lab.errors import UserError

Stamp = tuple[Path, int, int]  # a file as it was when read: path, size, time of change

_KEPT = 2  # data sets kept in memory: a comparison needs one, a test beside it another
_cache: dict[tuple[DataSpec, tuple[Stamp, ...], tuple[Stamp, ...]], Dataset] = {}


def load(spec: DataSpec, base: Path | str = ".", *, progress: Progress | None = None) -> Dataset:
    """Load the images of ``spec`` into memory; relative paths start at ``base``, else at the current folder.

    Only images that are used are decoded. The last data sets are kept for the life of the process and read
    again only when a file has changed, so many runs on one data set cost one reading; do not write to them.
    Raises ``UserError``: no such file, unreadable file, no or several image or label columns, missing labels
    or labels out of range, images that cannot be decoded or differ in size, fewer images than asked for.
    """
    local = spec.name == "parquet"
    train = _stamps(spec.train, Path(base), "data.train") if local else ()
    test = _stamps(spec.test, Path(base), "data.test") if local else ()
    key = (spec, train, test)
    if key not in _cache:
        dataset = _read(spec, [file for file, *_ in train], [file for file, *_ in test], progress)
        while len(_cache) >= _KEPT:
            del _cache[next(iter(_cache))]
        _cache[key] = dataset
    return _cache[key]


def _stamps(pattern: str | None, base: Path, key: str) -> tuple[Stamp, ...]:
    files = find_files(pattern or "", base, key)
    return tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _read(spec: DataSpec, train: list[Path], test: list[Path], progress: Progress | None) -> Dataset:
    match spec.name:
        case "digits":
            return _from_digits(spec)
        case "parquet":
            rows = read_parquet(train, "data.train"), read_parquet(test, "data.test")
        case "hub":
            name = spec.hub or ""
            rows = (
                read_hub(name, spec.train or "train", "data.train"),
                read_hub(name, spec.test or "test", "data.test"),
            )
    first = open_table(rows[0], image=spec.image, label=spec.label, key="data.train")
    return _from_tables(
        spec, first, open_table(rows[1], image=first.image, label=first.label, key="data.test"), progress
    )


def _from_digits(spec: DataSpec) -> Dataset:
    every, test = digits()
    kept, held_out = divide(
        every.labels,
        validation=spec.validation,
        limit=spec.limit,
        classes=len(CLASSES),
        seed=spec.split_seed,
    )
    train = Split(every.images[kept], every.labels[kept])
    validation = Split(every.images[held_out], every.labels[held_out]) if spec.validation else None
    judged = keep_of_test(test.labels, limit=spec.test_limit, classes=len(CLASSES), seed=spec.split_seed)
    test = Split(test.images[judged], test.labels[judged])
    mean, std = channel_moments(train.images)
    return Dataset(train, validation, test, CLASSES, mean, std)


def _from_tables(spec: DataSpec, train: Table, test: Table, progress: Progress | None) -> Dataset:
    classes = class_names(train)
    labels, test_labels = read_labels(train, classes), read_labels(test, classes)
    kept, held_out = divide(
        labels, validation=spec.validation, limit=spec.limit, classes=len(classes), seed=spec.split_seed
    )
    judged = keep_of_test(test_labels, limit=spec.test_limit, classes=len(classes), seed=spec.split_seed)
    images, grey = decode(train, kept, what="train", progress=progress)
    parts = {"train": (images, labels[kept], grey)}
    if spec.validation:
        images, grey = decode(train, held_out, what="validation", progress=progress)
        parts["validation"] = (images, labels[held_out], grey)
    images, grey = decode(test, judged, what="test", progress=progress)
    parts["test"] = (images, test_labels[judged], grey)

    size = parts["train"][0].shape[2:]
    for what, (images, _, _) in parts.items():
        if images.shape[2:] != size:
            raise UserError(
                f"data.{what}: images of {_by(images.shape[2:])} pixels, those of data.train have "
                f"{_by(size)}; all must have one size"
            )
    # Grey images count as grey only where all are: one network reads them all.
    channels = 1 if all(grey for _, _, grey in parts.values()) else 3
    splits = {w: Split(images[:, :channels].contiguous(), labels) for w, (images, labels, _) in parts.items()}
    mean, std = channel_moments(splits["train"].images)
    return Dataset(splits["train"], splits.get("validation"), splits["test"], classes, mean, std)


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
