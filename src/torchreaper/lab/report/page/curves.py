"""The numbers that the plots of the page are drawn from, as plain values for JSON, rounded to what a plot shows.

A point at x = e is the state at the end of epoch e; a sub-network phase of the epochs a to b spans a - 1 to b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.colors import to_hex

from torchreaper.lab.report.figures import sub_spans
from torchreaper.lab.report.page.reading import Folder, Json, Run, parts
from torchreaper.lab.report.page.tables import interval
from torchreaper.lab.report.style import FEW_LAYERS, layer_colour, look
from torchreaper.lab.wording import measure_of

DIGITS = 4  # significant ones
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """What can be drawn over the epochs, and how it is read from a line of metrics."""

    key: str
    title: str
    axis: str
    value: Callable[[Line], float | None]
    judged: bool = False

    def lines(self, run: Run) -> Sequence[Line]:
        """Those that have it: not every epoch need have been judged."""
        return [line for line in run.lines if line.get("test_accuracy") is not None] if self.judged else run.lines


def _percent(line: Line) -> float | None:
    value = line.get("test_accuracy")
    return None if value is None else 100.0 * value


def _gap(line: Line) -> float | None:
    both = line.get("train_accuracy"), line.get("test_accuracy")
    return None if both[0] is None or both[1] is None else 100.0 * (both[0] - both[1])


METRICS = (
    Metric("accuracy", "{}", "{} (%)", _percent, judged=True),
    Metric("gap", "Gap", "training minus {} (points)", _gap, judged=True),
    Metric("loss", "Training loss", "training loss", lambda line: line.get("train_loss")),
    Metric("overlap", "Overlap", "sum of O<sub>f</sub> over all filters", lambda line: line.get("overlap_total")),
)  # fmt: skip


def named(name: str, plots: Json) -> tuple[Metric, ...]:
    """What can be drawn, where accuracy is called ``name``; not what no run has, as the gap of detectors."""
    means = [scheme["means"] for scheme in plots["schemes"]]
    there = [one for one in METRICS if not means or any(any(y is not None for y in m[one.key]["mean"]) for m in means)]
    title = name[:1].upper() + name[1:]
    return tuple(replace(o, title=o.title.replace("{}", title), axis=o.axis.replace("{}", name)) for o in there)


def plots(folder: Folder) -> Json:
    """Everything that is drawn of one comparison."""
    schemes = {name: runs for name, runs in folder.runs.items() if any(run.lines for run in runs.values())}
    spans = [sub_spans(_longest(runs)) for runs in schemes.values()]
    return {
        "schemes": [_scheme(number, *item) for number, item in enumerate(schemes.items())],
        "judged": [metric.key for metric in METRICS if metric.judged],
        "strips": len({phases for phases in spans if phases}) > 1,
        "measure": measure_of(folder.found),
        "forest": forest(folder),
        "pairs": pairs(folder, list(schemes)),
        "maps": [drawn for run in folder.every if (drawn := filter_map(run, _layers(folder))) is not None],
    }


def _scheme(number: int, name: str, runs: Mapping[int, Run]) -> Json:
    colour, dash = look(number)
    begun = [run for run in runs.values() if run.lines]
    # A run that is still young would cut the mean of all to its few epochs.
    whole = [run for run in begun if run.result is not None] or begun
    return {
        "name": name,
        "colour": colour,
        "dash": DASHES[dash],
        "spans": sub_spans(_longest(runs)),
        "means": {
            metric.key: mean_and_range(list(filter(None, map(metric.lines, whole))), metric.value) for metric in METRICS
        },
        "seeds": [
            {
                "seed": run.seed,
                "x": [line["epoch"] for line in run.lines],
                **{metric.key: _rounded(map(metric.value, run.lines)) for metric in METRICS},
            }
            for run in begun
        ],
        "layers": layer_curves([run.lines for run in whole]),
    }


def _longest(runs: Mapping[int, Run]) -> Sequence[Json]:
    return max((run.lines for run in runs.values()), key=len)


def mean_and_range(seeds: Sequence[Sequence[Line]], value: Callable[[Line], float | None]) -> Json:
    """Mean, lowest and highest over the seeds, at the epochs that all have; null where one has no number."""
    curves = [{int(line["epoch"]): value(line) for line in lines} for lines in seeds]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    columns = [[_nan(curve[epoch]) for curve in curves] for epoch in epochs]
    known = [column if all(map(math.isfinite, column)) else [math.nan] for column in columns]
    return {
        "x": epochs,
        "mean": _rounded(sum(column) / len(column) for column in known),
        "low": _rounded(map(min, known)),
        "high": _rounded(map(max, known)),
    }


def layer_curves(seeds: Sequence[Sequence[Line]]) -> list[Json]:
    """The mean overlap of every layer over the epochs, first layer first; its filters are those in the network."""
    names = list(dict.fromkeys(name for lines in seeds for line in lines for name in line.get("overlap") or {}))
    found = []
    for number, name in enumerate(names):

        def value(line: Line, name: str = name) -> float | None:
            return (line.get("overlap") or {}).get(name)

        mean = mean_and_range(seeds, value)
        colour = to_hex(layer_colour(number, len(names)))
        found.append(
            {"name": name, "colour": colour, "x": mean["x"], "y": mean["mean"], "few": len(names) <= FEW_LAYERS}
        )
    return found


def forest(folder: Folder) -> list[Json]:
    """The differences from the baseline with their intervals, in points."""
    found = []
    for part in parts(folder.found, "contrasts"):
        value = part.get("accuracy")
        if isinstance(value, dict) and isinstance(value.get("mean"), (int, float)):
            bounds = {key: _round(_nan(value.get(key))) for key in ("mean", "low", "high")}
            found.append({"scheme": str(part.get("scheme")), **bounds, "text": interval(value, signed=True)})
    return found


def pairs(folder: Folder, schemes: Sequence[str]) -> list[Json]:
    """Per seed, the reported accuracy of every scheme in percent; null where the run is not finished."""
    seeds = sorted({run.seed for run in folder.every if run.result is not None})
    table = {(run.scheme, run.seed): _percent(run.result) for run in folder.every if run.result is not None}
    return [{"seed": seed, "values": _rounded(table.get((name, seed)) for name in schemes)} for seed in seeds]


def _layers(folder: Folder) -> dict[str, int]:
    """Layer -> filters, by any finished run: an unfinished one has not written it yet."""
    return next((dict(run.result["layers"]) for run in folder.every if run.result and run.result.get("layers")), {})


def filter_map(run: Run, known: Mapping[str, int]) -> Json | None:
    """Which filters of a run were dropped from which epoch to which; None for a run without a sub-network phase."""
    if not sub_spans(run.lines):
        return None
    layers = dict((run.result or {}).get("layers") or known)
    spans: list[tuple[int, int, dict[str, list[int]]]] = []
    for line in run.lines:
        dropped, epoch = line.get("dropped") or {}, int(line["epoch"])
        if spans and spans[-1][1] == epoch - 1 and spans[-1][2] == dropped:
            spans[-1] = (spans[-1][0], epoch, dropped)
        elif dropped:
            spans.append((epoch, epoch, dropped))
    for _, _, dropped in spans:
        for name, filters in dropped.items():
            layers[name] = max(layers.get(name, 0), 1 + max(filters, default=-1))
    return {
        "label": f"{run.scheme}, seed {run.seed}",
        "layers": list(layers.items()),
        "first": int(run.lines[0]["epoch"]),
        "last": int(run.lines[-1]["epoch"]),
        "spans": spans,
    }


def _nan(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _round(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [_round(_nan(value)) for value in values]
