"""What a comparison found: plain values, in percent and points."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torchreaper.lab.published import Published
from torchreaper.lab.statistics import LEVEL, Answer, Difference, Estimate, Interval

Result = dict[str, Any]


@dataclass(frozen=True)
class Reach:
    """In which epoch a scheme's accuracy first was what the baseline ended with; a descriptive number."""

    #: Over the seeds, those that never came so far counted as infinity; None: that is the median.
    median: float | None
    #: How many of the ``n`` seeds came so far.
    reached: int
    n: int


@dataclass(frozen=True)
class Summary:
    """One scheme over its seeds: accuracies in percent, the gap (training minus ``accuracy``) in points.

    Accuracy is here and in `Contrast` what ``Comparison.measure`` says: the number that the task is judged by, on the
    images that the recipe judges on.
    """

    scheme: str
    seeds: tuple[int, ...]
    accuracy: Estimate
    #: Of the mean ``accuracy``, see ``statistics.bootstrap_interval``.
    bootstrap: Interval | None
    train_accuracy: Estimate
    gap: Estimate
    #: That the network was trained, those of the network it started from included, without those of a teacher.
    epochs: int
    #: The median run: training this network; and its teachers before, 0 where it has none.
    seconds: float
    teacher_seconds: float
    #: None where no seed has both its curve and a run of the baseline.
    epochs_to_baseline: Reach | None
    #: The test accuracy a paper reports, in percent.
    published: float | None
    #: Further shares that the runs found, in percent: of kinds of questions, of classes, of the network started from.
    parts: dict[str, Estimate] = field(default_factory=dict)
    #: What a paper reports for these, in percent.
    published_parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """A scheme minus the baseline, in points, over the seeds that both have."""

    scheme: str
    baseline: str
    seeds: tuple[int, ...]
    accuracy: Difference
    bootstrap: Interval | None
    #: The p-value of ``accuracy``, corrected for the number of schemes that were tested.
    p_holm: float | None
    gap: Difference
    #: Seconds of the scheme, its teachers included, over those of the baseline: median of the seeds, below 1 quicker.
    wall_clock: float
    #: The same without teachers.
    wall_clock_student: float
    answer: Answer
    verdict: str
    #: Seeds for an 80 % chance to see ``Comparison.detect`` points, going by this spread and, with several schemes, by
    #: the strictest step of Holm's correction; None if unknown or above 1000.
    seeds_needed: int | None
    #: Of the further shares; not corrected for their number, nor judged.
    parts: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and why, in one line."""

    scheme: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What ``reaper compare`` found. Schemes without a finished run stand in ``failures`` only."""

    recipe: str
    #: "last" or "validation": the epoch whose accuracy is compared.
    report: str
    #: The scheme the others are compared with: the first one named.
    baseline: str
    schemes: tuple[Summary, ...]
    contrasts: tuple[Contrast, ...]
    failures: tuple[Failure, ...] = ()
    #: What a reader has to know of how the runs were made, in sentences.
    remarks: tuple[str, ...] = ()
    #: The difference, in points, that ``Contrast.seeds_needed`` is about.
    detect: float = 1.0
    published: Published | None = None
    #: What "accuracy" stands for.
    metric: str = "accuracy"
    #: "test" or "validation": the images that the networks were judged on.
    judged: str = "test"

    @property
    def measure(self) -> str:
        """Such as "test accuracy"."""
        return f"{self.judged} {self.metric}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in ``comparison.json``."""
        paper = self.published.model_dump(mode="json") if self.published else None
        return {"unit": "percent", "level": LEVEL, **asdict(replace(self, published=None)), "published": paper}
