"""From the categories of files to the classes of a detector."""

from __future__ import annotations

from typing import Any

from torchreaper.lab.data.boxes.photographs import Photographs
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import did_you_mean, show

Numbers = dict[Any, int | None]
"""The number of each category's class; None: its boxes are left out."""


def class_numbers(
    train: Photographs, test: Photographs, wanted: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Numbers, Numbers]:
    """The classes: those ``wanted``, else all of ``train``; and what the categories of ``train`` and ``test`` are.

    Categories without names are called as they are, or ``wanted`` names the numbers from 0.
    Raises ``UserError``: one that is wanted is not there, or the test set has one more.
    """
    known, of_test = train.names(), test.names()
    if known is None:
        found = _distinct(train)
        named = wanted is not None and all(type(one) is int for one in found)
        known = dict(enumerate(wanted or ())) if named else {one: str(one) for one in found}
        of_test = known
    of_test = known if of_test is None else of_test
    names = tuple(known.values())
    for name in wanted or ():
        if name not in names:
            raise UserError(
                f"data.classes: {show(name)} is no category of {train.table.key}; {did_you_mean(name, names)}"
            )
    for name in of_test.values():
        if wanted is None and name not in names:
            raise UserError(
                f"{test.table.key}: has a category {show(name)}, which {train.table.key} has not; let data.classes "
                "choose some"
            )
    classes = wanted or names
    place = {name: number for number, name in enumerate(classes)}
    numbers, of_test_numbers = ({one: place.get(name) for one, name in each.items()} for each in (known, of_test))
    return classes, numbers, of_test_numbers


def class_of(category: Any, numbers: Numbers, where: str) -> int | None:
    """The class of a box. Raises ``UserError`` for a category that is not known."""
    # By type: True would be 1, and what cannot be a key would fail.
    if type(category) not in (int, str) or category not in numbers:
        names = ", ".join(map(str, numbers))
        raise UserError(f"{where}: category {show(category)} is not one of {show(names)}; mend it or leave the box out")
    return numbers[category]


def _distinct(photographs: Photographs) -> list[Any]:
    """The categories of all boxes, in order: whole numbers, or texts."""
    found: set[Any] = set()
    rows = list(range(len(photographs.table.rows)))
    for row, objects in zip(rows, photographs.objects(rows)):
        for one in objects:
            kinds = {type(one.category), *map(type, found)}
            if kinds not in ({int}, {str}):
                raise UserError(
                    f"{photographs.where(row, one.number)}: category {show(one.category)}; all must be whole numbers, "
                    "or all names"
                )
            found.add(one.category)
    if not found:
        raise UserError(f"{photographs.table.key}: no image has a box; there is nothing to learn")
    return sorted(found)
