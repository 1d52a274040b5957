"""What RePr is worth where: the tables and the picture of docs/replication.md, from the kept records alone.

    python benchmarks/replication.py                                        prints the tables
    python benchmarks/replication.py --picture docs/images/replication.png

Every row is a network with its images; its families are folders of results/replication, comparisons of other schemes
on the same seeds. Test accuracy of the last epoch in %, differences in points, paired by seed, with 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from report import shown

from torchreaper.lab.report.saving import save
from torchreaper.lab.report.style import COLOURS, STYLE, key
from torchreaper.lab.statistics import Difference, Estimate, estimate, paired_difference

RESULTS = Path(__file__).parent / "results" / "replication"
BASELINE, METHOD, SHORTER, CHANCE = "standard", "repr", "shorter", "random ranking"
COMPARED = {
    METHOD: "RePr",
    SHORTER: "standard, its whole schedule in fewer epochs",
    CHANCE: "RePr, random ranking",
}
MARKS = {METHOD: "o", SHORTER: "s", CHANCE: "D"}
SAME_AS = {"repr-random": CHANCE, "random": CHANCE}  # two recipes have different names for it


class Run(NamedTuple):
    """One run: accuracies in %, of the images it is judged on and of its own; its time in seconds."""

    accuracy: float
    train: float
    seconds: float


Seeds = Mapping[int, Run]


@dataclass(frozen=True)
class Row:
    """A network with its images, and the folders of its results."""

    name: str
    families: tuple[str, ...]
    published: str = ""


ROWS = (
    Row("C3(32), 45,000 images", ("final-45000", "step-20", "step-20-paper"), "72.1, 76.4"),
    Row(
        "C3(32), 10,000 images",
        (
            "final-10000",
            "final-10000-parts",
            "final-10000-slices",
            "final-10000-readings",
            "final-10000-alternatives",
            "step-18",
            "step-19",
        ),
    ),
    Row("C2(32), 5,000 images", ("c2-5000", "step-19-c2")),
    Row("C8(32), 5,000 images", ("c8-5000",), "73.2, 80.5"),
    Row("ResNet-20, 5,000 images", ("resnet20", "step-18-resnet20", "step-20-resnet20"), "91.6, 93.1"),
    Row("C3(32) with 3x3 kernels, 4,500 images", ("grid-base",)),
    Row("the same, 20 % wrong labels", ("grid-noise",)),
    Row("the same, crops and mirror images", ("grid-crop",)),
    Row("the same, wrong labels, crops and mirror images", ("grid-noise-crop",)),
    Row("the same, crops and mirror images, 400 epochs", ("augmented",)),
    Row("C2(32), 5,000 images, crops and mirror images", ("c2-5000-crop",)),
    Row("ResNet-20, 5,000 images, crops and mirror images", ("resnet20-crop",)),
)


@dataclass(frozen=True)
class Found:
    """The runs of a row: ``runs[scheme][seed]``."""

    row: Row
    runs: Mapping[str, Seeds]

    def accuracy(self, scheme: str) -> Estimate:
        """Its test accuracy over the seeds."""
        return accuracy(self.runs[scheme])

    def known(self, scheme: str) -> float:
        """Its mean accuracy on the training images."""
        return estimate([run.train for run in self.runs[scheme].values()]).mean

    def minus(self, scheme: str, other: str) -> Difference | None:
        """The difference, paired by seed; None where one of them was not run."""
        if scheme not in self.runs or other not in self.runs:
            return None
        return paired(self.runs[scheme], self.runs[other])

    def best(self) -> str:
        """The scheme with the highest mean of those tried."""
        return max(self.runs, key=lambda scheme: self.accuracy(scheme).mean)

    def time(self, scheme: str) -> float | None:
        """Median ratio of its time to that of standard training; None where it was not run."""
        if scheme not in self.runs:
            return None
        ours, theirs = self.runs[scheme], self.runs[BASELINE]
        return median(ours[seed].seconds / theirs[seed].seconds for seed in ours)


def find(row: Row, results: Path = RESULTS) -> Found:
    """The kept runs of a row.

    Raises:
        ValueError: the families do not fit together; other seeds, or other numbers for the same scheme.
    """
    runs: dict[str, dict[int, Run]] = {}
    for family in row.families:
        for scheme, found in read(results / family / "comparison.csv").items():
            if runs.setdefault(scheme, found) != found:
                raise ValueError(f"{row.name}: {scheme} has other numbers in {family} than in a family before it")
            if found.keys() != runs[BASELINE].keys():
                raise ValueError(f"{row.name}: {scheme} has other seeds in {family} than {BASELINE}: {list(found)}")
    return Found(row, runs)


def read(path: Path, judged: str = "test") -> dict[str, dict[int, Run]]:
    """The runs of a comparison, by scheme and seed; the baseline comes first there.

    Args:
        path: Its comparison.csv.
        judged: Whose accuracy, "test" or "validation".
    """
    found: dict[str, dict[int, Run]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            scheme = SAME_AS.get(line["scheme"], line["scheme"])
            shares = (line[f"{judged}_accuracy"], line["train_accuracy"])
            run = Run(*(100 * float(share) for share in shares), seconds=float(line["seconds"]))
            found.setdefault(scheme, {})[int(line["seed"])] = run
    return found


def accuracy(seeds: Seeds) -> Estimate:
    """Over the seeds."""
    return estimate([run.accuracy for run in seeds.values()])


def paired(ours: Seeds, theirs: Seeds) -> Difference:
    """Of the accuracies, by seed."""
    return paired_difference([ours[seed].accuracy for seed in ours], [theirs[seed].accuracy for seed in ours])


def accuracy_table(rows: Sequence[Found]) -> Iterator[str]:
    """The table of accuracies and times, line by line."""
    heads = (
        "test accuracy %",
        "published",
        "n",
        "standard",
        "RePr",
        "best without tuned decay",
        "time of RePr, `shorter`, the best",
    )
    yield from head(heads)
    for found in rows:
        best = found.best()
        times = (found.time(METHOD), found.time(SHORTER), found.time(best))
        yield line(
            found.row.name,
            found.row.published,
            str(found.accuracy(BASELINE).n),
            shown(found.accuracy(BASELINE)),
            shown(found.accuracy(METHOD)),
            f"{shown(found.accuracy(best))} `{best}`, of {len(found.runs)}",
            ", ".join("-" if time is None else f"{time:.2f}" for time in times),
        )


def difference_table(rows: Sequence[Found]) -> Iterator[str]:
    """The table of differences, line by line."""
    heads = ("points of test accuracy", "standard knows of its images", "RePr", "`shorter`", CHANCE)
    yield from head((*heads, "RePr minus `shorter`", f"RePr minus {CHANCE}"))
    pairs = [(scheme, BASELINE) for scheme in COMPARED] + [(METHOD, SHORTER), (METHOD, CHANCE)]
    for found in rows:
        known = f"{found.known(BASELINE):.1f} %"
        yield line(found.row.name, known, *(points(found.minus(*pair)) for pair in pairs))


def head(heads: Sequence[str]) -> Iterator[str]:
    yield line(*heads)
    yield "|" + "---|" * len(heads)


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def points(value: Difference | None) -> str:
    """Such as "+1.92 [+1.30, +2.54]"; nothing for None."""
    return "" if value is None else shown(value, "+")


def picture(rows: Sequence[Found]) -> Figure:
    """Every row's differences to standard training with their intervals, one below the other."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.9 + 0.56 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0.0, color="#808080", linewidth=0.8, zorder=1)
        for index, (scheme, colour) in enumerate(zip(COMPARED, COLOURS)):
            there = [(place, found.minus(scheme, BASELINE)) for place, found in enumerate(rows)]
            drawn = [(place + 0.22 * (index - 1), value) for place, value in there if value is not None]
            axes.errorbar(
                [value.mean for _, value in drawn],
                [place for place, _ in drawn],
                xerr=[math.nan if value.half_width is None else value.half_width for _, value in drawn],
                fmt=MARKS[scheme],
                color=colour,
                markersize=5,
                capsize=2.5,
                label=COMPARED[scheme],
            )
        axes.set_yticks(range(len(rows)), [label(found) for found in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        compared = "test accuracy minus that of standard training, in points (95 %)"
        axes.set_xlabel(f"{compared}\nweight decay: none, or at most 5e-4")
        key(figure, axes.get_legend_handles_labels()[0])
    return figure


def label(found: Found) -> str:
    """The row's name, and below it how good standard training is and how much of its images it knows."""
    test, train = found.accuracy(BASELINE).mean, found.known(BASELINE)
    return f"{found.row.name}\nstandard {test:.1f} %, on training images {train:.0f} %"


def command(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a program that prints tables and draws one picture."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=_png, metavar="PNG", help="draw it, replacing this file")
    return parser


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png" or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: must be a file that ends in .png")
    return path


def put(parser: argparse.ArgumentParser, figure: Figure, path: Path, says: Sequence[str]) -> None:
    """Save the picture with these lines as its description; where that cannot be, end the program in one line."""
    try:
        save(figure, path, says="\n".join(says))
    except OSError as error:
        parser.error(f"argument --picture: {path}: {error.strerror}; choose another place")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the picture where asked."""
    parser = command(__doc__)
    asked = parser.parse_args(arguments)
    rows = [find(row) for row in ROWS]
    differences = list(difference_table(rows))
    if asked.picture:
        put(parser, picture(rows), asked.picture, differences)
    print("\n".join((*accuracy_table(rows), "", *differences)))


if __name__ == "__main__":
    main()
