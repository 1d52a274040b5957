"""Data sets of the user's own: what ``package.module:callable`` gives."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from jaxtyping import Int64
from torch import Tensor

from torchreaper.lab.data.augment import epoch_seed
from torchreaper.lab.data.stream import fetch
from torchreaper.lab.errors import UserError
from torchreaper.lab.objects import call, drawing, find, reason
from torchreaper.lab.settings import show

EXAMPLE = "mydata.flowers:make"
_CHUNK = 100  # images whose labels are read at once


@dataclass(frozen=True, eq=False)
class Own:
    """A map-style data set of (image, class); ``known``: the classes of all its images, once they are."""

    dataset: Any
    key: str
    known: Int64[Tensor, " n"] | None = None
    random = True

    def where(self, row: int) -> str:
        """Such as "data.train: item 5"."""
        return f"{self.key}: item {row}"

    def read(self, rows: list[int]) -> list[Any]:
        """The images of these items; that their classes are the known ones is checked."""
        found = [self.item(row) for row in rows]
        for row, (_, label) in zip(rows, found):
            if self.known is not None and label != int(self.known[row]):
                raise UserError(
                    f"{self.where(row)}: is of class {label} now and of {int(self.known[row])} before; an image must "
                    "keep its class"
                )
        return [image for image, _ in found]

    def item(self, row: int) -> tuple[Any, int]:
        """One image and its class."""
        where = self.where(row)
        try:
            item = self.dataset[row]
        except Exception as error:  # the user's own code
            raise UserError(f"{where}: cannot be read ({reason(error)})") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(f"{where}: is {show(type(item).__name__)}; must be a pair (image, class)")
        image, label = item
        if not isinstance(image, Tensor) and not (hasattr(image, "mode") and hasattr(image, "convert")):
            raise UserError(
                f"{where}: its image is a {type(image).__name__}; must be a PIL image or a tensor [channels, height, "
                "width]"
            )
        try:
            return image, operator.index(label)
        except TypeError:
            raise UserError(f"{where}: its class is {show(label)}; must be a whole number") from None


def open_own(name: str, options: Mapping[str, Any], base: Path, *, seed: int, workers: int) -> tuple[Own, Own]:
    """The training and the test set that ``callable(**options)`` gives, with their classes.

    What it draws at random comes from ``seed``. The classes are the data set's ``targets`` or ``labels`` where it has
    them, one for each image; else each image is read once.
    Raises ``UserError``: it fails, gives no such pair, or a class is not a whole number.
    """
    found = find(name, "data.name", base=base, example=EXAMPLE)
    named = f"data.name={name!r}"
    made, written = call(found, name.partition(":")[2], options, named, base=base, seed=epoch_seed(seed, 0, "data"))
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise UserError(f"{named}: {written} gives a {type(made).__name__}; must be a pair (training set, test set)")
    sets = []
    for dataset, key in zip(made, ("data.train", "data.test")):
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UserError(
                f"{named}: {key} is a {type(dataset).__name__}; must be a torch data set with __len__ and __getitem__"
            )
        try:
            count = len(dataset)
        except Exception as error:  # the user's own code
            raise UserError(f"{named}: {key}: how many images it has cannot be read ({reason(error)})") from error
        if not count:
            raise UserError(f"{named}: {key} has no images")
        own = Own(dataset, key)
        sets.append(Own(dataset, key, _labels(own, base, workers)))
    return sets[0], sets[1]


def class_names(train: Own, test: Own) -> tuple[str, ...]:
    """The training set's ``classes``, else the numbers 0 to the highest.

    Of equal names each has its number behind it. Raises ``UserError`` for classes below 0, too high, or skipped, for
    names that cannot be read, and for names of the test set that are others.
    """
    assert train.known is not None
    assert test.known is not None
    classes, others = _names(train), _names(test)
    for number, (mine, theirs) in enumerate(zip(classes, others)):
        if mine != theirs:
            raise UserError(
                f"{test.key}: class {number} is {theirs!r} by its `classes`, and {mine!r} by those of {train.key}; "
                "give both sets the same `classes`"
            )
    if not classes:
        found = set(train.known.tolist())
        if min(found) < 0:
            row = int((train.known < 0).nonzero()[0])
            raise UserError(
                f"{train.where(row)}: class {int(train.known[row])} is below 0; classes must be 0, 1, 2, ...; leave "
                "out images that have none"
            )
        missing = next(number for number in range(len(found) + 1) if number not in found)
        if missing < len(found):
            raise UserError(
                f"{train.key}: class {missing} has no images, class {max(found)} has; classes must be 0, 1, 2, ... "
                "without gaps, or named by the data set's `classes`"
            )
        classes = tuple(map(str, range(len(found))))
    for own in (train, test):
        assert own.known is not None
        wrong = ((own.known < 0) | (own.known >= len(classes))).nonzero().flatten().tolist()
        if wrong:
            raise UserError(
                f"{own.where(wrong[0])}: class {int(own.known[wrong[0]])} is out of range: must be 0 to "
                f"{len(classes) - 1} ({len(classes)} classes)"
            )
    return classes


def _names(own: Own) -> tuple[str, ...]:
    """Its ``classes``; empty where it has none."""
    try:
        names: Any = getattr(own.dataset, "classes", None)
    except Exception as error:  # the user's own code
        raise UserError(f"{own.key}: its `classes` cannot be read ({reason(error)})") from error
    if not isinstance(names, list | tuple):
        names = names.tolist() if getattr(names, "ndim", 0) == 1 else ()  # an array
    texts = [str(name) for name in names]
    counts = Counter(texts)
    return tuple(f"{text} ({number})" if counts[text] > 1 else text for number, text in enumerate(texts))


def _labels(own: Own, base: Path, workers: int) -> Int64[Tensor, " n"]:
    count = len(own.dataset)
    for name in ("targets", "labels"):
        try:
            given = torch.as_tensor(getattr(own.dataset, name))
        except Exception:  # the user's own code; each image has its class, too
            continue
        whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
        # A look at three items: a data set may change the classes on the way.
        if whole and given.shape == (count,):
            with drawing(0):
                looked = all(own.item(row)[1] == int(given[row]) for row in {0, count // 2, count - 1})
            if looked:
                return given.long()
    return torch.cat(list(fetch(_Labels(own, count), workers=workers, base=base)))


class _Labels(torch.utils.data.Dataset[Any]):
    """The classes of all images, some at a time."""

    def __init__(self, own: Own, count: int) -> None:
        self._own, self._rows = own, [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Tensor | str:
        try:
            with drawing(0):
                return torch.tensor([self._own.item(row)[1] for row in self._rows[number]])
        except UserError as error:
            return str(error)
