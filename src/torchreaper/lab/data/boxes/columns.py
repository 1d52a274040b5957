"""Boxes in a column of a table, beside the pictures: as detection data sets on huggingface.co have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchreaper.lab.data.boxes.photographs import Object, Size
from torchreaper.lab.data.boxes.spec import BoxesSpec
from torchreaper.lab.data.table import Table, as_stored, choose_column, image_column
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show

_CHUNK = 1000  # rows that are read at once
_BOX = ("bbox", "bboxes", "box", "boxes")
_CATEGORY = ("category", "categories", "category_id", "label", "labels", "class", "classes")
_CROWD = ("iscrowd", "is_crowd")


@dataclass(frozen=True, eq=False)
class Columns:
    """One split: the column of objects, and in it the fields of boxes, of categories, and of crowds if any."""

    table: Table
    column: str
    bbox: str
    category: str
    crowd: str | None
    labels: tuple[str, ...] | None

    def where(self, row: int, number: int) -> str:
        """Such as "data.train: row 5, box 2"."""
        return f"{self.table.where(row)}, box {number}"

    def objects(self, rows: list[int]) -> Iterator[list[Object]]:
        """The boxes on each picture."""
        column = self.table.rows.select_columns([self.column])
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            for row, stored in zip(some, column[some][self.column]):
                yield self._objects(stored, f"{self.table.where(row)}, column {self.column!r}")

    def _objects(self, stored: Any, where: str) -> list[Object]:
        names = [self.bbox, self.category, *([self.crowd] if self.crowd else [])]
        if stored is None:
            return []
        if isinstance(stored, list):  # an object after the other, not a list of each field
            stored = {name: [(one or {}).get(name) for one in stored] for name in names}
        fields = [stored[name] or [] for name in names]
        if len({len(field) for field in fields}) > 1:
            counts = ", ".join(f"{len(field)} of {name}" for name, field in zip(names, fields))
            raise UserError(f"{where}: has {counts}; must be one each for every box")
        found = []
        for number, (box, category, *rest) in enumerate(zip(*fields)):
            crowd = rest[0] if rest else 0
            if crowd not in (0, 1, None):
                raise UserError(f"{where}: {self.crowd}={show(crowd)}: must be 0 or 1")
            found.append(Object(box, category, bool(crowd), number))
        return found

    def sizes(self, rows: list[int]) -> list[Size]:
        """The sizes of the pictures: what columns "height" and "width" say, where all have them, else as they are."""
        columns = ["height", "width"]
        if all(name in self.table.rows.features for name in columns):
            stated = self.table.rows.select_columns(columns)[rows]
            pairs = list(zip(stated["height"], stated["width"]))
            if all(type(side) is int and side > 0 for pair in pairs for side in pair):
                return pairs
        return list(self.table.sizes(rows))

    def names(self) -> dict[Any, str] | None:
        """The names of the categories, if the table has them."""
        return None if self.labels is None else dict(enumerate(self.labels))


def open_columns(rows: Any, spec: BoxesSpec, key: str) -> Columns:
    """Find the columns and fields by the names in ``spec``, else by their types, else by usual names.

    Raises ``UserError`` where there is none, or several.
    """
    import datasets

    image = image_column(rows, spec.image, key)
    features = rows.features
    known = {name: _fields(feature) for name, feature in features.items()}
    by_type = [name for name, fields in known.items() if any(map(_is_box, fields.values()))]
    column = choose_column(features, spec.objects, "objects", by_type, key)
    fields, inside = known[column], f"column {column!r} of {key}"
    if not fields:
        raise UserError(f"data.objects={column!r}: is not a column of boxes and categories in {key}")
    boxes = [name for name, feature in fields.items() if _is_box(feature)]
    bbox = choose_column(fields, spec.bbox, "bbox", _likely(boxes, _BOX), inside)
    if not _is_box(fields[bbox]):
        raise UserError(f"data.bbox={bbox!r}: is not a field of four numbers in {inside}")
    labels = [name for name, feature in fields.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in _CATEGORY if name in fields]
    category = choose_column(fields, spec.category, "category", _likely(labels, _CATEGORY) or named, inside)
    crowd = next((name for name in _CROWD if name in fields), None)
    feature = fields[category]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    # The library unpacks some data sets into files; a local parquet file that names others is not believed.
    table = Table(as_stored(rows, image, key), image, column, key, by_path=spec.name == "hub")
    return Columns(table, column, bbox, category, crowd, names)


def _fields(feature: Any) -> dict[str, Any]:
    """What a column has of each object, whether it holds a list of objects or a list of each field; else nothing."""
    import datasets

    lists = (datasets.List, datasets.LargeList)
    if isinstance(feature, lists) and isinstance(feature.feature, dict):
        return dict(feature.feature)
    if isinstance(feature, dict):
        return {name: field.feature for name, field in feature.items() if isinstance(field, lists)}
    return {}


def _is_box(feature: Any) -> bool:
    """Whether a field holds lists of numbers."""
    import datasets

    inner = feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else None
    numbers = isinstance(inner, datasets.Value) and inner.dtype.startswith(("float", "double", "int", "uint"))
    return numbers and getattr(feature, "length", -1) in (-1, 4)


def _likely(found: list[str], usual: tuple[str, ...]) -> list[str]:
    """Of several fields of the right type those with a usual name."""
    return found if len(found) < 2 else [name for name in usual if name in found] or found
