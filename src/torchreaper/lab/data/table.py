"""From a table with an image and a label column to tensors, every row checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from torchreaper.lab.data.memory import check_memory
from torchreaper.lab.data.opening import measure_picture, open_picture
from torchreaper.lab.data.parquet import first_line
from torchreaper.lab.data.picture import GREY, check_mode, pixels
from torchreaper.lab.data.stream import Source
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show

Progress = Callable[[str, int, int], None]
"""Called while images are decoded with what they are ("train"), how many are done, and how many there are."""

_CHUNK = 500  # images decoded between two calls of the progress callback


@dataclass(frozen=True)
class Table:
    """One split: a ``datasets.Dataset`` and the names of its columns; ``key`` is its place in the recipe.

    ``files``: of rows that stand for files, their names, for error texts. ``by_path``: a row may hold the path of a
    file on this machine in place of its bytes.
    """

    rows: Any
    image: str
    label: str
    key: str
    files: Sequence[str] = ()
    by_path: bool = False
    random = False

    def where(self, row: int) -> str:
        """Such as "data.train: row 5"."""
        return f"{self.key}: {self.files[row]}" if self.files else f"{self.key}: row {row}"

    def read(self, rows: list[int]) -> Iterator[Any]:
        """The images at ``rows``, one decoded after the other, so that none need be kept.

        Raises ``UserError`` for one that is missing, cannot be decoded, or is too large; see `open_picture`.
        """
        mode = self.rows.features[self.image].mode
        return self._each(rows, lambda one, where: open_picture(one, where, mode=mode))

    def sizes(self, rows: list[int]) -> Iterator[tuple[int, int]]:
        """Height and width of the images at ``rows``, in general without decoding them; errors as of `read`."""
        return self._each(rows, measure_picture)

    def _each(self, rows: list[int], look: Callable[[Any, str], Any]) -> Iterator[Any]:
        for row, one in zip(rows, self.rows.select_columns([self.image])[rows][self.image]):
            where = self.where(row)
            if one is None:
                raise UserError(f"{where} has no image (column {self.image!r})")
            if one["bytes"] is None and not (self.by_path and "://" not in one["path"]):
                raise UserError(f"{where}: image is elsewhere ({one['path']}) and not read from there; put it in")
            try:
                yield look(one, where)
            except UserError:
                raise
            except Exception as error:  # a decoder may raise anything
                raise UserError(f"{where}: image cannot be decoded ({first_line(error)}); mend or remove it") from None


def open_table(rows: Any, *, image: str | None, label: str | None, key: str, by_path: bool = False) -> Table:
    """Find the image and the label column by name, else by type.

    The image column: see `image_column`.
    The label column: the only ClassLabel, else the only column called "label" or "labels".
    Raises ``UserError`` where there is none, or several.
    """
    import datasets

    features = rows.features
    image = image_column(rows, image, key)
    named = [name for name in ("label", "labels") if name in features]
    by_type = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
    label = choose_column(features, label, "label", by_type or named, key)
    return Table(as_stored(rows, image, key), image, label, key, by_path=by_path)


def image_column(rows: Any, image: str | None, key: str) -> str:
    """The column called ``image``, else the only one of type Image (or a struct of bytes and path, as it is stored).

    Raises ``UserError`` where there is none or several, where it holds no images, and where there are no rows.
    """
    import datasets

    features = rows.features
    if len(rows) == 0:
        raise UserError(f"{key}: has no rows")

    def is_image(feature: Any) -> bool:
        stored = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        return isinstance(feature, datasets.Image) or stored

    image = choose_column(features, image, "image", [name for name, f in features.items() if is_image(f)], key)
    if not is_image(features[image]) and features[image] != datasets.Value("binary"):
        raise UserError(f"data.image={image!r}: is not a column of images in {key}, but {features[image]}")
    return image


def as_stored(rows: Any, image: str, key: str) -> Any:
    """The same rows, their images not decoded. Raises ``UserError`` where columns are not what the file says."""
    import datasets

    mode = getattr(rows.features[image], "mode", None)
    try:
        return rows.cast_column(image, datasets.Image(mode=mode, decode=False))
    except (ArithmeticError, TypeError, ValueError) as error:  # it looks at the other columns too
        what = f"its columns are not what the file says of them ({first_line(error)})"
        raise UserError(f"{key}: {what}; mend the labels or the file") from None


def choose_column(features: Any, asked: str | None, what: str, found: Sequence[str], key: str) -> str:
    """The column ``asked`` for by ``data.what``, else the only one ``found``; ``UserError`` where there is none."""
    if asked is not None:
        if asked not in features:
            raise UserError(f"data.{what}={asked!r}: no such column in {key}; it has {', '.join(features)}")
        return asked
    if not found:
        raise UserError(f"data.{what}: found no {what} column in {key}; name one of {', '.join(features)}")
    if len(found) > 1:
        raise UserError(f"data.{what}: several {what} columns in {key}; name one of {', '.join(found)}")
    return found[0]


def class_names(table: Table) -> tuple[str, ...]:
    """The classes: a ClassLabel's names, the different strings in order, or the integers 0 to the highest.

    Raises ``UserError`` for other types, and for integers that skip a number or start below 0.
    """
    import datasets

    feature = table.rows.features[table.label]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = _values(table)
    if all(isinstance(value, str) for value in values):
        return tuple(sorted(set(values)))
    if not all(type(value) is int for value in values):
        raise UserError(f"data.label={table.label!r}: must hold class names or integers, not {feature}")
    found = set(values)
    if low := [value for value in found if value < 0]:
        raise UserError(_range(table, values.index(low[0]), low[0], "integers from 0"))
    missing = next(number for number in range(len(found) + 1) if number not in found)
    if missing < len(found):
        raise UserError(
            f"data.label={table.label!r}: labels out of range in {table.key}: class {missing} has no images, "
            f"class {max(found)} has; labels must be 0, 1, 2, ... without gaps"
        )
    return tuple(str(number) for number in range(len(found)))


def read_labels(table: Table, classes: tuple[str, ...]) -> Int64[Tensor, " rows"]:
    """All labels as indices into ``classes``.

    Raises ``UserError``, with the row, for a label that is missing or out of range.
    """
    import datasets

    feature = table.rows.features[table.label]
    if isinstance(feature, datasets.ClassLabel) and tuple(feature.names) != classes:
        raise UserError(f"{table.key}: its classes are {_names(feature.names)}, not {_names(classes)}")
    values = _values(table)
    index = {name: number for number, name in enumerate(classes)}
    numbers = [index.get(value, -1) if isinstance(value, str) else value for value in values]
    for row, number in enumerate(numbers):
        # Not a bool or a float that equals one: 0.5 would silently be class 0.
        if type(number) is not int or not 0 <= number < len(classes):
            raise UserError(_range(table, row, values[row], f"0 to {len(classes) - 1} ({len(classes)} classes)"))
    return torch.tensor(numbers, dtype=torch.int64)


def _values(table: Table) -> list[Any]:
    values: list[Any] = table.rows.select_columns([table.label])[:][table.label]
    if None in values:
        raise UserError(f"{table.where(values.index(None))} has no label (column {table.label!r})")
    return values


def _range(table: Table, row: int, value: object, allowed: str) -> str:
    where = f"{table.where(row)}, column {table.label!r}"
    return f"{where}: label {value!r} is out of range: must be {allowed}"


def decode(
    table: Source,
    indices: Int64[Tensor, " n"],
    *,
    what: str,
    size: int | None = None,
    progress: Progress | None = None,
) -> tuple[UInt8[Tensor, "n 3 height width"], bool]:
    """The images at ``indices`` as RGB, brought to ``size`` (see `pixels`), and whether all of them are grey.

    Raises ``UserError``, with the row, for an image that is missing, cannot be decoded, has more than 8 bits
    a channel, or another size than the first; and where all together do not fit into memory.
    """
    total = len(indices)
    held: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    grey = True
    for start in range(0, total, _CHUNK):
        chunk = indices[start : start + _CHUNK].tolist()
        for i, (row, image) in enumerate(zip(chunk, table.read(chunk)), start=start):
            check_mode(image, table.where(row))
            grey = grey and image.mode in GREY
            array = pixels(image, size=size)
            shape = array.shape[1:]
            if held is None:
                check_memory(total, (3, *shape))
                held = np.empty((total, 3, *shape), dtype=np.uint8)
            if shape != held.shape[2:]:
                raise UserError(
                    f"{table.where(row)}: image of {_size(array)} pixels, others have {_size(held[0])}; set data.size "
                    "to bring all to one size"
                )
            held[i] = array  # grey goes to all three
        if progress is not None:
            progress(what, min(start + _CHUNK, total), total)
    assert held is not None, "a split is never empty"
    return torch.from_numpy(held), grey


def _names(names: Sequence[str]) -> str:
    return show(", ".join(names))


def _size(array: Any) -> str:
    return f"{array.shape[-2]}x{array.shape[-1]}"
