"""What all figures share: palette, sizes, matplotlib settings, the shortening of names, titles and legends."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from torchreaper.lab.foreign import line

Span = tuple[int, int]
Dash = Literal["-", "--", "-.", ":"]

# Okabe and Ito's palette, told apart with every common form of colour blindness; without its pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES: tuple[Dash, ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STEPS = [1, 2, 5, 10]
SHADE = "#E4E4E4"
WIDTH, DPI = 7.0, 150  # inches; pixels per inch of the saved pictures
NAME, PANEL = 36, 24  # characters; longer ones lose their middle
FEW_EPOCHS = 15  # up to here every epoch gets a dot
FEW_LAYERS = 8  # up to here layers are named in a legend, above it shown as a colour scale
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a name may have dollars in it
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#D0D0D0",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
}


def look(number: int) -> tuple[str, Dash]:
    """Colour and dash of the ``number``-th line, counted from 0."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def ink(paper: Any) -> str:
    """Black or white, whichever is read more easily on that colour (relative luminance as WCAG 2 has it)."""
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(paper))
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 else "black"


def layer_colour(number: int, layers: int) -> Any:
    """The colour of the ``number``-th of ``layers`` layers, from dark to light with the depth."""
    return matplotlib.colormaps["cividis"]((0.9 if layers <= FEW_LAYERS else 1.0) * number / max(1, layers - 1))


def layer_bar(figure: Figure | SubFigure, panels: Sequence[Axes], layers: int) -> None:
    """The colour scale that says which colour is which of many layers."""
    scale = ScalarMappable(Normalize(1, layers), cmap="cividis")
    bar = figure.colorbar(
        scale, ax=list(panels), location="right", shrink=0.9, ticks=MaxNLocator(integer=True, nbins=6)
    )
    bar.set_label(f"layer, 1 = first of {layers}")
    bar.ax.grid(False)


def integers(ticks: int) -> MaxNLocator:
    """Round whole numbers, ``ticks`` intervals at most."""
    return MaxNLocator(integer=True, nbins=ticks, min_n_ticks=1, steps=STEPS)


def key(figure: Figure | SubFigure, keys: Sequence[Line2D | Patch]) -> None:
    """The legend below the panels, in as many columns as surely fit."""
    longest = max(len(str(handle.get_label())) for handle in keys)
    columns = int((figure.bbox.width / figure.get_dpi() - 0.2) // (0.075 * longest + 0.6))
    figure.legend(handles=list(keys), loc="outside lower center", ncols=max(1, min(columns, len(keys))))


def short(text: str, most: int) -> str:
    """The text, its middle replaced by an ellipsis if longer than ``most``; the ends tell layers apart."""
    text = line(text)
    return text if len(text) <= most else f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"


def title(name: str, what: str) -> str:
    """``what`` the figure shows, after the ``name`` of what it shows it of."""
    return f"{short(name, NAME)}: {what}" if name else f"{what[0].upper()}{what[1:]}"


def heading(figure: Figure, text: str) -> None:
    """The title of a figure of several panels, at its left edge."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"])


def labels(names: Sequence[str], most: int) -> list[str]:
    """The names in at most ``most`` characters, still different from each other.

    Where one is longer, all lose the leading parts that they have in common; if that is not enough, words are
    cut to three letters (``denseblock1.denselayer12.conv2`` to ``den1.den12.con2``), then the middle is left out.
    """
    names = [line(name) for name in names]
    if all(len(name) <= most for name in names):
        return names
    parts = [name.split(".") for name in names]
    levels = zip(*(each[:-1] for each in parts)) if len(parts) > 1 else ()
    common = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
    cut = [".".join(each[common:]) for each in parts]
    cut = [text if len(text) <= most else re.sub(r"([^\W\d_]{3})[^\W\d_]+", r"\1", text) for text in cut]
    found = [short(text, most) for text in cut]
    if len(set(found)) < len(set(names)):
        room = most - len(f"{len(names)}: ")
        return [f"{number}: {short(text, room)}" for number, text in enumerate(cut, 1)]
    return found


def number(value: float) -> str:
    """A correlation or the like as text; undefined ones are n/a."""
    return "n/a" if math.isnan(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def spaced(places: Sequence[float], room: float, low: float, high: float) -> list[float]:
    """The places, moved as little as needed to be ``room`` apart and between ``low`` and ``high``."""
    order = np.argsort(places, kind="stable")
    steps = room * np.arange(len(places))
    moved = isotonic_regression(np.asarray(places, float)[order] - steps).x
    result = np.empty(len(places))
    result[order] = np.clip(moved, low, max(low, high - (steps[-1] if len(places) else 0.0))) + steps
    return [float(place) for place in result]


def columns_for(panels: int) -> int:
    """In how many columns that many panels stand."""
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def grid(figure: Figure, count: int) -> list[Axes]:
    """``count`` panels, row by row; the ticks are named on the left and at the foot of each column only."""
    columns = columns_for(count)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).flatten()
    for panel in panels[count:]:
        panel.remove()
    for place, panel in enumerate(panels[:count]):
        panel.tick_params(labelbottom=place + columns >= count, labelleft=place % columns == 0)
    return list(panels[:count])
