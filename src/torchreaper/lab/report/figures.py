"""The figures of a comparison: pure functions from metrics to a matplotlib Figure; saving is separate.

``runs[scheme][seed]`` is the list of metrics lines of a run (``runs.read_metrics``), in the order of the
epochs. A point at x = e is the state at the end of epoch e; a sub-network phase that is trained in the epochs
a to b is therefore shaded from a - 1 to b. ``name`` stands before the title. No pyplot: no figure outlives
its variable and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from torchreaper.lab.report.style import (
    DPI,
    FEW_EPOCHS,
    FEW_LAYERS,
    NAME,
    PANEL,
    SHADE,
    STYLE,
    WIDTH,
    Span,
    columns_for,
    integers,
    key,
    layer_bar,
    layer_colour,
    look,
    short,
    title,
)
from torchreaper.lab.wording import measure_of

Metrics = Sequence[Mapping[str, Any]]
Runs = Mapping[str, Mapping[int, Metrics]]

ON, OFF = "#F1F1F1", "#1F2A44"
GAP = 0.03  # inches between the layers of the map


MOST_BANDS = 4
"""Schemes whose seeds are shown as bands: more would hide each other."""


def sub_spans(metrics: Metrics) -> tuple[Span, ...]:
    """The sub-network phases of a run as (start, end) on the epoch axis; empty for a run without any."""
    spans: list[Span] = []
    for line in metrics:
        if line["phase"] != "sub":
            continue
        epoch = int(line["epoch"])
        if spans and spans[-1][1] == epoch - 1:
            spans[-1] = (spans[-1][0], epoch)
        else:
            spans.append((epoch - 1, epoch))
    return tuple(spans)


def accuracy_figure(runs: Runs, *, name: str = "") -> Figure:
    """Accuracy (%) and generalisation gap (points) against epoch: mean and range of the seeds.

    Accuracy is that of the images that the runs were judged on, test or validation. The gap is the training
    accuracy, running over the batches of the epoch and so with its augmentation, minus that. Where training counts no
    right answers (boxes), the training loss stands in its place; and what is judged by another metric, such as mAP, is
    called by its name.

    Raises:
        ValueError: no run in ``runs``, or one without a line.
    """
    _check(runs)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        strips = _shade((upper, lower), runs)
        judged = _judged_epochs(runs)
        _curves(upper, judged, lambda line: 100.0 * line["test_accuracy"])
        measure, counted = _judged_by(runs)
        value, what = (_gap, "generalisation gap") if counted else (_loss, "training loss")
        _curves(lower, judged if counted else runs, value)
        for panel in (upper, lower):
            _leave_out_the_start(panel)
        if counted:
            lower.axhline(0.0, color="#808080", linewidth=0.8, zorder=1)
        upper.set_ylabel(f"{measure} (%)")
        lower.set_ylabel(f"{what}:\ntrain − {measure} (points)" if counted else what)  # noqa: RUF001
        _epoch_axis(lower, runs)
        upper.set_title(_title(name, f"{measure} and {what}", runs))
        key(figure, _scheme_keys(runs, strips))
    return figure


def _judged_epochs(runs: Runs) -> Runs:
    """The same runs with the epochs only after which they were judged."""
    return {
        scheme: {seed: [one for one in lines if one["test_accuracy"] is not None] for seed, lines in seeds.items()}
        for scheme, seeds in runs.items()
    }


def _gap(line: Mapping[str, Any]) -> float:
    return 100.0 * float(line["train_accuracy"] - line["test_accuracy"])


def _loss(line: Mapping[str, Any]) -> float:
    return math.nan if line.get("train_loss") is None else float(line["train_loss"])


def _judged_by(runs: Runs) -> tuple[str, bool]:
    """What the accuracies of these runs are, such as "test accuracy", and whether training counted right answers."""
    lines = [line for seeds in runs.values() for one in seeds.values() for line in one]
    return measure_of(lines[0]), all(line["train_accuracy"] is not None for line in lines)


def overlap_figure(runs: Runs, *, name: str = "") -> Figure:
    """The overlap O_f over time: its sum over the filters, and its mean in every layer, a panel per scheme.

    Both are of the filters that are in the network: in a sub-network phase the sum has fewer terms.

    Raises:
        ValueError: no run in ``runs``, or one without a line.
    """
    _check(runs)
    layers = _layers(runs)
    columns = columns_for(len(runs))
    rows = -(-len(runs) // columns) if layers else 0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(WIDTH, 3.2 * columns), 3.6 + 2.9 * rows), layout="constrained")
        upper, *lower = figure.subfigures(
            1 + bool(rows), 1, height_ratios=(3.6, 2.9 * rows)[: 1 + bool(rows)], squeeze=False
        )[:, 0]
        total = upper.subplots()
        strips = _shade((total,), runs)
        _curves(total, runs, lambda line: line["overlap_total"])
        total.set_ylabel("sum of $O_f$ over\nthe filters in the network", parse_math=True)
        _epoch_axis(total, runs)
        total.set_title(_title(name, "overlap of the filters", runs))
        key(upper, _scheme_keys(runs, strips))
        if not layers:
            return figure
        panels = lower[0].subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for panel, (scheme, seeds) in zip(panels, runs.items()):
            _layer_panel(panel, scheme, seeds, layers)
        for panel in panels[len(runs) :]:
            panel.remove()
        _spread_out(panels[: len(runs)])
        scale = "\n(log scale)" if panels[0].get_yscale() == "log" else ""
        for panel in panels[::columns]:
            panel.set_ylabel(f"mean $O_f$ of the layer{scale}", parse_math=True)
        _layer_key(lower[0], list(panels[: len(runs)]), layers)
    return figure


def filter_map_figure(metrics: Metrics, layers: Mapping[str, int], *, name: str = "") -> Figure:
    """Which filters of one run were there in which epoch: x epochs, y all filters by layer; off = dark.

    ``layers`` gives the number of filters of every layer, in the order of the model, first on top. A layer is
    drawn as high as it has filters, but never lower than its name; where filters outnumber pixels, neighbours
    share one, in the shade of the share that is off.

    Raises:
        ValueError: no line, no layer, or a line that names a layer or filter that ``layers`` does not hold.
    """
    if not metrics or not layers:
        raise ValueError(f"metrics of {len(metrics)} epochs, layers={dict(layers)}: at least one of each is needed")
    first, last = int(metrics[0]["epoch"]) - 1, int(metrics[-1]["epoch"])
    heights = _band_heights(list(layers.values()))
    total = sum(heights) + GAP * (len(heights) - 1)
    map_inches = min(14.0, max(2.6, total))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, map_inches + 1.3), layout="constrained")
        axes = figure.subplots()
        colours = LinearSegmentedColormap.from_list("on-off", [ON, OFF])
        top = 0.0
        centres: list[float] = []
        for (layer, filters), height in zip(layers.items(), heights):
            pixels = int(height * map_inches / total * DPI)
            axes.imshow(
                _pooled(_off_matrix(metrics, layer, filters), pixels),
                cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest",
                extent=(first, last, top + height, top),
            )  # fmt: skip
            centres.append(top + height / 2)
            top += height + GAP
        unknown = sorted({name for line in metrics for name in line["dropped"]} - set(layers))
        if unknown:
            raise ValueError(f"layers={dict(layers)}: the metrics name {unknown} as well")
        axes.set_ylim(total, 0.0)
        axes.set_xlim(first, last)
        size = 8.0
        shown = _thin(centres, room=1.25 * size / 72 * total / map_inches)
        names = list(layers)
        labels = [f"{short(names[i], NAME)}  ({layers[names[i]]})" for i in shown]
        axes.set_yticks([centres[i] for i in shown], labels)
        axes.tick_params(axis="y", length=0, labelsize=size)
        axes.xaxis.set_major_locator(integers(10))
        axes.set_xlabel("epoch")
        axes.set_ylabel("layer (filters)")
        axes.set_title(title(name, "filters on and off"))
        keys = [
            Patch(facecolor=OFF, label="dropped"),
            Patch(facecolor=ON, edgecolor="#9A9A9A", label="in the network"),
        ]
        key(figure, keys)
    return figure


def _check(runs: Runs) -> None:
    empty = [f"{scheme}, seed {seed}" for scheme, seeds in runs.items() for seed, lines in seeds.items() if not lines]
    if empty or not runs or not all(runs.values()):
        raise ValueError(f"runs: no metrics for {', '.join(empty) or 'at least one scheme'}; leave it out or train it")


def _mean_and_range(
    seeds: Mapping[int, Metrics], value: Callable[[Mapping[str, Any]], float | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that every seed has, and the mean, lowest and highest value over the seeds."""
    curves = [{int(line["epoch"]): _number(value(line)) for line in lines} for lines in seeds.values()]
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    table = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    return np.array(epochs), table.mean(axis=0), table.min(axis=0), table.max(axis=0)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)  # a number that JSON does not have is written as null


