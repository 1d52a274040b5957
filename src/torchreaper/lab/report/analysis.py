"""The figures of how criteria agree with the greedy oracle: pure functions from numbers to a matplotlib Figure.

The oracle leaves out one filter alone and measures the accuracy lost, in points (PAPER.md 5 and 7). The score
of a criterion is higher = dropped earlier, so a good one gives its first ranks to filters whose loss is small.
``name`` stands before the title. No pyplot; saving is separate (``report.save``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import rankdata

from torchreaper.lab.report.checks import alike, filled, numbers, within
from torchreaper.lab.report.style import (
    FEW_EPOCHS,
    FEW_LAYERS,
    MARKERS,
    NAME,
    PANEL,
    SHADE,
    STYLE,
    WIDTH,
    Span,
    columns_for,
    grid,
    heading,
    ink,
    integers,
    key,
    labels,
    layer_bar,
    layer_colour,
    look,
    number,
    short,
    spaced,
    title,
)

ZERO = "#808080"  # the line at 0
UNDEFINED = "#E4E4E4"


def scatter_figure(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    lost: Mapping[str, Sequence[float]],
    *,
    correlations: Mapping[str, float],
    name: str = "",
) -> Figure:
    """Every criterion against the oracle, a panel each: the accuracy lost against the rank by the criterion.

    ``scores[criterion][layer]`` and ``lost[layer]`` hold a number for every filter, ``correlations`` what is
    written over the panel of a criterion, NaN where it is undefined. Ranks run over all layers, 1 = dropped
    first; equal scores share the mean of their ranks. A good criterion has its points rise to the right.

    Raises:
        ValueError: nothing to draw, a number that is not finite, or criteria, layers or filters that differ.
    """
    filled("scores", scores, "criterion")
    filled("lost", lost, "layer")
    alike("correlations", correlations, "scores", scores)
    points = {layer: numbers(f"lost[{layer!r}]", values) for layer, values in lost.items()}
    ranks = {criterion: _ranks(criterion, layers, points) for criterion, layers in scores.items()}
    columns = columns_for(len(ranks))
    rows, height = -(-len(ranks) // columns), {1: 3.4, 2: 2.7}.get(columns, 1.95)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, rows * height + 1.0), layout="constrained")
        panels = grid(figure, len(ranks))
        for panel, (criterion, places) in zip(panels, ranks.items()):
            _points(panel, places, points)
            panel.set_title(f"{short(criterion, PANEL)}\nSpearman {number(correlations[criterion])}")
        _same_limits(panels)
        for panel in panels[::columns]:
            panel.set_ylabel("accuracy lost\n(points)")
        for panel in panels[-columns:]:
            panel.set_xlabel("rank (1 = dropped first)")
        heading(figure, title(name, "criteria against the oracle"))
        if len(points) > FEW_LAYERS:
            layer_bar(figure, panels, len(points))
        else:
            key(figure, _layer_keys(list(points)))
    return figure


def agreement_figure(values: Mapping[str, Mapping[str, float]], *, name: str = "") -> Figure:
    """How well criteria agree with the oracle: ``values[criterion][measure]``, a shade and a number each.

    NaN is a correlation that is undefined (a criterion without variance): grey, "n/a".

    Raises:
        ValueError: nothing to draw, criteria that differ in their measures, or a value outside -1 to 1.
    """
    filled("values", values, "criterion")
    measures = list(next(iter(values.values())))
    for criterion, row in values.items():
        filled(f"values[{criterion!r}]", row, "measure")
        alike(f"values[{criterion!r}]", row, f"values[{next(iter(values))!r}]", measures)
    table = np.array([[row[measure] for measure in measures] for row in values.values()], dtype=np.float64)
    within("values", table, -1.0, 1.0)
    room = min(1.3, 4.4 / len(measures))  # inches of a column
    upright = max(len(word) for measure in measures for word in measure.split()) * 0.08 > room
    texts = [short(m, NAME) if upright else textwrap.fill(m, max(1, int(room / 0.075))) for m in measures]
    above = 0.075 * max(map(len, texts)) if upright else 0.17 * (1 + max(text.count("\n") for text in texts))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 0.3 * max(4, len(table)) + above + 0.6), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["PuOr"].with_extremes(bad=UNDEFINED)
        image = axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=-1.0, vmax=1.0, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            shade = UNDEFINED if np.isnan(value) else colours(0.5 + value / 2)
            size = 9.0 if room > 0.45 else 20.0 * room
            axes.text(
                column, row, number(float(value)),
                ha="center", va="center", fontsize=size, color=ink(shade),
            )  # fmt: skip
        axes.set_yticks(range(len(table)), [short(criterion, PANEL) for criterion in values])
        axes.set_xticks(range(len(measures)), texts, rotation=90 if upright else 0)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.hlines(np.arange(1, len(table)) - 0.5, -0.5, len(measures) - 0.5, color="white", linewidth=1.5)
        bar = figure.colorbar(image, ax=axes, ticks=[-1.0, -0.5, 0.0, 0.5, 1.0])
        bar.set_label("correlation")
        heading(figure, title(name, "agreement of criteria with the oracle"))
    return figure


def agreement_over_time_figure(
    series: Mapping[str, Mapping[int, float]],
    *,
    measure: str = "correlation",
    name: str = "",
    phases: Sequence[Span] = (),
) -> Figure:
    """How well criteria agree with the oracle in the course of training: ``series[criterion][epoch]``.

    A point at x = e is the state at the end of epoch e; ``phases`` are the sub-network phases as (start, end)
    on that axis (``figures.sub_spans``), shaded. NaN leaves a hole. ``measure`` names what the numbers are.

    Raises:
        ValueError: nothing to draw, a value outside -1 to 1, or a phase that ends before it starts.
    """
    filled("series", series, "criterion")
    for criterion, curve in series.items():
        if np.isnan(within(f"series[{criterion!r}]", list(curve.values()), -1.0, 1.0)).all():
            raise ValueError(f"series[{criterion!r}]: no number at any epoch; leave the criterion out")
    for start, end in phases:
        if not start < end:
            raise ValueError(f"phases: ({start}, {end}) does not end after it starts")
    epochs = sorted({epoch for curve in series.values() for epoch in curve})
    height = max(3.9, 0.17 * len(series) + 1.2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for start, end in phases:
            axes.axvspan(start, end, color=SHADE, linewidth=0, zorder=0)
        ends: list[tuple[float, float]] = []
        for place, curve in enumerate(series.values()):
            colour, style = look(place)
            line = np.array([[epoch, curve[epoch]] for epoch in sorted(curve)], dtype=np.float64)
            marker = "o" if len(line) <= FEW_EPOCHS else ""
            axes.plot(line[:, 0], line[:, 1], color=colour, linestyle=style, linewidth=1.5, marker=marker, markersize=3)
            last = line[np.isfinite(line[:, 1])][-1]
            ends.append((float(last[0]), float(last[1])))
        axes.axhline(0.0, color=ZERO, linewidth=0.8, zorder=1)
        first, last_epoch = epochs[0], epochs[-1]
        start_of_axis = min([first - 1, *(start for start, _ in phases)]) if first > 0 else first - 0.02 * last_epoch
        axes.set_xlim(start_of_axis, last_epoch + (0.15 if last_epoch - first < FEW_EPOCHS else 0.0))
        axes.xaxis.set_major_locator(integers(10))
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{short(measure, NAME)} with the oracle")
        axes.set_title(title(name, "agreement of criteria with the oracle"))
        _name_lines(axes, ends, [short(criterion, PANEL) for criterion in series], room=0.165 / (height - 0.9))
        if phases:
            key(figure, [Patch(facecolor=SHADE, label="sub-network phase")])
    return figure


def _ranks(
    criterion: str, layers: Mapping[str, Sequence[float]], points: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The rank of every filter by one criterion, over all layers, 1 = the highest score."""
    argument = f"scores[{criterion!r}]"
    alike(argument, layers, "lost", points)
    found = {layer: _scores(f"{argument}[{layer!r}]", layers[layer], len(lost)) for layer, lost in points.items()}
    ranks = rankdata(-np.concatenate(list(found.values())))
    ends = np.cumsum([len(values) for values in found.values()])
    return dict(zip(found, np.split(ranks, ends[:-1])))


