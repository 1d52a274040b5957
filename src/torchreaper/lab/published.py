"""What a paper reports for the schemes of a recipe: its ``published:`` section."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import PLUS
from torchreaper.lab.settings import Settings, did_you_mean


class Published(Settings):
    """The recipe's ``published:`` section: numbers to print beside what is measured; no run depends on them.

    Attributes:
        unit: "accuracy %" or "error %", of the test images, as the source has it.
        source: Where the numbers stand, such as "Prakash et al. 2019, table of criteria".
        data: Of which data they are, where a recipe may be run on others, such as "CIFAR-10".
        values: By scheme: standard, the recipe's own, a key of its ``schemes``, or the name of any other scheme.
    """

    unit: Literal["accuracy %", "error %"]
    source: str = Field(min_length=1)
    data: str | None = Field(default=None, min_length=1)
    values: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(min_length=1)

    def accuracy(self, scheme: str) -> float | None:
        """The published test accuracy in percent, an error as 100 minus it; None where there is none."""
        value = self.values.get(scheme)
        if value is None or self.unit == "accuracy %":
            return value
        return round(100.0 - value, 6)  # 72.1, not 72.1 and a rounding

    def check(self, known: Iterable[str]) -> None:
        """Raise ``UserError`` for a value whose scheme is none of ``known``, nor of several of them (``a+b``)."""
        known = list(known)
        for key in self.values:
            if key not in known and not all(part in known for part in key.split(PLUS)):
                raise UserError(f"published.values.{key}: no such scheme; {did_you_mean(key, known)}")

    def where(self) -> str:
        """Source and data in one phrase."""
        return f"{self.source}, {self.data}" if self.data else self.source


def percent(value: float) -> str:
    """A published number with as many decimals as it has, at least one."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"