def _curves(axes: Axes, runs: Runs, value: Callable[[Mapping[str, Any]], float | None]) -> None:
    for number, seeds in enumerate(runs.values()):
        colour, style = look(number)
        epochs, mean, low, high = _mean_and_range(seeds, value)
        marker = "o" if len(epochs) <= FEW_EPOCHS else ""
        if len(seeds) > 1 and len(runs) <= MOST_BANDS:
            axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(epochs, mean, color=colour, linestyle=style, linewidth=1.7, marker=marker, markersize=3.5)


def _shade(panels: Sequence[Axes], runs: Runs) -> bool:
    """Shade the sub-network phases; True where schemes differ in them, and have strips in their colours."""
    spans = {scheme: sub_spans(next(iter(seeds.values()))) for scheme, seeds in runs.items()}
    different = {phases for phases in spans.values() if phases}
    strips = len(different) > 1
    for axes in panels:
        if not strips:
            for start, end in next(iter(different), ()):
                axes.axvspan(start, end, color=SHADE, linewidth=0, zorder=0)
            continue
        top = 1.0
        for number, phases in enumerate(spans.values()):
            for start, end in phases:
                axes.axvspan(start, end, top - 0.02, top, color=look(number)[0], linewidth=0, zorder=0)
            top -= 0.025 if phases else 0.0
    return strips


