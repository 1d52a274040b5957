"""What the figures of the analyses show, read back from matplotlib's objects; and that nothing overlaps in them."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from scipy.stats import spearmanr
from tests.lab.pictures import assert_readable

from torchreaper.lab.report import style
from torchreaper.lab.report.analysis import agreement_figure, agreement_over_time_figure, scatter_figure
from torchreaper.lab.report.layers import (
    FRAME,
    cca_figure,
    layer_overlap_figure,
    oracle_figure,
    tiles_figure,
)
from torchreaper.lab.report.style import COLOURS, SHADE

CRITERIA = [
    *("orthogonality", "released", "dimension-corrected", "weight-norm", "random", "activation-mean", "apoz"),
    *("gradient", "taylor", "hessian-diagonal", "batchnorm-scale", "geometric-median", "high-rank"),
    "an-oracle-with-a-name-of-unusual-length",
]
C3 = ["conv1", "conv2", "conv3"]
DENSE = [f"features.denseblock{b}.denselayer{i}.conv{c}" for b in (1, 2, 3) for i in range(1, 11) for c in (1, 2)]
RUNS = ["standard", "repr, seed 0", "repr-random", "repr-with-a-long-name-of-its-own"]
NAME = "paper-c3-32-cifar10-release"


def losses(layers=C3, filters=32, seed=0):
    draw = np.random.default_rng(seed)
    return {layer: np.minimum(8.0, draw.exponential(1.3, filters) - 0.3) for layer in layers}


def scores(lost, criteria):
    """Scores that follow the oracle more and more from the first criterion to the last."""
    draw = np.random.default_rng(1)
    return {
        criterion: {layer: -place * v / 5 + draw.normal(size=len(v)) for layer, v in lost.items()}
        for place, criterion in enumerate(criteria)
    }


def scatter(criteria=CRITERIA[:3], layers=C3, filters=32, **how):
    lost = losses(layers, filters)
    return scatter_figure(scores(lost, criteria), lost, correlations=dict.fromkeys(criteria, -0.384), **how)


def panels(figure):
    """The axes that are not a colour bar."""
    return [axes for axes in figure.findobj(Axes) if axes.get_label() != "<colorbar>"]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def shared_texts(figure):
    return [text.get_text() for axes in figure.findobj(Axes) for text in axes.texts]


# criteria against the oracle


def test_a_panel_per_criterion_shows_loss_against_rank():
    lost = losses()
    given = scores(lost, CRITERIA[:3])
    flat = np.concatenate(list(lost.values()))
    figure = scatter_figure(given, lost, correlations={CRITERIA[0]: math.nan, CRITERIA[1]: -0.384, CRITERIA[2]: 0.5})
    for panel, criterion, text in zip(panels(figure), CRITERIA, ("n/a", "−0.38", "0.50")):  # noqa: RUF001
        assert panel.get_title("left") == f"{criterion}\nSpearman {text}"
        drawn = [line for line in panel.lines if line.get_marker() != "None"]
        assert len({line.get_marker() for line in drawn}) == len({to_hex(line.get_color()) for line in drawn}) == 3
        for line, layer in zip(drawn, C3):
            np.testing.assert_allclose(line.get_ydata(), lost[layer])
        ranks = np.concatenate([line.get_xdata() for line in drawn])
        assert sorted(ranks) == list(range(1, 97))
        first = np.concatenate(list(given[criterion].values())).argmax()
        assert ranks[first] == 1
        # higher = dropped earlier: what rises to the right has its scores fall with the loss
        correlation = spearmanr(np.concatenate(list(given[criterion].values())), flat).statistic
        assert spearmanr(ranks, flat).statistic == pytest.approx(-correlation)
    assert legend(figure) == C3
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in panels(figure)}) == 1


def test_equal_scores_share_their_rank():
    lost = losses(filters=4)
    figure = scatter_figure({"flat": {layer: np.zeros(4) for layer in C3}}, lost, correlations={"flat": math.nan})
    drawn = [line.get_xdata() for line in panels(figure)[0].lines if line.get_marker() != "None"]
    assert set(np.concatenate(drawn)) == {6.5}
    assert_readable(figure)


def test_many_layers_are_a_scale_of_colours():
    figure = scatter(layers=DENSE, filters=8)
    assert len(figure.axes) == 3 + 1
    assert figure.axes[-1].get_ylabel() == "layer, 1 = first of 60"
    (dots,) = panels(figure)[0].collections
    assert len(dots.get_offsets()) == 480
    lost = losses(DENSE, 8)
    by_depth = np.asarray(dots.get_array())
    last = np.sort(np.asarray(dots.get_offsets())[by_depth == 1.0, 1])
    np.testing.assert_allclose(last, np.sort(lost[DENSE[-1]]))


@pytest.mark.parametrize("criteria", [1, 2, 5, 14])
@pytest.mark.parametrize("layers", [C3, DENSE[-8:], DENSE], ids=["3-layers", "8-layers", "60-layers"])
def test_scatter_is_readable(criteria, layers):
    figure = scatter(CRITERIA[:criteria], layers, 16, name=NAME)
    assert len(panels(figure)) == criteria
    assert_readable(figure)


# agreement


def test_agreement_writes_every_number():
    table = {"orthogonality": {"Pearson, values": 0.384, "Spearman": -1.0}, "random": dict.fromkeys(("Spearman",), 0.0)}
    table["random"]["Pearson, values"] = math.nan
    figure = agreement_figure(table)
    axes, bar = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0.38", "−1.00", "n/a", "0.00"]  # noqa: RUF001
    assert [label.get_text() for label in axes.get_yticklabels()] == ["orthogonality", "random"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Pearson, values", "Spearman"]
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array(), np.nan), [[0.384, -1.0], [math.nan, 0.0]])
    assert axes.images[0].get_clim() == (-1.0, 1.0)
    assert bar.get_ylim() == (-1.0, 1.0)


def test_the_numbers_are_read_on_any_shade():
    table = {f"c{i}": {"Spearman": value} for i, value in enumerate(np.linspace(-1, 1, 41))}
    axes = agreement_figure(table).axes[0]
    image = axes.images[0]

    def luminance(colour):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    for text, value in zip(axes.texts, np.linspace(-1, 1, 41)):
        low, high = sorted((luminance(text.get_color()), luminance(image.cmap(image.norm(value)))))
        assert (high + 0.05) / (low + 0.05) > 4.5


@pytest.mark.parametrize("criteria", [1, 3, 14])
@pytest.mark.parametrize("measures", [1, 3, 5, 12])
def test_agreement_is_readable(criteria, measures):
    names = ["Pearson, values", "Pearson, ranks", "Spearman", *(f"measure {i}" for i in range(9))][:measures]
    table = {criterion: dict.fromkeys(names, -0.888) for criterion in CRITERIA[:criteria]}
    assert_readable(agreement_figure(table, name=NAME))


def course(criteria, epochs, seed=0):
    draw = np.random.default_rng(seed)
    return {
        criterion: {epoch: float(np.clip(place / 20 + draw.normal(0, 0.05), -1, 1)) for epoch in epochs}
        for place, criterion in enumerate(criteria)
    }


def test_agreement_over_time_shows_lines_and_phases():
    series = course(CRITERIA[:3], range(10, 101, 10))
    series["released"][100] = math.nan
    figure = agreement_over_time_figure(series, measure="Spearman", phases=[(20, 30), (50, 60)])
    (axes,) = figure.axes
    for line, curve in zip(axes.lines, series.values()):
        np.testing.assert_allclose(line.get_xdata(), list(curve))
        np.testing.assert_allclose(line.get_ydata(), list(curve.values()))
    shaded = [
        (p.get_x(), p.get_x() + p.get_width()) for p in axes.patches if to_hex(p.get_facecolor()).upper() == SHADE
    ]
    assert shaded == [(20, 30), (50, 60)]
    assert axes.get_ylabel() == "Spearman with the oracle"
    assert [text.get_text() for text in axes.texts] == CRITERIA[:3]
    assert axes.lines[-2].get_xydata()[0] == pytest.approx((90, series["released"][90]))  # the leader starts at the end
    assert legend(figure) == ["sub-network phase"]


def test_fourteen_lines_are_told_apart():
    (axes,) = agreement_over_time_figure(course(CRITERIA, range(1, 101))).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines[:14]}) == 14
    for line, leader in zip(axes.lines[:14], axes.lines[15:]):
        assert (line.get_color(), line.get_linestyle()) == (leader.get_color(), leader.get_linestyle())


@pytest.mark.parametrize("criteria", [1, 3, 14])
@pytest.mark.parametrize("epochs", [[3], [0], range(1, 6), range(0, 200), range(10, 101, 10)], ids=str)
def test_agreement_over_time_is_readable(criteria, epochs):
    assert_readable(agreement_over_time_figure(course(CRITERIA[:criteria], epochs), name=NAME, phases=[(2, 4)]))


def test_lines_that_all_end_together_are_named_apart():
    assert_readable(agreement_over_time_figure({criterion: {1: 0.2, 9: 0.2} for criterion in CRITERIA}))


# accuracy lost


def test_oracle_shows_a_violin_and_a_median_per_layer_and_run():
    lost = {label: losses(seed=seed) for seed, label in enumerate(RUNS[:2])}
    figure = oracle_figure(lost)
    (axes,) = panels(figure)
    assert len(axes.collections) == 6
    medians = [line for line in axes.lines if line.get_markeredgecolor() == "black"]
    wanted = [np.median(lost[label][layer]) for layer in C3 for label in lost]
    np.testing.assert_allclose([line.get_ydata()[0] for line in medians], wanted)
    for body, (layer, label) in zip(axes.collections, ((layer, label) for layer in C3 for label in lost)):
        heights = body.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((lost[label][layer].min(), lost[label][layer].max()))
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [len(line.get_ydata()) for line in dots] == [32] * 6
    assert legend(figure) == [*RUNS[:2], "median", "a filter"]
    assert [label.get_text() for label in axes.get_xticklabels()] == C3


def test_many_filters_are_not_drawn_singly():
    figure = oracle_figure({"standard": losses(filters=100)})
    assert not [line for line in panels(figure)[0].lines if line.get_marker() == "."]
    assert legend(figure) == ["standard", "median"]


@pytest.mark.parametrize("value", [0.0, -0.25, 1e-12])
def test_layers_of_equal_values_do_not_break_the_oracle(value):
    lost = {**losses(), "conv2": np.full(32, value), "conv3": value + np.array([0.0, 1e-200])}
    axes = panels(oracle_figure({"standard": lost}))[0]
    assert len(axes.collections) == 1
    assert_readable(oracle_figure({"standard": lost, "repr": {layer: [value] for layer in C3}}))


@pytest.mark.parametrize("runs", [1, 2, 4])
@pytest.mark.parametrize(
    ("layers", "filters"),
    [(["conv1"], 1), (C3, 32), (DENSE[:13], 64), (DENSE, 12), ([f"conv{i}" for i in range(60)], 2)],
    ids=["least", "c3", "13", "60", "60-short"],
)
def test_oracle_and_overlap_are_readable(runs, layers, filters):
    table = {label: losses(layers, filters, seed) for seed, label in enumerate(RUNS[:runs])}
    figure = oracle_figure(table, name=NAME)
    ticks = [label.get_text() for axes in panels(figure) for label in axes.get_xticklabels()]
    assert len(set(ticks)) == len(layers)
    assert_readable(figure)
    overlaps = {label: {layer: np.abs(v) for layer, v in per_layer.items()} for label, per_layer in table.items()}
    expected = {layer: (1 / (place + 1), 0.01) for place, layer in enumerate(layers)}
    assert_readable(layer_overlap_figure(overlaps, expected, name=NAME))


# correlation of activations


def correlated(filters, seed=0):
    half = np.random.default_rng(seed).beta(2, 12, (filters, filters))
    both = (half + half.T) / 2
    np.fill_diagonal(both, 1.0)
    return both


def test_cca_has_a_column_per_run_and_a_row_per_layer():
    maps = {label: {layer: correlated(8, seed) for layer in C3} for seed, label in enumerate(RUNS[:2])}
    maps["standard"]["conv2"][3] = maps["standard"]["conv2"][:, 3] = math.nan
    figure = cca_figure(maps, chance=0.12)
    *grid, bar = figure.axes
    assert len(grid) == 6
    shown = [(label, layer) for layer in C3 for label in maps]
    off = ~np.eye(8, dtype=bool)
    for axes, (label, layer) in zip(grid, shown):
        matrix = maps[label][layer]
        np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array(), np.nan), matrix)
        assert axes.get_title("left").splitlines()[-1] == f"mean {np.nanmean(matrix[off]):.2f}"
        assert axes.images[0].get_clim() == grid[0].images[0].get_clim()
    assert [axes.get_title("left").splitlines()[0] for axes in grid[:2]] == RUNS[:2]
    low, high = grid[0].images[0].get_clim()
    largest = max(np.nanmax(matrix[off]) for per_layer in maps.values() for matrix in per_layer.values())
    assert low == 0 and largest <= high < largest + 0.1  # noqa: PT018
    assert [text.get_text() for text in bar.texts] == ["chance"]
    assert {tuple(line.get_ydata()) for line in bar.lines[:2]} == {(0.12, 0.12)}


def test_cca_marks_the_chance_of_every_layer_where_they_differ():
    maps = {"standard": {layer: correlated(8) for layer in C3}}
    names = shared_texts(cca_figure(maps, chance={"conv1": 0.1, "conv2": 0.11, "conv3": 0.2}))
    assert names == ["chance,\nconv1", "chance,\nconv2", "chance,\nconv3"]
    assert shared_texts(cca_figure(maps, chance=dict.fromkeys(C3, 0.1))) == ["chance"]
    assert shared_texts(cca_figure(maps)) == []


@pytest.mark.parametrize("runs", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("layers", "filters", "chance"),
    [
        (["conv1"], 1, 0.9),
        (["conv1"], 32, None),
        (C3, 32, 0.12),
        (DENSE[:4], 64, dict(zip(DENSE, (0.1, 0.1, 0.101, 0.0)))),
        (DENSE[:4], 512, dict(zip(DENSE, (1.0, 1.0, 0.999, 1.0)))),
    ],
    ids=["one-filter", "one-layer", "c3", "four-layers", "512-filters"],
)
def test_cca_is_readable(runs, layers, filters, chance):
    maps = {label: dict.fromkeys(layers, correlated(filters)) for label in RUNS[:runs]}
    assert_readable(cca_figure(maps, chance=chance, name=NAME))


# overlap beside random directions


def test_overlap_shows_means_filters_and_random_directions():
    overlaps = {"standard": {"conv1": [0.1, 0.2], "conv2": [0.1]}, "repr": {"conv1": [0.1, 0.1], "conv2": [0.15]}}
    figure = layer_overlap_figure(overlaps, {"conv1": (0.09, 0.01), "conv2": (0.12, 0.02)})
    (axes,) = panels(figure)
    assert axes.get_yscale() == "linear"
    means = [line.get_ydata()[0] for line in axes.lines if line.get_markeredgecolor() == "white"]
    np.testing.assert_allclose(means, [0.15, 0.1, 0.1, 0.15])
    every = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "."]
    assert every == [[0.1, 0.2], [0.1, 0.1], [0.1], [0.15]]
    bars = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "None"]
    np.testing.assert_allclose(bars, [0.09, 0.12])
    bands = [(band.get_y(), band.get_y() + band.get_height()) for band in axes.patches]
    np.testing.assert_allclose(bands, [(0.07, 0.11), (0.08, 0.16)])
    assert legend(figure)[:2] == ["standard: mean", "repr: mean"]


def test_layers_of_very_different_overlap_get_a_logarithmic_axis_from_which_nothing_falls():
    overlaps = {"standard": {"conv1": [0.0, 0.3], "conv2": [1e-9, 0.04], "conv3": [0.0, 0.0]}}
    figure = layer_overlap_figure(overlaps, {"conv1": (0.1, 0.06), "conv2": (0.02, 0.001), "conv3": (0.02, 0.001)})
    (axes,) = panels(figure)
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "overlap $O_f$ (log scale)"
    lowest = axes.get_ylim()[0]
    assert min(np.min(line.get_ydata()) for line in axes.lines) > lowest > 1e-3
    assert min(band.get_y() for band in axes.patches) > lowest
    assert_readable(figure)


# first filters


def test_tiles_mark_the_dropped_filters_with_a_frame_and_a_text():
    weight = np.random.default_rng(0).normal(size=(20, 3, 5, 5))
    figure = tiles_figure(weight, {0: 2, 17: 1, 3: 0})
    (axes,) = figure.axes
    assert len(axes.images) == 20
    edges = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(edges) == 20  # a white corner of a tile does not run into the page
    frames = [edge for edge in edges if edge.get_linewidth() > 1]
    assert [to_hex(frame.get_edgecolor()).upper() for frame in frames] == [FRAME, FRAME]
    for frame, text, index in zip(frames, axes.texts, (0, 17)):
        left, right, bottom, top = axes.images[index].get_extent()
        assert (frame.get_x(), frame.get_y(), frame.get_height()) == pytest.approx((left, top, bottom - top))
        assert left < text.get_position()[0] < right
        assert text.get_position()[1] > bottom  # the y-axis points down
    assert [text.get_text() for text in axes.texts] == ["×2", "×1"]  # noqa: RUF001
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "8", "16"]
    assert legend(figure) == ["dropped at least once (2 of 20); ×n: n times"]  # noqa: RUF001


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_tile_has_its_own_scale_around_mid_grey(channels):
    weight = np.zeros((3, channels, 2, 2))
    weight[0, :, 0, 0], weight[0, :, 1, 1] = 4.0, -2.0
    weight[1, :, 0, 1] = -0.001
    figure = tiles_figure(weight, {})
    pictures = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    corners = [picture[[0, 0, -1, -1], [0, -1, 0, -1]] for picture in pictures]
    np.testing.assert_allclose(corners[0], np.repeat([[1.0], [0.5], [0.5], [0.25]], 3, axis=1))
    np.testing.assert_allclose(corners[1], np.repeat([[0.5], [0.0], [0.5], [0.5]], 3, axis=1))
    np.testing.assert_allclose(corners[2], 0.5)
    assert ("mean of 4 channels" in figure.get_suptitle()) == (channels == 4)


@pytest.mark.parametrize("filters", [1, 6, 32, 512])
@pytest.mark.parametrize("shape", [(3, 5, 5), (1, 1, 7), (16, 7, 1)], ids=str)
def test_tiles_are_readable(filters, shape):
    weight = np.random.default_rng(0).normal(size=(filters, *shape))
    figure = tiles_figure(weight, dict.fromkeys(range(filters), 120), name=NAME)
    assert len(figure.axes[0].images) == filters
    assert_readable(figure)


# all of them


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scatter_figure({}, losses(), correlations={}), "scores is empty: at least one criterion"),
        (lambda: scatter_figure({"a": {}}, {}, correlations={"a": 0}), "lost is empty: at least one layer"),
        (lambda: scatter_figure({"a": {}}, {"c": [1]}, correlations={}), r"correlations lacks \['a'\] than scores"),
        (
            lambda: scatter_figure({"a": {}}, {"c": [1]}, correlations={"a": 0}),
            r"scores\['a'\] lacks \['c'\] than lost",
        ),
        (
            lambda: scatter_figure({"a": {"c": [1], "d": [1]}}, {"c": [1]}, correlations={"a": 0}),
            r"scores\['a'\] has \['d'\] more than lost",
        ),
        (
            lambda: scatter_figure({"a": {"c": [1]}}, {"c": [1, 2]}, correlations={"a": 0}),
            r"scores\['a'\]\['c'\]: of shape \(1,\), but lost has 2 filters",
        ),
        (
            lambda: scatter_figure({"a": {"c": [1, math.nan]}}, {"c": [1, 2]}, correlations={"a": 0}),
            r"scores\['a'\]\['c'\]: filter 1 is nan, it has no rank",
        ),
        (
            lambda: scatter_figure({"a": {"c": [1, 2]}}, {"c": [math.inf, 2]}, correlations={"a": 0}),
            r"lost\['c'\]: filter 0 is inf, not a finite number",
        ),
        (lambda: scatter_figure({"a": {"c": []}}, {"c": []}, correlations={"a": 0}), r"lost\['c'\]: of shape \(0,\)"),
        (lambda: agreement_figure({}), "values is empty: at least one criterion"),
        (lambda: agreement_figure({"a": {}}), r"values\['a'\] is empty: at least one measure"),
        (lambda: agreement_figure({"a": {"r": 0}, "b": {"s": 0}}), r"values\['b'\] lacks \['r'\] and has \['s'\] more"),
        (lambda: agreement_figure({"a": {"r": 1.5}}), "values: 1.5 is not from -1 to 1"),
        (lambda: agreement_over_time_figure({}), "series is empty: at least one criterion"),
        (lambda: agreement_over_time_figure({"a": {}}), r"series\['a'\]: no number at any epoch"),
        (lambda: agreement_over_time_figure({"a": {1: math.nan}}), r"series\['a'\]: no number at any epoch"),
        (lambda: agreement_over_time_figure({"a": {1: -2.0}}), r"series\['a'\]: -2 is not from -1 to 1"),
        (
            lambda: agreement_over_time_figure({"a": {1: 0.0}}, phases=[(3, 3)]),
            r"\(3, 3\) does not end after it starts",
        ),
        (lambda: oracle_figure({}), "lost is empty: at least one run"),
        (lambda: oracle_figure({"a": {}}), r"lost\['a'\] is empty: at least one layer"),
        (lambda: oracle_figure({"a": {"c": [1]}, "b": {"d": [1]}}), r"lost\['b'\] lacks \['c'\] and has \['d'\] more"),
        (lambda: oracle_figure({"a": {"c": [[1]]}}), r"lost\['a'\]\['c'\]: of shape \(1, 1\)"),
        (lambda: oracle_figure({str(i): losses() for i in range(5)}), "lost: 5 runs, but there is room for 4"),
        (lambda: cca_figure({}), "maps is empty: at least one run"),
        (lambda: cca_figure({"a": {}}), r"maps\['a'\] is empty: at least one layer"),
        (lambda: cca_figure({"a": dict.fromkeys("cdefg", np.eye(2))}), "maps: 5 layers, but there is room for 4"),
        (lambda: cca_figure({"a": {"c": np.ones((2, 3))}}), r"maps\['a'\]\['c'\]: of shape \(2, 3\), but a square"),
        (lambda: cca_figure({"a": {"c": 1.5 * np.eye(2)}}), r"maps\['a'\]\['c'\]: 1.5 is not from 0 to 1"),
        (lambda: cca_figure({"a": {"c": np.eye(2)}}, chance=1.5), "chance=1.5 for 'c': must be from 0 to 1"),
        (lambda: cca_figure({"a": {"c": np.eye(2)}}, chance={"d": 0.5}), r"chance lacks \['c'\] and has \['d'\] more"),
        (lambda: layer_overlap_figure({}, {}), "overlaps is empty: at least one run"),
        (lambda: layer_overlap_figure({"a": {"c": [0.1]}}, {}), r"expected lacks \['c'\] than overlaps"),
        (lambda: layer_overlap_figure({"a": {"c": [-0.1]}}, {"c": (0.1, 0.0)}), "-0.1 is not from 0 to inf"),
        (lambda: layer_overlap_figure({"a": {"c": [0.1]}}, {"c": (0.1, -1.0)}), r"expected\['c'\]=\(0.1, -1.0\)"),
        (lambda: tiles_figure(np.ones((4, 3, 3)), {}), r"weight: of shape \(4, 3, 3\), but \[filters, channels"),
        (lambda: tiles_figure(np.ones((0, 3, 3, 3)), {}), r"weight: of shape \(0, 3, 3, 3\)"),
        (lambda: tiles_figure(np.full((2, 3, 3, 3), math.nan), {}), "weight: filter 0 is not finite"),
        (lambda: tiles_figure(np.ones((4, 3, 3, 3)), {4: 1}), r"dropped\[4\]=1: filters are 0 to 3"),
        (lambda: tiles_figure(np.ones((4, 3, 3, 3)), {0: -1}), r"dropped\[0\]=-1: filters are 0 to 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_global_is_touched_and_the_page_is_white():
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"figure.facecolor": "black"}):
        figures = [
            scatter(),
            agreement_figure({"a": {"r": 0.5}}),
            agreement_over_time_figure(course(["a"], range(3))),
            oracle_figure({"a": losses()}),
            cca_figure({"a": {"c": np.eye(4)}}),
            layer_overlap_figure({"a": {"c": [0.1]}}, {"c": (0.1, 0.01)}),
            tiles_figure(np.ones((4, 3, 3, 3)), {}),
        ]
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
    assert {figure.get_facecolor() for figure in figures} == {(1.0, 1.0, 1.0, 1.0)}
    assert {figure.get_figwidth() for figure in figures} == {style.WIDTH}


# names


@pytest.mark.parametrize(
    ("names", "most", "wanted"),
    [
        (C3, 5, C3),
        (["features.0", "features.13"], 4, ["0", "13"]),
        (["features.denseblock1.denselayer12.conv2", "features.conv0"], 16, ["den1.den12.con2", "conv0"]),
        (["classifier.convolution"], 12, ["cla.con"]),
        (["convolution", "convention"], 7, ["1: con", "2: con"]),
    ],
)
def test_long_names_are_shortened_but_stay_different(names, most, wanted):
    assert style.labels(names, most) == wanted


def test_no_name_is_longer_than_wanted():
    names = [f"{'abc123' * 5}.{i}.{'xyz789' * 5}" for i in range(120)]
    found = style.labels(names, 16)
    assert len(set(found)) == 120
    assert max(map(len, found)) <= 16


def test_places_are_moved_apart_no_more_than_needed():
    assert style.spaced([0.5, 0.9, 0.1], 0.1, 0.0, 1.0) == pytest.approx([0.5, 0.9, 0.1])
    assert style.spaced([0.5, 0.5, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.4, 0.5, 0.6])
    assert style.spaced([1.0, 0.0, 0.99], 0.1, 0.0, 1.0) == pytest.approx([1.0, 0.0, 0.9])
    assert style.spaced([], 0.1, 0.0, 1.0) == []


def test_the_palette_has_no_colour_twice():
    assert len(set(COLOURS)) == len(COLOURS)


@pytest.mark.parametrize("levels", [{"a": np.nan, "b": 0.2}, {"a": np.nan, "b": np.nan}])
def test_a_layer_of_silent_filters_is_grey_and_has_no_chance_level(levels):
    silent, other = np.full((3, 3), np.nan), np.where(np.eye(3) == 1, 1.0, 0.3)
    figure = cca_figure({"run": {"a": silent, "b": other}}, chance=levels)
    marks = [text.get_text() for axes in figure.axes for text in axes.texts if "chance" in text.get_text()]
    assert marks == (["chance"] if levels["b"] == 0.2 else [])
    assert_readable(figure)
