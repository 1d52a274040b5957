"""Texts of a figure as they come to lie on the page."""

import itertools

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg


def texts(figure):
    """Every text that is seen, with its rectangle on the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    out_of_view = set()  # matplotlib keeps the labels of ticks that lie outside the axes
    for axes in figure.findobj(matplotlib.axes.Axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-6 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - room <= tick.get_loc() <= high + room:
                    out_of_view |= {tick.label1, tick.label2}
    return [
        (text, text.get_window_extent(canvas.get_renderer()))
        for text in figure.findobj(matplotlib.text.Text)
        if text not in out_of_view and text.get_visible() and text.get_text().strip()
    ]


def assert_readable(figure):
    """No text lies over another, none leaves the page."""
    page = figure.bbox
    found = texts(figure)
    assert found
    for text, box in found:
        inside = min(box.x0, box.y0) >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text.get_text()!r} leaves the page"
    for (one, a), (other, b) in itertools.combinations(found, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or high <= 1, f"{one.get_text()!r} lies over {other.get_text()!r}"
