"""What all figures share: palette, sizes, matplotlib settings, the shortening of names, titles and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

Span = tuple[int, int]
Dash = Literal["-", "--", "-.", ":"]

# Okabe and Ito's palette, told apart with every common form of colour blindness; without its pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES: tuple[Dash, ...] = ("-", "--", "-.", ":")
STEPS = [1, 2, 5, 10]
SHADE = "#E4E4E4"
WIDTH, DPI = 7.0, 150  # inches; pixels per inch of the saved pictures
NAME, PANEL = 36, 24  # characters; longer ones lose their middle
FEW_EPOCHS = 15  # up to here every epoch gets a dot
FEW_LAYERS = 8  # up to here layers are named in a legend, above it shown as a colour scale
STYLE: dict[Any, Any] = {
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
    return text if len(text) <= most else f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"


def title(name: str, what: str) -> str:
    """``what`` the figure shows, after the ``name`` of what it shows it of."""
    return f"{short(name, NAME)}: {what}" if name else f"{what[0].upper()}{what[1:]}"
