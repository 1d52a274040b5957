"""Boxes in COCO's JSON, pictures in a folder beside it. The files come from others: nothing in them is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torchreaper.lab.data.boxes.photographs import Object, Size
from torchreaper.lab.data.finding import is_text
from torchreaper.lab.data.json_file import read_json
from torchreaper.lab.data.table import Table
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show

_LISTS = ("images", "annotations", "categories")
_LONGEST = 10**9  # pixels: no picture is as wide or high


@dataclass(frozen=True, eq=False)
class Coco:
    """One split: pictures by their order in the files, their sizes, their boxes, and the file that each stands in."""

    table: Table
    folder: Path
    stated: list[Size]
    found: list[list[Object]]
    files: list[str]
    categories: dict[int, str]

    def where(self, row: int, number: int) -> str:
        """Such as "data.train: train.json: image 'a.jpg', annotation 17"."""
        return f"{self.table.key}: {self.files[row]}: image {show(self.table.files[row])}, annotation {number}"

    def objects(self, rows: list[int]) -> Iterator[list[Object]]:
        """The boxes on each picture."""
        return (self.found[row] for row in rows)

    def sizes(self, rows: list[int]) -> list[Size]:
        """The sizes that the file gives. Raises ``UserError`` for a picture that is not there."""
        for row in rows:
            name = self.table.files[row]
            if not os.path.isfile(self.folder / name):
                raise UserError(
                    f"{self.table.key}: {self.files[row]}: image {show(name)} is not in {self.folder}; put it there, "
                    f"or let {self.table.key}_images name its folder"
                )
        return [self.stated[row] for row in rows]

    def names(self) -> dict[Any, str]:
        """The name of each category."""
        return dict(self.categories)


def read_coco(files: list[Path], folder: Path, key: str) -> Coco:
    """Read annotation files; the pictures, in ``folder``, are not opened.

    Raises:
        UserError: A file is not JSON or not COCO's; an image is listed twice or lies elsewhere; an annotation is of no
            image or category that is there; files that do not have the same categories.
    """
    names: dict[str, None] = {}
    stated: list[Size] = []
    found: list[list[Object]] = []
    sources: list[str] = []
    categories: dict[int, str] | None = None
    for file in files:
        at = f"{key}={str(file)!r}"
        content = _content(file, key, at)
        here = _categories(content["categories"], at)
        if categories is not None and here != categories:
            raise UserError(f"{at}: its categories are not those of {files[0].name}; give all files the same")
        categories = here
        rows: dict[int, int] = {}
        for place, image in enumerate(content["images"]):
            where = f"{at}: images[{place}]"
            name = _name(image, where)
            number = _whole(image, "id", where)
            if number in rows or name in names:
                twice = f"id {number}" if number in rows else f"file_name {show(name)}"
                raise UserError(f"{where}: {twice} is listed twice; list each image once")
            rows[number] = len(names)
            names[name] = None
            stated.append((_side(image, "height", where), _side(image, "width", where)))
        found += [[] for _ in rows]
        sources += [file.name] * len(rows)
        for place, one in enumerate(content["annotations"]):
            where = f"{at}: annotations[{place}]"
            image, category = _whole(one, "image_id", where), _whole(one, "category_id", where)
            if image not in rows:
                raise UserError(f"{where}: image_id={show(image)}: is no image of this file; leave the annotation out")
            if category not in here:
                ids = show(", ".join(map(str, here)))
                raise UserError(f"{where}: category_id={show(category)}: is no category; the file has {ids}")
            if "bbox" not in one:
                raise UserError(f"{where}: has no bbox; annotations of detection are needed (COCO's instances_*.json)")
            crowd = one.get("iscrowd", 0)
            if not isinstance(crowd, (int, float)) or crowd not in (0, 1):
                raise UserError(f"{where}: iscrowd={show(crowd)}: must be 0 or 1")
            number = _whole(one, "id", where) if "id" in one else place  # for error texts
            found[rows[image]].append(Object(one["bbox"], category, bool(crowd), number))
    if not names:
        raise UserError(f"{key}={str(files[0])!r}: has no images")
    assert categories is not None
    return Coco(_pictures(list(names), folder, key), folder, stated, found, sources, categories)


def _content(file: Path, key: str, at: str) -> dict[str, list[Any]]:
    content = read_json(file, key)
    for name in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f"{at}: is not COCO's JSON, a mapping with lists of {', '.join(_LISTS)}; {name} is missing")
    return {name: content[name] for name in _LISTS}


def _categories(listed: list[Any], at: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for place, one in enumerate(listed):
        where = f"{at}: categories[{place}]"
        number, name = _whole(one, "id", where), one.get("name")
        if not isinstance(name, str) or not name or _strange(name):
            raise UserError(f"{where}: name={show(name)}: must be a text of one line")
        if number in found or name in found.values():
            raise UserError(f"{where}: id {number} or name {show(name)} is listed twice; list each category once")
        found[number] = name
    if not found:
        raise UserError(f"{at}: has no categories")
    return dict(sorted(found.items()))


def _name(image: Any, where: str) -> str:
    name = _field(image, "file_name", where)
    if not isinstance(name, str) or not name or _strange(name):
        raise UserError(f"{where}: file_name={show(name)}: must be the path of a picture in the folder of images")
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or PurePosixPath(name).is_absolute() or ".." in windows.parts:
        raise UserError(f"{where}: file_name={show(name)}: leads out of the folder of images; put the picture into it")
    return PurePosixPath(name).as_posix()


def _strange(text: str) -> bool:
    """Whether a text has control characters, or halves of others."""
    return any(one < " " or one == "\x7f" for one in text) or not is_text(text)


def _side(image: Any, name: str, where: str) -> int:
    value = _whole(image, name, where)
    if not 1 <= value <= _LONGEST:
        raise UserError(f"{where}: {name}={show(value)}: must be 1 or more pixels, as the picture has")
    return value


def _whole(one: Any, name: str, where: str) -> int:
    value = _field(one, name, where)
    if isinstance(value, float) and value.is_integer():  # as tables of floats are exported
        return int(value)
    if type(value) is not int:  # not True either
        raise UserError(f"{where}: {name}={show(value)}: must be a whole number")
    return value


def _field(one: Any, name: str, where: str) -> Any:
    if not isinstance(one, dict) or name not in one:
        raise UserError(f"{where}: has no {name}; is it COCO's JSON?")
    return one[name]


def _pictures(names: list[str], folder: Path, key: str) -> Table:
    from datasets import Dataset, Features, Image  # a slow import, needed here only

    paths = {"image": [str(folder / name) for name in names]}
    rows = Dataset.from_dict(paths, features=Features({"image": Image(decode=False)}))
    return Table(rows, "image", "", key, names, by_path=True)