def _leave_out_the_start(axes: Axes) -> None:
    """Fit the y-axis to the epochs after the first tenth, where that more than halves its range.

    A network that has just begun is so far from where it goes that nothing else would be seen.
    """
    curves = [line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2]  # not the line at 0
    drawn: list[np.ndarray] = [np.column_stack([line.get_xdata(), line.get_ydata()]) for line in curves]
    drawn += [np.asarray(path.vertices) for band in axes.collections for path in band.get_paths()]
    points = np.concatenate(drawn) if drawn else np.empty((0, 2))
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0 or points[:, 0].max() <= FEW_EPOCHS:
        return
    late = points[points[:, 0] > 1 + points[:, 0].max() / 10, 1]
    if len(late) == 0 or np.ptp(points[:, 1]) <= 2 * np.ptp(late):
        return
    room = 0.08 * np.ptp(late) or 0.5
    axes.set_ylim(late.min() - room, late.max() + room)


def _spread_out(panels: Sequence[Axes]) -> None:
    """A logarithmic y-axis, where layers differ so much that a linear one would press most of them flat."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for panel in panels for line in panel.lines])
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() <= 0 or values.max() < 4 * values.min():
        return
    for panel in panels:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.yaxis.set_minor_locator(NullLocator())


def _scheme_keys(runs: Runs, strips: bool) -> list[Line2D | Patch]:
    keys: list[Line2D | Patch] = []
    for number, (scheme, seeds) in enumerate(runs.items()):
        colour, style = look(number)
        text = f"{short(scheme, NAME)}, " + ("1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds")
        keys.append(Line2D([], [], color=colour, linestyle=style, linewidth=1.7, label=text))
    if strips:
        keys.append(Patch(facecolor="none", label="strips above: sub-network phases"))
    elif any(sub_spans(lines) for seeds in runs.values() for lines in seeds.values()):
        keys.append(Patch(facecolor=SHADE, label="sub-network phase"))
    return keys


def _title(name: str, what: str, runs: Runs) -> str:
    several = any(len(seeds) > 1 for seeds in runs.values())
    band = "; band: lowest to highest seed" if len(runs) <= MOST_BANDS else ""
    return title(name, what) + (f"\nline: mean of the seeds{band}" if several else "")


def _epoch_axis(axes: Axes, runs: Runs, *, ticks: int = 10) -> None:
    ends = [line["epoch"] for seeds in runs.values() for lines in seeds.values() for line in (lines[0], lines[-1])]
    first, last = min(ends), max(ends)
    axes.set_xlim(first - 1, last + (0.15 if last - first < FEW_EPOCHS else 0.0))
    axes.xaxis.set_major_locator(integers(ticks))
    axes.set_xlabel("epoch")


def _layers(runs: Runs) -> list[str]:
    """All layers that any run names, in the order in which they are met."""
    lines = (lines[0] for seeds in runs.values() for lines in seeds.values())
    return list(dict.fromkeys(name for line in lines for name in line["overlap"]))


def _layer_panel(axes: Axes, scheme: str, seeds: Mapping[int, Metrics], layers: Sequence[str]) -> None:
    _shade((axes,), {scheme: seeds})
    for number, layer in enumerate(layers):
        if all(layer in line["overlap"] for lines in seeds.values() for line in lines):
            epochs, mean, _, _ = _mean_and_range(seeds, lambda line, layer=layer: line["overlap"][layer])  # type: ignore[misc]
            marker = "." if len(epochs) <= FEW_EPOCHS else ""
            axes.plot(epochs, mean, color=layer_colour(number, len(layers)), linewidth=1.1, marker=marker)
    axes.set_title(f"{short(scheme, PANEL)}, by layer")
    _epoch_axis(axes, {scheme: seeds}, ticks=5)


def _layer_key(figure: SubFigure, panels: list[Axes], layers: Sequence[str]) -> None:
    if len(layers) <= FEW_LAYERS:
        keys = [
            Line2D([], [], color=layer_colour(number, len(layers)), linewidth=1.5, label=short(layer, NAME))
            for number, layer in enumerate(layers)
        ]
        key(figure, keys)
        return
    layer_bar(figure, panels, len(layers))


def _band_heights(filters: Sequence[int]) -> list[float]:
    """The height of every layer in the map, in inches before any fitting to the page."""
    per_filter = min(0.022, 7.0 / sum(filters))
    return [max(0.14, per_filter * count) for count in filters]


def _thin(centres: Sequence[float], *, room: float) -> list[int]:
    """The indices of the labels that fit, first to last, ``room`` apart at least."""
    shown: list[int] = []
    for index, centre in enumerate(centres):
        if not shown or centre - centres[shown[-1]] >= room:
            shown.append(index)
    return shown


def _off_matrix(metrics: Metrics, layer: str, filters: int) -> np.ndarray:
    """[filters, epochs], 1 where the filter was not in the network during the epoch."""
    off = np.zeros((filters, len(metrics)))
    for column, line in enumerate(metrics):
        for index in line["dropped"].get(layer, ()):
            if not 0 <= index < filters:
                raise ValueError(f"layers[{layer!r}]={filters}: the metrics name its filter {index}")
            off[index, column] = 1.0
    return off


def _pooled(matrix: np.ndarray, rows: int) -> np.ndarray:
    """The matrix with at most ``rows`` rows, neighbours averaged: drawing would skip rows instead."""
    if len(matrix) <= max(1, rows):
        return matrix
    return np.stack([part.mean(axis=0) for part in np.array_split(matrix, max(1, rows))])
