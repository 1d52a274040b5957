"""What the records of a run hold: which keys their readers may count on, and of which type and range.

A record may have other keys, as those of other versions do; what is null was no number when it was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import Settings, parse

Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]  # what can be added up
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Epoch = Annotated[int, Field(ge=1, le=10**6)]
Judged = Literal["test", "validation"]
Filter = Annotated[int, Field(ge=0, lt=10**6)]


class _Record(Settings):
    model_config = ConfigDict(extra="allow")


class MetricsLine(_Record):
    """A line of ``metrics.jsonl``: one epoch. Accuracies are the metric of the run's task, and ``parts`` its parts.

    What is called ``test_...`` is of the images that ``judged`` names, here and in ``result.json``; null in an epoch
    after which nobody looked (``eval_every``).
    """

    epoch: Epoch
    phase: Literal["full", "sub"]
    counts: bool | None = None
    train_loss: Number | None = None
    train_accuracy: Share | None
    test_accuracy: Share | None
    parts: dict[str, Share] = {}
    metric: str = "accuracy"
    judged: Judged = "test"
    test_loss: Number | None = None
    validation_accuracy: Share | None = None
    lr: Number | None = None
    overlap: dict[str, Number | None]
    overlap_total: Number | None
    dropped: dict[str, list[Filter]]
    seconds: Seconds


class EventLine(_Record):
    """A line of ``events.jsonl``: one transition."""

    epoch: Epoch
    kind: Literal["drop", "restore"]
    filters: dict[str, list[Filter]]


class Result(_Record):
    """The content of ``result.json``."""

    recipe: str
    scheme: str
    seed: int = Field(ge=0)
    epochs: Epoch
    report: Literal["last", "validation"]
    metric: str = "accuracy"
    judged: Judged = "test"
    parts: dict[str, Share] = {}
    reported_epoch: Epoch | None = None
    test_accuracy: Share
    train_accuracy: Share
    gap: float = Field(ge=-1 - 1e-6, le=1 + 1e-6)
    validation_accuracy: Share | None = None
    seconds: Seconds
    teacher_seconds: Seconds | None = None
    source_seconds: Seconds | None = None
    source_epochs: Epoch | None = None
    layers: dict[str, Annotated[int, Field(ge=1, le=10**6)]]


class _Begun(_Record):
    base: str | None = None  # older versions did not write these down
    code: dict[str, str] = {}
    data: dict[str, str] = {}


class Environment(_Begun):
    """The content of ``environment.json``, as far as it is read by those who train and analyze."""

    resumed: list[_Begun] = []


class _OfScheme(_Record):
    scheme: str
    seeds: list[int] = []


class _Missing(_Record):
    scheme: str
    seed: int


class Found(_Record):
    """The content of ``comparison.json``, as far as other than numbers to be shown is read from it."""

    baseline: str = ""
    judged: Judged = "test"
    schemes: list[_OfScheme] = []
    contrasts: list[_OfScheme] = []
    failures: list[_Missing] = []


class Asked(_Record):
    """The content of ``recipe.yaml``, as far as a report tells it."""

    epochs: int | None = None
    model: dict[str, Any] | None = None
    data: dict[str, Any] | None = None


def good(kind: type[_Record], line: Mapping[str, Any]) -> bool:
    """Whether a record is what its readers count on."""
    try:
        parse(kind, line)
    except UserError:
        return False
    return True


def check(kind: type[_Record], line: Mapping[str, Any], where: str) -> None:
    """Raise `UserError`, one line that begins with ``where``, for a record that is not what its readers count on."""
    try:
        parse(kind, line)
    except UserError as error:
        raise UserError(f"{where}: is damaged: {error}") from None


def check_lines(kind: type[_Record], lines: Sequence[Mapping[str, Any]], path: Path, *, each_once: bool) -> None:
    """Raise `UserError` for a line of a log that is wrong in itself, or stands after one of a later epoch.

    ``each_once``: or of the same epoch.
    """
    before = 0
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        check(kind, line, where)
        if line["epoch"] < before + each_once:
            raise UserError(f"{where}: is damaged: epoch {line['epoch']} stands after epoch {before}")
        before = line["epoch"]
