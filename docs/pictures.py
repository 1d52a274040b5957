"""Draw the pictures of how.md into docs/images: python docs/pictures.py. The same bytes each time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

import torchreaper as tr

BLUE, ORANGE, GREEN, GREY, PALE, INK = "#0072B2", "#D55E00", "#009E73", "#8A8A8A", "#DCE9F2", "#222222"
STYLE = {"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "torchreaper", "text.color": INK}


def cycle() -> Figure:
    """The defaults over 100 epochs: how many of the ranked filters are in the network."""
    figure, ax = _figure(8.4, 2.7)
    edges = [0, 20, 30, 50, 60, 80, 90, 100]
    for k, (start, end) in enumerate(pairwise(edges)):
        sub = k % 2 == 1
        ax.add_patch(Rectangle((start, 0), end - start, 70, facecolor=ORANGE if sub else BLUE, alpha=0.85, lw=0))
        if not sub:
            ax.add_patch(Rectangle((start, 70), end - start, 30, facecolor=BLUE, alpha=0.5, lw=0))
        text = f"{'without' if sub else 'whole'}\n{end - start} epochs"
        ax.text((start + end) / 2, 35, text, color="white", ha="center", va="center", fontsize=9)
    for epoch in (20, 50, 80):
        ax.annotate("drop 30 %", (epoch, 100), (epoch, 122), ha="center", arrowprops=_arrow(ORANGE), color=ORANGE)
    for epoch in (30, 60, 90):
        ax.annotate("return", (epoch, 100), (epoch, 122), ha="center", arrowprops=_arrow(BLUE), color=BLUE)
    ax.set(xlim=(0, 100), ylim=(0, 135), xticks=edges, yticks=[0, 70, 100], xlabel="epoch", ylabel="filters, %")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def overlap() -> Figure:
    """What the criterion measures: two that point the same way, two that are orthogonal, and the score of three."""
    figure = Figure(figsize=(8.4, 2.1), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.35])
    for ax, angle, title in zip(axes, (15, 90, 165), ("nearly the same", "orthogonal", "nearly opposite")):
        _plane(ax)
        for degrees, colour, name in ((20, BLUE, "a"), (20 + angle, ORANGE, "b")):
            _vector(ax, np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), colour, name)
        ax.set_title(f"{title}\n|cos(a, b)| = {abs(np.cos(np.radians(angle))):.2f}", fontsize=10)
    rows = torch.tensor([[np.cos(np.radians(t)), np.sin(np.radians(t))] for t in (20, 35, 110)])
    cosines, scores = (rows @ rows.T).abs().fill_diagonal_(0), tr.overlap(rows)
    _matrix(axes[3], cosines.numpy(), scores.numpy())
    return figure


def _matrix(ax: Axes, cosines: np.ndarray, scores: np.ndarray) -> None:
    size = len(cosines)
    for i in range(size):
        for j in range(size):
            _cell(ax, j, size - 1 - i, PALE if i != j else "white", "-" if i == j else f"{cosines[i, j]:.2f}")
        worst = scores[i] == scores.max()
        weight = "bold" if worst else "normal"
        _cell(ax, size + 0.4, size - 1 - i, "white", f"{scores[i]:.2f}", ORANGE if worst else INK, weight)
        ax.text(-0.2, size - 0.5 - i, "abc"[i], ha="right", va="center")
        ax.text(i + 0.5, size + 0.15, "abc"[i], ha="center", va="bottom")
    ax.text(size + 0.9, size + 0.15, "score", ha="center", va="bottom")
    ax.set_title("three filters: mean over the layer", fontsize=10)
    ax.set(xlim=(-0.6, size + 1.5), ylim=(-0.2, size + 0.7), aspect="equal")
    ax.axis("off")


def dropping() -> Figure:
    """Which slices of which tensors go with filters 1 and 4: in a full phase, masked, compact."""
    figure, ax = _figure(8.4, 5.6)
    gone = (1, 4)
    heads = (
        "convolution: weight\na row per filter",
        "norm: gamma, beta,\nmean, variance",
        "next convolution: weight\na column per filter it reads",
    )
    for x, head in zip((2, 12, 22.5), heads):
        ax.text(x, 7.2, head, ha="center", va="center")
    for y, way, name in (
        (0, "full", "full phase"),
        (-8, "masked", "masked:\nzeros"),
        (-16, "compact", "compact:\nsmaller"),
    ):
        kept = [f for f in range(6) if way != "compact" or f not in gone]
        ax.text(-8, y + 3, name, va="center", fontweight="bold")
        _grid(ax, (0, y), kept, range(4), lambda f, _: f in gone, way)
        _grid(ax, (10, y), kept, range(4), lambda f, _: f in gone, way)
        _grid(ax, (19.5, y), range(5), kept, lambda _, f: f in gone, way)
        for x, tall, shape in (
            (2, len(kept), f"[{len(kept)}, 4, k, k]"),
            (12, len(kept), f"4 x [{len(kept)}]"),
            (19.5 + len(kept) / 2, 5, f"[5, {len(kept)}, k, k]"),
        ):
            ax.text(x, y + 6 - tall - 0.75, shape, ha="center", va="center", fontsize=9, color="#555555")
    ax.set(xlim=(-8.2, 27.5), ylim=(-15.4, 8.4), aspect="equal")
    ax.axis("off")
    return figure


def _grid(
    ax: Axes,
    at: tuple[float, float],
    rows: Sequence[int],
    columns: Sequence[int],
    gone: Callable[[int, int], bool],
    way: str,
) -> None:
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            out = gone(row, column)
            face = ORANGE if out and way == "full" else "white" if out else PALE
            _cell(ax, at[0] + j, at[1] + 5 - i, face, "0" if out and way == "masked" else "", ORANGE)


def returning() -> Figure:
    """A filter leaves in the plane of the others and returns out of it."""
    figure = Figure(figsize=(8.4, 2.3), layout="constrained")
    titles = ("dropped", "the others train on", "returned")
    for k, (ax, title) in enumerate(zip(figure.subplots(1, 3), titles)):
        ax.add_patch(Polygon([(-1.5, -0.75), (0.95, -0.75), (1.85, 0.7), (-0.6, 0.7)], facecolor=PALE, lw=0))
        ax.text(-1.25, -0.66, "what old and kept filters span", fontsize=8, color="#4A6478")
        moved = 0 if k == 0 else 12
        _lying(ax, -40 + moved, BLUE, "kept", 1.0)
        _lying(ax, 88 - moved, BLUE, "kept", 1.0)
        _lying(ax, 22, GREY if k else ORANGE, "old" if k else "goes", 1.25, dashed=k > 0)
        if k == 2:
            ax.annotate("", (0, 1.35), (0, 0), arrowprops=_arrow(ORANGE, 2.2))
            ax.text(0.08, 1.28, "new: at right angles\nto all of them", color=ORANGE, va="center")
        ax.set_title(title, fontsize=10)
        ax.set(xlim=(-1.6, 1.95), ylim=(-0.85, 1.5), aspect="equal")
        ax.axis("off")
    return figure


PICTURES = {"cycle": cycle, "overlap": overlap, "dropping": dropping, "returning": returning}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _plane(ax: Axes) -> None:
    ax.set(xlim=(-1.25, 1.25), ylim=(-0.35, 1.25), aspect="equal")
    ax.axhline(0, color=GREY, lw=0.6)
    ax.axvline(0, color=GREY, lw=0.6)
    ax.axis("off")


def _lying(ax: Axes, degrees: float, colour: str, name: str, length: float, *, dashed: bool = False) -> None:
    """One that lies in the plane of the slanted parallelogram."""
    x, y = length * np.cos(np.radians(degrees)), length * np.sin(np.radians(degrees))
    _vector(ax, x + 0.35 * y, 0.5 * y, colour, name, dashed)


def _vector(ax: Axes, x: float, y: float, colour: str, name: str, dashed: bool = False) -> None:
    """From the origin, with its name at the end."""
    ax.annotate("", (x, y), (0, 0), arrowprops=_arrow(colour, 1.6 if dashed else 2.2, dashed))
    ax.text(1.05 * x + 0.03, 1.05 * y + 0.02, name, color=colour, ha="left" if x >= 0 else "right", va="center")


def _arrow(colour: str, width: float = 1.5, dashed: bool = False) -> dict[str, object]:
    return {
        "arrowstyle": "-|>",
        "color": colour,
        "lw": width,
        "ls": "--" if dashed else "-",
        "shrinkA": 0,
        "shrinkB": 0,
    }


def _cell(ax: Axes, x: float, y: float, face: str, text: str, colour: str = INK, weight: str = "normal") -> None:
    ax.add_patch(Rectangle((x, y), 0.94, 0.94, facecolor=face, edgecolor=GREY, lw=0.5))
    ax.text(x + 0.47, y + 0.45, text, ha="center", va="center", fontsize=9, color=colour, fontweight=weight)


def main(folder: Path) -> None:
    """Draw them all into a folder."""
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
