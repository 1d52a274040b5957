"""The figures of the filters of a network, layer by layer: pure functions from numbers to a matplotlib Figure.

What leaving out single filters costs, how their activations correlate, how much they overlap beside random
directions, and what the first ones look like (PAPER.md 3 and 7). ``name`` stands before the title. No pyplot;
saving is separate (``report.save``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from torchreaper.lab.report.checks import alike, at_most, filled, numbers, within
from torchreaper.lab.report.style import (
    COLOURS,
    MARKERS,
    NAME,
    PANEL,
    STYLE,
    WIDTH,
    heading,
    integers,
    key,
    labels,
    number,
    short,
    spaced,
    title,
)

Table = Mapping[str, Mapping[str, Sequence[float]]]  # [label of the run][layer]: a number for every filter

MOST_RUNS, MOST_ROWS = 4, 4
FEW_FILTERS = 100  # up to here single filters are drawn as dots
ROOM = 6.1  # inches of an axis along the layers
BAND = "#C4C4C4"
FRAME = COLOURS[1]
EDGE = "#9A9A9A"


def oracle_figure(lost: Table, *, name: str = "") -> Figure:
    """The accuracy lost, in points, when a filter alone is left out: a violin per layer and run, its median marked.

    Violins reach from the lowest to the highest filter and are of equal width; single filters are dots where a
    layer has fewer than 100. Many layers are spread over several rows with the same y-axis.

    Raises:
        ValueError: nothing to draw, more than 4 runs, a number that is not finite, or runs of different layers.
    """
    table, layers = _table("lost", lost)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure, rows = _rows(layers, len(table), height=2.6)
        step = _step(rows, len(table), most=0.45)
        dots = False
        for panel, shown in rows:
            panel.axhline(0.0, color="#808080", linewidth=0.8, zorder=1)
            for place, layer in enumerate(shown):
                for run, values in enumerate(per_layer[layer] for per_layer in table.values()):
                    x = place + (run - (len(table) - 1) / 2) * step
                    _violin(panel, x, values, COLOURS[run], 0.9 * step)
                    if len(values) < FEW_FILTERS:
                        dots = True
                        aside = 0.5 * step * ((0.618 * np.arange(len(values)) + 0.5) % 1.0 - 0.5)
                        panel.plot(x + aside, values, ".", color=COLOURS[run], markersize=2.2, markeredgewidth=0)
                    panel.plot([x], [np.median(values)], **_dot("white", size=_size(rows, step)), zorder=5)
            panel.set_ylabel("accuracy lost (points)")
        heading(figure, title(name, "accuracy lost without a single filter"))
        keys: list[Line2D | Patch] = [
            Patch(facecolor=COLOURS[run], alpha=0.5, label=short(label, NAME)) for run, label in enumerate(table)
        ]
        keys.append(Line2D([], [], **_dot("white"), label="median"))
        if dots:
            keys.append(Line2D([], [], linestyle="", marker=".", color="black", markersize=3, label="a filter"))
        key(figure, keys)
    return figure


def layer_overlap_figure(overlaps: Table, expected: Mapping[str, tuple[float, float]], *, name: str = "") -> Figure:
    """The overlap O_f of the filters of every layer, and their mean, beside that of random directions.

    ``expected[layer]`` is the mean of the layer mean for random directions of its size and its standard
    deviation: a bar, in a band of two of them to both sides. Where layers differ much, the y-axis is logarithmic;
    what lies below it (a filter that overlaps with none) is then drawn at its lower end.

    Raises:
        ValueError: nothing to draw, more than 4 runs, a number that is not finite or negative, or other layers in
            one argument than in the other.
    """
    table, layers = _table("overlaps", overlaps)
    alike("expected", expected, "overlaps", layers)
    for layer, pair in expected.items():
        if len(pair) != 2 or not all(math.isfinite(value) and value >= 0 for value in pair):
            raise ValueError(f"expected[{layer!r}]={pair}: must be a mean and a standard deviation, both from 0 on")
    for label, per_layer in table.items():
        for layer, values in per_layer.items():
            within(f"overlaps[{label!r}][{layer!r}]", values, 0.0, math.inf)
    floor = _floor(table, expected)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure, rows = _rows(layers, len(table), height=2.6)
        step = _step(rows, len(table), most=0.3)
        half = min(0.46, max(0.3, (len(table) + 0.3) * step / 2))
        for panel, shown in rows:
            for place, layer in enumerate(shown):
                mean, deviation = expected[layer]
                low, high = max(floor, mean - 2 * deviation), max(floor, mean + 2 * deviation)
                panel.add_patch(
                    Rectangle((place - half, low), 2 * half, high - low, facecolor=BAND, linewidth=0, zorder=1)
                )
                panel.plot([place - half, place + half], [max(floor, mean)] * 2, color="black", linewidth=1.2, zorder=2)
                for run, values in enumerate(per_layer[layer] for per_layer in table.values()):
                    x = place + (run - (len(table) - 1) / 2) * step
                    y = np.maximum(floor, values)
                    panel.plot(
                        np.full(len(y), x), y,
                        ".", color=COLOURS[run], markersize=2.5, markeredgewidth=0, alpha=0.35, zorder=3,
                    )  # fmt: skip
                    panel.plot(
                        [x],
                        [max(floor, values.mean())],
                        **_dot(COLOURS[run], MARKERS[run], _size(rows, step)),
                        zorder=4,
                    )
        for panel, _ in rows:
            panel.set_ylabel("overlap $O_f$" + (" (log scale)" if floor else ""), parse_math=True)
            if floor:
                panel.set_yscale("log")
                panel.set_ylim(bottom=0.9 * floor)
                panel.yaxis.set_major_locator(
                    LogLocator(subs=(1.0,) if panel.get_ylim()[1] > 90 * floor else (1.0, 2.0, 5.0))
                )
                panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
                panel.yaxis.set_minor_locator(NullLocator())
            else:
                panel.set_ylim(bottom=0.0)
        heading(figure, title(name, "overlap of the filters beside random directions"))
        keys: list[Line2D | Patch] = [
            Line2D([], [], **_dot(COLOURS[run], MARKERS[run]), label=f"{short(label, NAME)}: mean")
            for run, label in enumerate(table)
        ]
        keys.append(Line2D([], [], linestyle="", marker=".", color="#808080", markersize=3, label="a filter"))
        keys.append(Line2D([], [], color="black", linewidth=1.2, label="random directions"))
        keys.append(Patch(facecolor=BAND, label="± 2 standard deviations of their mean"))
        key(figure, keys)
    return figure


def cca_figure(
    maps: Mapping[str, Mapping[str, Any]], *, chance: float | Mapping[str, float] | None = None, name: str = ""
) -> Figure:
    """How the activations of the filters of a layer correlate: a column per run, a row per layer.

    ``maps[run][layer]`` is a matrix [J, J] of canonical correlations, 0 to 1; NaN (a filter that is always off)
    is grey. All share one scale from 0 to the largest value off a diagonal, rounded up; ``chance``, what
    independent activations would give, is marked on it (NaN: a layer of silent filters has none). The mean over
    each panel is off the diagonal too.

    Raises:
        ValueError: nothing to draw, more than 4 runs or layers, runs of different layers, a matrix that is not
            square or holds values outside 0 to 1, or a chance level outside them or of another layer.
    """
    filled("maps", maps, "run")
    layers = list(next(iter(maps.values())))
    at_most("maps", maps, MOST_RUNS, "runs")
    at_most("maps", layers, MOST_ROWS, "layers")
    tables: dict[str, dict[str, np.ndarray]] = {}
    for label, per_layer in maps.items():
        filled(f"maps[{label!r}]", per_layer, "layer")
        alike(f"maps[{label!r}]", per_layer, f"maps[{next(iter(maps))!r}]", layers)
        tables[label] = {layer: _square(f"maps[{label!r}][{layer!r}]", per_layer[layer]) for layer in layers}
    names = dict(zip(layers, labels(layers, PANEL)))
    marks = _marks(chance, layers, names)
    off = [_off_diagonal(matrix) for per_layer in tables.values() for matrix in per_layer.values()]
    largest = max([0.0, *(float(values.max()) for values in off if values.size), *(level for level, _ in marks)])
    top = min(1.0, max(0.1, math.ceil(10 * largest - 1e-9) / 10))
    side = min(3.2, 8.0 / len(layers), (WIDTH - (2.4 if len(marks) > 1 else 1.8)) / len(tables) - 0.3)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, len(layers) * (side + 0.5) + 0.9), layout="constrained")
        panels = figure.subplots(len(layers), len(tables), squeeze=False)
        size = 10.0 if side > 1.2 else 8.5
        colours = matplotlib.colormaps["viridis"].with_extremes(bad="#BDBDBD")
        for column, (label, per_layer) in enumerate(tables.items()):
            for row, (layer, matrix) in enumerate(per_layer.items()):
                panel = panels[row, column]
                image = panel.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=0.0, vmax=top)
                rest = _off_diagonal(matrix)
                mean = f"mean {number(float(rest.mean()))}" if rest.size else "no pair of filters"
                head = short(label, int(1080 * side / size / 9)) + "\n" if row == 0 else ""
                panel.set_title(head + mean, fontsize=size)
                for axis in (panel.xaxis, panel.yaxis):
                    axis.set_major_locator(integers(3))
                panel.spines[:].set_visible(False)
                if column == 0:
                    panel.set_ylabel(f"{names[layer]}\nfilter")
                if row == len(layers) - 1:
                    panel.set_xlabel("filter")
        bar = figure.colorbar(image, ax=panels, extend="max" if top < 1.0 else "neither", aspect=25)
        bar.set_label("canonical correlation" if figure.get_figheight() > 2.6 else "canonical\ncorrelation")
        _mark(bar, marks, top, room=0.15 / max(1.0, figure.get_figheight() - 1.2))
        heading(figure, title(name, "correlation of activations (CCA)"))
    return figure


def tiles_figure(weight: Any, dropped: Mapping[int, int] | None, *, name: str = "") -> Figure:
    """First-layer filters as pictures, with a frame around those that were dropped and how many times.

    ``weight`` is [J, c, kh, kw]: with c = 3 in colour, else in grey, the mean over the channels. Every filter has
    its own scale, symmetric around mid-grey = 0. ``dropped`` counts, by filter, how many times it was dropped;
    None: none ever was, or nobody knows, and nothing is said of it.

    Raises:
        ValueError: another shape of ``weight``, no filter, a number that is not finite, or a count that is negative
            or of a filter that does not exist.
    """
    filters = np.asarray(weight, dtype=np.float64)
    if filters.ndim != 4 or filters.size == 0:
        raise ValueError(f"weight: of shape {filters.shape}, but [filters, channels, height, width] is needed")
    if not np.isfinite(filters).all():
        raise ValueError(f"weight: filter {int(np.argwhere(~np.isfinite(filters))[0, 0])} is not finite")
    count, channels, high, wide = filters.shape
    known, dropped = dropped is not None, dropped or {}
    for index, times in dropped.items():
        if not 0 <= index < count or times < 0:
            raise ValueError(f"dropped[{index}]={times}: filters are 0 to {count - 1}, counts from 0 on")
    columns = next((most for most in (8, 16) if count <= most * most // 2), 24)
    columns = min(columns, count)
    rows = -(-count // columns)
    size = min(0.9, 6.2 / columns / 1.2, 1.5 * wide / high)  # inches of a tile's width
    aspect = high / wide
    gap, below = 0.2, max(0.34, 0.13 / size)  # of a tile's width: between tiles; under one, for its mark
    pitch = aspect + below
    scale = max(2, -(-64 // max(high, wide)))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, rows * pitch * size + 1.0), layout="constrained")
        axes = figure.subplots()
        axes.set_xlim(-gap, columns * (1 + gap))
        axes.set_ylim(rows * pitch, -gap)
        for index, picture in enumerate(_pictures(filters)):
            row, column = divmod(index, columns)
            left, top = column * (1 + gap), row * pitch
            axes.imshow(
                picture.repeat(scale, axis=0).repeat(scale, axis=1),
                extent=(left, left + 1, top + aspect, top), interpolation="nearest", aspect="auto", zorder=1,
            )  # fmt: skip
            # A thin edge for all: the page is white, and so are the largest weights.
            gone = bool(dropped.get(index))
            colour, width = (FRAME, 1 + size) if gone else (EDGE, 0.4)
            axes.add_patch(Rectangle((left, top), 1, aspect, fill=False, edgecolor=colour, linewidth=width, zorder=2))
            if gone:
                axes.text(
                    left + 0.5, top + aspect + 0.06, f"×{dropped[index]}",  # noqa: RUF001
                    ha="center", va="top", fontsize=min(8.0, 26 * size),
                )  # fmt: skip
        axes.set_aspect("equal")
        axes.set_yticks([row * pitch + aspect / 2 for row in range(rows)], [str(r * columns) for r in range(rows)])
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=min(8.0, 60 * size * pitch))
        axes.spines[:].set_visible(False)
        axes.set_ylabel("first filter of the row" if rows * pitch * size > 1.6 else "filter")
        grey = "" if channels in (1, 3) else f", mean of {channels} channels"
        heading(figure, title(name, f"filters of the first layer{grey}"))
        number = sum(1 for times in dropped.values() if times)
        text = f"dropped at least once ({number} of {count}); ×n: n times"  # noqa: RUF001
        if known:
            key(figure, [Patch(facecolor="none", edgecolor=FRAME, linewidth=1.5, label=text)])
    return figure


def _table(argument: str, given: Table) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """The numbers of all runs, and the layers, which must be the same in every run."""
    filled(argument, given, "run")
    at_most(argument, given, MOST_RUNS, "runs")
    first = next(iter(given))
    for label, per_layer in given.items():
        filled(f"{argument}[{label!r}]", per_layer, "layer")
        alike(f"{argument}[{label!r}]", per_layer, f"{argument}[{first!r}]", given[first])
    table = {
        label: {layer: numbers(f"{argument}[{label!r}][{layer!r}]", values) for layer, values in per_layer.items()}
        for label, per_layer in given.items()
    }
    return table, list(given[first])


def _rows(layers: Sequence[str], runs: int, *, height: float) -> tuple[Figure, list[tuple[Axes, list[str]]]]:
    """A figure whose panels, one below the other, have room for all layers; and which layers stand in which."""
    most = max(1, int(ROOM / (0.1 * runs + 0.06)))
    parts = [list(part) for part in np.array_split(np.array(layers, dtype=object), -(-len(layers) // most))]
    widest = max(len(part) for part in parts)
    texts = dict(zip(layers, labels(layers, PANEL)))
    upright = 0.072 * max(map(len, texts.values())) > ROOM / widest
    if upright:
        texts = dict(zip(layers, labels(layers, 18)))
    below = 0.06 * max(map(len, texts.values())) if upright else 0.15
    height = height if len(parts) == 1 else 0.65 * height
    figure = Figure(figsize=(WIDTH, len(parts) * (height + below) + 0.7), layout="constrained")
    panels = figure.subplots(len(parts), 1, sharey=True, squeeze=False)[:, 0]
    for panel, part in zip(panels, parts):
        panel.set_xlim(-0.6, widest - 0.4)
        panel.set_xticks(range(len(part)), [texts[layer] for layer in part], rotation=90 if upright else 0)
        panel.tick_params(axis="x", length=0, labelsize=8.0)
    return figure, list(zip(panels, parts))


def _step(rows: Sequence[tuple[Axes, list[str]]], runs: int, *, most: float) -> float:
    """From a run to the next, on an axis where layers are 1 apart; ``most`` inches."""
    slot = ROOM / max(len(layers) for _, layers in rows)
    return min(0.85 / runs, most / slot)


def _violin(axes: Axes, x: float, values: np.ndarray, colour: str, width: float) -> None:
    if np.ptp(values) < 1e-6:  # no density; the median stands for all
        return
    drawn = axes.violinplot([values], [x], widths=width, showextrema=False, points=80)
    for body in drawn["bodies"]:  # type: ignore[attr-defined]
        body.set(facecolor=colour, edgecolor=colour, alpha=0.4, linewidth=0.6)


def _size(rows: Sequence[tuple[Axes, list[str]]], step: float) -> float:
    """Points across a mark that has to fit into one step."""
    return min(4.5, max(3.0, 0.5 * 72 * step * ROOM / max(len(layers) for _, layers in rows)))


def _dot(colour: str, marker: str = "o", size: float = 4.5) -> dict[str, Any]:
    look: dict[str, Any] = {"linestyle": "", "marker": marker, "color": colour, "markersize": size}
    return {**look, "markeredgecolor": "black" if colour == "white" else "white", "markeredgewidth": 0.8}


def _floor(table: Mapping[str, Mapping[str, np.ndarray]], expected: Mapping[str, tuple[float, float]]) -> float:
    """The lower end of a logarithmic axis, where the layers differ enough for one; else 0."""
    means = [float(values.mean()) for per_layer in table.values() for values in per_layer.values()]
    means = [value for value in (*means, *(mean for mean, _ in expected.values())) if value > 0]
    if not means or max(means) < 4 * min(means):
        return 0.0
    every = np.concatenate([values for per_layer in table.values() for values in per_layer.values()])
    return max(float(every[every > 0].min(initial=min(means))), min(means) / 10)


def _square(argument: str, matrix: Any) -> np.ndarray:
    array = within(argument, matrix, 0.0, 1.0)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(f"{argument}: of shape {array.shape}, but a square matrix, filters by filters, is needed")
    return array


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    rest = matrix[~np.eye(len(matrix), dtype=bool)]
    return np.asarray(rest[np.isfinite(rest)])


def _marks(
    chance: float | Mapping[str, float] | None, layers: Sequence[str], names: Mapping[str, str]
) -> list[tuple[float, str]]:
    """Where the scale is marked, and with what; one mark where all layers have the same level, none where it is NaN."""
    if chance is None:
        return []
    if not isinstance(chance, Mapping):
        chance = dict.fromkeys(layers, chance)
    alike("chance", chance, "maps", layers)
    chance = {layer: chance[layer] for layer in layers if not math.isnan(chance[layer])}
    for layer, level in chance.items():
        if not 0.0 <= level <= 1.0:
            raise ValueError(f"chance={level} for {layer!r}: must be from 0 to 1")
    if len(set(chance.values())) == 1:
        return [(float(next(iter(chance.values()))), "chance")]
    return [(float(level), f"chance,\n{names[layer]}") for layer, level in chance.items()]


def _mark(bar: Colorbar, marks: Sequence[tuple[float, str]], top: float, *, room: float) -> None:
    """Lines across the colour bar, named on its left."""
    lines = max((text.count("\n") + 1 for _, text in marks), default=1)
    places = spaced([level / top for level, _ in marks], lines * room, 0.0, 1.0)
    for (level, text), place in zip(marks, places):
        for colour, width in (("black", 2.6), ("white", 1.1)):
            bar.ax.plot([0.0, 1.0], [level] * 2, transform=bar.ax.get_yaxis_transform(), color=colour, linewidth=width)
        bar.ax.add_line(
            Line2D(
                [0.0, -0.5, -0.8], [level / top, place, place],
                transform=bar.ax.transAxes, color="black", linewidth=0.8, clip_on=False,
            )
        )  # fmt: skip
        bar.ax.text(-0.95, place, text, transform=bar.ax.transAxes, ha="right", va="center", fontsize=8.0)


def _pictures(filters: np.ndarray) -> np.ndarray:
    """[J, kh, kw, 3] in 0..1: every filter on its own scale, 0 as mid-grey."""
    seen = filters if filters.shape[1] == 3 else filters.mean(axis=1, keepdims=True).repeat(3, axis=1)
    largest = np.abs(seen).max(axis=(1, 2, 3), keepdims=True)
    scaled = 0.5 + 0.5 * np.divide(seen, largest, out=np.zeros_like(seen), where=largest > 0)
    return np.asarray(np.moveaxis(scaled, 1, 3))
