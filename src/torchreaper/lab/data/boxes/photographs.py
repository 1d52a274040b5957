"""Photographs and what files say about each: the form that every kind of file is brought to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from torchreaper.lab.data.boxes.geometry import letterbox
from torchreaper.lab.data.picture import check_mode
from torchreaper.lab.data.table import Table
from torchreaper.lab.errors import UserError

Size = tuple[int, int]
"""Height and width in pixels."""


class Object(NamedTuple):
    """A box as it stands in a file, its category there, whether it is a crowd, and its number, for error texts."""

    box: Any
    category: Any
    crowd: bool
    number: int


class Photographs(Protocol):
    """One split as its files give it; what they say of each box is not checked yet."""

    @property
    def table(self) -> Table:
        """Where the pictures are."""

    def where(self, row: int, number: int) -> str:
        """Which box that is, for error texts."""

    def objects(self, rows: list[int]) -> Iterable[list[Object]]:
        """The boxes on each picture."""

    def sizes(self, rows: list[int]) -> list[Size]:
        """The size of each picture: as the files say it, else as it is."""

    def names(self) -> dict[Any, str] | None:
        """The name of each category, if the files say it."""


@dataclass(frozen=True, eq=False)
class Letterboxed:
    """The pictures of a table, each brought to an input of ``size``; ``sizes``: those of some rows, as known."""

    table: Table
    size: Size
    sizes: Mapping[int, Size]
    random = False

    def where(self, row: int) -> str:
        """Which picture that is."""
        return self.table.where(row)

    def read(self, rows: list[int]) -> Iterator[Tensor]:
        """The pictures at ``rows`` as uint8 [3, height, width].

        Raises ``UserError`` as `Table.read` does, and for one of another size than its boxes are meant for.
        """
        for row, image in zip(rows, self.table.read(rows)):
            check_mode(image, self.where(row))
            height, width = self.sizes[row]
            if (image.height, image.width) != (height, width):
                raise UserError(
                    f"{self.where(row)}: picture of {image.height}x{image.width} pixels (height x width, as its EXIF "
                    f"data turn it), its boxes are for {height}x{width}; mend the picture or what is said of it"
                )
            yield letterbox(image, self.size)
