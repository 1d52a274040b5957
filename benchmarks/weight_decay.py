"""What weight decay leaves of RePr's gain: the tables and the picture of docs/replication.md, steps 14, 15 and 17.

    python benchmarks/weight_decay.py                                         prints the tables
    python benchmarks/weight_decay.py --picture docs/images/weight-decay.png

Standard training and RePr were each given several weight decays on validation images; with the decay that was best
there each has five seeds on the test images. Accuracy of the last epoch in %, differences in points, paired by seed,
with 95 % t-intervals; all from the kept records in results/replication.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from replication import BASELINE, METHOD, RESULTS, Run, Seeds, accuracy, command, head, line, paired, points, put, read
from report import shown

from torchreaper.lab.report.style import COLOURS, STYLE, key
from torchreaper.lab.statistics import Difference

SCHEMES = {BASELINE: "standard", METHOD: "RePr"}
DECAY = "weight-decay"
TABLE = "comparison.csv"
COLUMNS = 3  # of the picture's panels
NONE = 2e-4  # where a decay of 0 stands on the axis, which is logarithmic


class Tested(NamedTuple):
    """A scheme with the decay that was best for it: this, and the folder of its runs on the test images."""

    decay: str
    folder: str

    @property
    def shown(self) -> str:
        """The decay, in a table."""
        return self.decay if float(self.decay) else "none"


@dataclass(frozen=True)
class Network:
    """A network with its images, and the folders of its results.

    Attributes:
        without: of its runs without weight decay, or with the ``usual`` one.
        tried: what the names of the folders begin with, separated by spaces, whose runs are judged on validation
            images; the decay follows.
        tested: by scheme; empty where that is still to come.
        method: what RePr's runs are called there.
        usual: the weight decay of what is ``without``; an architecture may have one that nobody leaves out.
    """

    name: str
    without: str
    tried: str
    tested: Mapping[str, Tested] = field(default_factory=dict)
    method: str = METHOD
    usual: str = "0"

    @property
    def names(self) -> dict[str, str]:
        """Scheme by the name that its runs have: its own, or that of the scheme that gives it a weight decay."""
        return {BASELINE: BASELINE, DECAY: BASELINE, self.method: METHOD, f"{DECAY}+{METHOD}": METHOD}

    def read(self, folder: Path, judged: str = "test") -> dict[str, dict[int, Run]]:
        """Its runs in a folder, by scheme and seed."""
        runs = read(folder / TABLE, judged)
        return {scheme: runs[name] for name, scheme in self.names.items() if name in runs}

    def folders(self, results: Path) -> Iterator[tuple[str, Path]]:
        """Each decay that was tried, and where its runs are."""
        for begin in self.tried.split():
            for folder in results.glob(f"{begin}*"):
                yield folder.name.removeprefix(Path(begin).name), folder


NETWORKS = (
    Network(
        "C3(32), 45,000 images",
        "final-45000",
        "step-15/all-",
        {BASELINE: Tested("5e-3", "step-15/tested-all-5e-3"), METHOD: Tested("2e-3", "step-15/tested-all-2e-3")},
    ),
    Network(
        "C3(32), 10,000 images",
        "final-10000",
        "step-14/decay-",
        {BASELINE: Tested("2e-2", "step-14/tested-2e-2"), METHOD: Tested("2e-3", "step-14/tested-2e-3")},
    ),
    Network(
        "C2(32), 5,000 images",
        "c2-5000",
        "step-15/c2-",
        {BASELINE: Tested("4e-2", "step-15/tested-c2-4e-2"), METHOD: Tested("5e-3", "step-15/tested-c2-5e-3")},
    ),
    Network(
        "C3(32) with 3x3 kernels, 4,500 images",
        "grid-base",
        "step-15/grid-",
        {BASELINE: Tested("2e-2", "step-15/tested-grid-2e-2"), METHOD: Tested("0", "grid-base")},
    ),
    Network(
        "the same, 20 % wrong labels",
        "grid-noise",
        "step-15/noise-",
        {
            BASELINE: Tested("2.5e-2", "step-15/tested-noise-2.5e-2"),
            METHOD: Tested("1e-3", "step-15/tested-noise-1e-3"),
        },
    ),
    Network(
        "ResNet-20, 5,000 images",
        "resnet20",
        "step-17/standard- step-17/inside-",
        {BASELINE: Tested("1e-2", "step-17/tested"), METHOD: Tested("5e-3", "step-17/tested")},
        method="inside",
        usual="1e-4",
    ),
)


@dataclass(frozen=True)
class Found:
    """What came of a network.

    Attributes:
        validation: ``validation[scheme][decay][seed]``; the decay "0" is none.
        test: ``test[scheme][seed]``, each with its decay.
        without: the same without any, or with the usual one.
    """

    network: Network
    validation: Mapping[str, Mapping[str, Seeds]]
    test: Mapping[str, Seeds]
    without: Mapping[str, Seeds]

    def difference(self) -> Difference:
        """RePr minus standard training, each with the decay that was best for it."""
        return paired(self.test[METHOD], self.test[BASELINE])

    def gain(self, scheme: str) -> Difference | None:
        """With the decay that was best for the scheme, minus the usual one or none; None where that was best."""
        if self.network.tested[scheme].decay == self.network.usual:
            return None
        return paired(self.test[scheme], self.without[scheme])

    def best(self, scheme: str) -> str:
        """The decay with the highest mean on validation images; of equals the smaller one."""
        tried = self.validation[scheme]
        # Rounded: as many right answers, added in another order, may differ in the last bit.
        return max(sorted(tried, key=float), key=lambda decay: round(accuracy(tried[decay]).mean, 6))


def find(network: Network, results: Path = RESULTS) -> Found:
    """The kept runs of a network.

    Raises:
        ValueError: what was tested is not what was best on validation, or has other seeds than standard training.
    """
    validation: dict[str, dict[str, Seeds]] = {scheme: {} for scheme in SCHEMES}
    for decay, folder in network.folders(results):
        for scheme, seeds in network.read(folder, "validation").items():
            validation[scheme][decay] = seeds
    held = network.read(results / network.without, "validation")
    for scheme, tried in validation.items():
        asked = {seed for seeds in tried.values() for seed in seeds}
        tried[network.usual] = {seed: value for seed, value in held[scheme].items() if seed in asked}
    tests = {scheme: network.read(results / tested.folder)[scheme] for scheme, tested in network.tested.items()}
    found = Found(network, validation, tests, network.read(results / network.without))
    for scheme, (decay, place) in network.tested.items():
        if decay != found.best(scheme):
            raise ValueError(f"{network.name}: {place} is of {decay}; best for {scheme} was {found.best(scheme)}")
        if tests[scheme].keys() != found.without[BASELINE].keys():
            raise ValueError(f"{network.name}: {place} has other seeds than {network.without}: {list(tests[scheme])}")
    return found


def tested_table(found: Sequence[Found]) -> Iterator[str]:
    """The table of what came out on the test images, line by line."""
    heads = ("test accuracy %, each with its best weight decay", "n", "standard without", "standard", "RePr")
    yield from head((*heads, "RePr minus standard", "decay's gain for standard", "for RePr"))
    for each in (each for each in found if each.test):
        yield line(
            each.network.name,
            str(len(each.test[BASELINE])),
            shown(accuracy(each.without[BASELINE])),
            *(f"{shown(accuracy(each.test[scheme]))} ({each.network.tested[scheme].shown})" for scheme in SCHEMES),
            points(each.difference()),
            *(points(each.gain(scheme)) for scheme in SCHEMES),
        )


def tried_table(each: Found) -> Iterator[str]:
    """The table of what was tried on validation images, line by line."""
    yield from head((f"{each.network.name}, validation accuracy %", *SCHEMES.values()))
    best = {scheme: each.best(scheme) for scheme in SCHEMES}
    for decay in sorted({decay for tried in each.validation.values() for decay in tried}, key=float):
        cells = [seeds_shown(each.validation[scheme].get(decay), decay == best[scheme]) for scheme in SCHEMES]
        yield line(decay, *cells)


def seeds_shown(seeds: Seeds | None, best: bool) -> str:
    """Such as "68.5 (68.3, 68.6), knows 88.8 %", the best one in bold; nothing for what was not run."""
    if not seeds:
        return ""
    mean = f"{accuracy(seeds).mean:.1f}"
    each = ", ".join(f"{run.accuracy:.1f}" for run in seeds.values())
    known = fmean(run.train for run in seeds.values())
    return "".join((f"**{mean}**" if best else mean, f" ({each})" if len(seeds) > 1 else "", f", knows {known:.1f} %"))


def picture(found: Sequence[Found]) -> Figure:
    """Validation accuracy over weight decay, a panel for each network."""
    with matplotlib.rc_context(STYLE):
        rows = -(-len(found) // COLUMNS)
        figure = Figure(figsize=(1.2 + 2.6 * COLUMNS, 0.4 + 2.8 * rows), layout="constrained")
        panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for empty in panels[len(found) :]:
            empty.set_visible(False)
        for axes, each in zip(panels, found):
            for (scheme, name), colour in zip(SCHEMES.items(), COLOURS):
                tried = each.validation[scheme]
                decays = sorted(tried, key=float)
                places = [float(decay) or NONE for decay in decays]
                axes.plot(places, [accuracy(tried[decay]).mean for decay in decays], "o-", color=colour, label=name)
                for place, decay in zip(places, decays):
                    values = [run.accuracy for run in tried[decay].values()]
                    axes.plot([place] * len(values), values, ".", color=colour, alpha=0.5)
            axes.set_xscale("log")
            least, named = (1e-4, "0.0001") if float(each.network.usual) else (NONE, "none")
            axes.set_xticks([least, 1e-3, 1e-2], [named, "0.001", "0.01"])
            axes.set_xlim(least / 1.5, 0.15)
            axes.minorticks_off()
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.set_title(
                each.network.name.replace(", ", ",\n", 1).replace("the same", "with 3x3 kernels"), fontsize=8
            )
            axes.set_xlabel("weight decay")
        for axes in panels[::COLUMNS]:
            axes.set_ylabel("validation accuracy %")
        key(figure, panels[0].get_legend_handles_labels()[0])
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the picture where asked."""
    parser = command(__doc__)
    asked = parser.parse_args(arguments)
    found = [find(network) for network in NETWORKS]
    tables = list(tested_table(found))
    for each in found:
        tables += ["", *tried_table(each)]
    if asked.picture:
        put(parser, picture(found), asked.picture, tables)
    print("\n".join(tables))


if __name__ == "__main__":
    main()
