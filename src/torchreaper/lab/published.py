"""What a paper reports for the schemes of a recipe: its ``published:`` section."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from torchreaper.lab.data.questions import KINDS
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import PLUS
from torchreaper.lab.settings import Settings, did_you_mean

_DETECTION = "detection"
_AVERAGES = ("AP50", "AP75", "AP small", "AP medium", "AP large", "AP <class>")
Share = Annotated[float, Field(ge=0, le=100)]


class Published(Settings):
    """The recipe's ``published:`` section: numbers to print beside what is measured; no run depends on them.

    Attributes:
        unit: "accuracy %", "error %" or "mAP %" (of detectors), of the test images, as the source has it.
        source: Where the numbers stand, such as "Prakash et al. 2019, table of criteria".
        data: Of which data they are, where a recipe may be run on others, such as "CIFAR-10".
        parts: By part and scheme, such as ``{yes/no: {standard: 81.4}}``; in the same unit. Of detectors "AP50",
            "AP75", "AP small", "AP medium", "AP large" and "AP <class>"; of answers "yes/no", "number" and "other";
            where the recipe has a ``source``, "source: accuracy" or "source: mAP" too.
        values: By scheme: standard, the recipe's own, a key of its ``schemes``, or the name of any other scheme.
    """

    unit: Literal["accuracy %", "error %", "mAP %"]
    source: str = Field(min_length=1)
    data: str | None = Field(default=None, min_length=1)
    values: dict[str, Share] = Field(min_length=1)
    parts: dict[str, dict[str, Share]] = Field(default_factory=dict)

    def accuracy(self, scheme: str) -> float | None:
        """The published test accuracy (or mAP) in percent, an error as 100 minus it; None where there is none."""
        value = self.values.get(scheme)
        return None if value is None else self._share(value)

    def of_parts(self, scheme: str) -> dict[str, float]:
        """The published parts in percent, likewise."""
        return {name: self._share(values[scheme]) for name, values in self.parts.items() if scheme in values}

    def _share(self, value: float) -> float:
        return round(100.0 - value, 6) if self.unit == "error %" else value  # 72.1, not 72.1 and a rounding

    def check(self, known: Iterable[str], *, task: str, first: str | None = None) -> None:
        """Raise ``UserError`` for what a recipe cannot be compared with.

        Args:
            known: the schemes there are; values may be of several of them (``a+b``) as well.
            task: the recipe's. first: that of the training before, if there is one.
        """
        units = ("mAP %",) if task == _DETECTION else ("accuracy %", "error %")
        if self.unit not in units:
            raise UserError(f"published.unit={self.unit!r}: is not of the task {task}; use {' or '.join(units)}")
        for name in self.parts:
            self._check_part(name, task, first)
        known = list(known)
        named = {f"parts.{name}": values for name, values in self.parts.items()}
        for where, values in {"values": self.values, **named}.items():
            for key in values:
                if key not in known and not all(part in known for part in key.split(PLUS)):
                    raise UserError(f"published.{where}.{key}: no such scheme; {did_you_mean(key, known)}")

    def _check_part(self, name: str, task: str, first: str | None) -> None:
        if task == _DETECTION and name.startswith("AP"):  # classes have any name
            return
        there = list({_DETECTION: _AVERAGES, "vqa": KINDS}.get(task, ()))
        if first is not None:
            there.append("source: mAP" if first == _DETECTION else "source: accuracy")
        if name not in there:
            raise UserError(
                f"published.parts.{name}: no such part; "
                + (did_you_mean(name, there) if there else f"the task {task} has none, leave it out")
            )

    def where(self) -> str:
        """Source and data in one phrase."""
        return f"{self.source}, {self.data}" if self.data else self.source


def percent(value: float) -> str:
    """A published number with as many decimals as it has, at least one."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"