def _scores(argument: str, values: Sequence[float], filters: int) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (filters,):
        raise ValueError(f"{argument}: of shape {vector.shape}, but lost has {filters} filters in that layer")
    if np.isnan(vector).any():
        raise ValueError(f"{argument}: filter {int(np.flatnonzero(np.isnan(vector))[0])} is nan, it has no rank")
    return vector


def _points(axes: Axes, ranks: Mapping[str, np.ndarray], lost: Mapping[str, np.ndarray]) -> None:
    filters = sum(len(values) for values in lost.values())
    axes.axhline(0.0, color=ZERO, linewidth=0.8, zorder=1)
    if len(lost) > FEW_LAYERS:
        order = np.random.default_rng(0).permutation(filters)  # or the last layers would hide the first
        depth = np.repeat(np.linspace(0.0, 1.0, len(lost)), [len(values) for values in lost.values()])
        x, y = (np.concatenate([table[layer] for layer in lost])[order] for table in (ranks, lost))
        axes.scatter(x, y, s=9.0 if filters <= 1000 else 2.5, c=depth[order], cmap="cividis", linewidths=0.0, zorder=2)
        return
    for place, (layer, values) in enumerate(lost.items()):
        axes.plot(
            ranks[layer], values,
            linestyle="", marker=MARKERS[place], markersize=4.2 if filters <= 150 else 3.0,
            color=layer_colour(place, len(lost)), markeredgecolor="white", markeredgewidth=0.3,
        )  # fmt: skip


def _same_limits(panels: Sequence[Axes]) -> None:
    left, right = min(panel.get_xlim()[0] for panel in panels), max(panel.get_xlim()[1] for panel in panels)
    low, high = min(panel.get_ylim()[0] for panel in panels), max(panel.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.set_xlim(left, right)
        panel.set_ylim(low, high)
        panel.xaxis.set_major_locator(integers(5))


def _layer_keys(layers: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], linestyle="", marker=MARKERS[place], color=layer_colour(place, len(layers)), label=text)
        for place, text in enumerate(labels(layers, NAME))
    ]


def _name_lines(axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str], *, room: float) -> None:
    """Name the lines at the right edge, side by side where they end together, with a leader to each."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    span = right - left
    places = spaced([(y - low) / (high - low) for _, y in ends], room, 0.02, 0.98)
    for number_, ((x, y), place, text) in enumerate(zip(ends, places, names)):
        colour, style = look(number_)
        height = low + place * (high - low)
        axes.add_line(
            Line2D(
                [x, right + 0.02 * span, right + 0.06 * span], [y, height, height],
                color=colour, linestyle=style, linewidth=1.1, clip_on=False, zorder=3,
            )
        )  # fmt: skip
        axes.text(right + 0.07 * span, height, text, va="center", fontsize=8.5)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
