"""What the figures show, read back from matplotlib's objects; and that they are drawn without overlaps."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.image import imread
from tests.lab.pictures import assert_readable

from torchreaper.lab import report
from torchreaper.lab.report.figures import (
    OFF,
    ON,
    accuracy_figure,
    filter_map_figure,
    overlap_figure,
    sub_spans,
)
from torchreaper.lab.report.style import COLOURS, SHADE


@pytest.fixture
def runs(made_up):
    return {
        "standard": {seed: made_up.metrics(seed, cycles=0) for seed in range(3)},
        "repr": {seed: made_up.metrics(seed) for seed in range(3)},
    }


def shades(axes):
    """The intervals of the epoch axis that are shaded."""
    found = []
    for patch in axes.patches:
        if to_hex(patch.get_facecolor()).upper() == SHADE:
            found.append((patch.get_x(), patch.get_x() + patch.get_width()))
    return found


def test_phases_are_read_from_the_metrics(made_up):
    assert sub_spans(made_up.metrics(full=3, sub=2, cycles=2)) == ((3, 5), (8, 10))
    assert sub_spans(made_up.metrics(full=1, sub=1, cycles=3, epochs=8)) == ((1, 2), (3, 4), (5, 6))
    assert sub_spans(made_up.metrics(cycles=0)) == ()


def test_lines_are_drawn_through_the_epochs_that_were_judged(runs):
    whole = accuracy_figure(runs)
    for rows in (rows for seeds in runs.values() for rows in seeds.values()):
        for row in rows:
            if row["epoch"] % 5 and row["epoch"] < 12:
                row |= {"test_accuracy": None, "test_loss": None}
    for panel, same in zip(accuracy_figure(runs).axes, whole.axes):
        assert panel.get_ylabel() == same.get_ylabel()
        for line, every in zip(panel.lines[:2], same.lines[:2]):
            np.testing.assert_array_equal(line.get_xdata(), [5, 10, 12])
            np.testing.assert_array_equal(line.get_ydata(), every.get_ydata()[[4, 9, 11]])


def test_accuracy_shows_mean_range_gap_and_phases(runs):
    figure = accuracy_figure(runs)
    upper, lower = figure.axes
    for scheme, line in zip(runs, upper.lines):
        every = np.array([[100 * row["test_accuracy"] for row in rows] for rows in runs[scheme].values()])
        np.testing.assert_allclose(line.get_xdata(), np.arange(1, 13))
        np.testing.assert_allclose(line.get_ydata(), every.mean(axis=0))
    gaps = np.array(
        [[100 * (r["train_accuracy"] - r["test_accuracy"]) for r in rows] for rows in runs["repr"].values()]
    )
    np.testing.assert_allclose(lower.lines[1].get_ydata(), gaps.mean(axis=0))
    band = upper.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (
        pytest.approx(min(100 * r["test_accuracy"] for rows in runs["repr"].values() for r in rows)),
        pytest.approx(max(100 * r["test_accuracy"] for rows in runs["repr"].values() for r in rows)),
    )
    assert shades(upper) == shades(lower) == [(3, 5), (8, 10)]
    assert [to_hex(line.get_color()).upper() for line in upper.lines] == list(COLOURS[:2])
    assert_readable(figure)


def test_accuracy_of_validation_images_is_called_so(runs):
    for seeds in runs.values():
        for line in (line for lines in seeds.values() for line in lines):
            line["judged"] = "validation"
    figure = accuracy_figure(runs)
    upper, lower = figure.axes
    assert upper.get_ylabel() == "validation accuracy (%)"
    assert "validation accuracy" in lower.get_ylabel()
    assert upper.get_title(loc="left").startswith("Validation accuracy and ")
    assert_readable(figure)


def test_overlap_shows_the_total_and_every_layer(runs, made_up):
    figure = overlap_figure(runs)
    total, standard, repr_ = figure.findobj(matplotlib.axes.Axes)
    rows = list(runs["repr"].values())
    mean = np.mean([[row["overlap_total"] for row in lines] for lines in rows], axis=0)
    np.testing.assert_allclose(total.lines[1].get_ydata(), mean)
    assert len(standard.lines) == len(repr_.lines) == len(made_up.layers)
    first = np.mean([[row["overlap"]["conv1"] for row in lines] for lines in rows], axis=0)
    np.testing.assert_allclose(repr_.lines[0].get_ydata(), first)
    assert shades(total) == shades(repr_) == [(3, 5), (8, 10)]
    assert shades(standard) == []
    assert_readable(figure)


def test_the_map_is_dark_exactly_where_filters_are_off(made_up):
    lines = made_up.metrics()
    figure = filter_map_figure(lines, made_up.layers)
    (axes,) = figure.axes
    for (name, count), image in zip(made_up.layers.items(), axes.images):
        off = np.array([[index in line["dropped"].get(name, ()) for line in lines] for index in range(count)])
        np.testing.assert_array_equal(np.asarray(image.get_array()), off)
        assert [to_hex(image.cmap(value)).upper() for value in (0.0, 1.0)] == [ON, OFF]
        left, right, bottom, top = image.get_extent()
        assert (left, right) == (0, 12)
        assert bottom > top  # first filter on top
    assert sum(np.asarray(image.get_array()).sum() for image in axes.images) > 0
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == list(made_up.layers)
    assert_readable(figure)


def test_filters_that_share_a_pixel_are_averaged_not_skipped(made_up):
    layers = {f"conv{i}": 512 for i in range(40)}
    lines = made_up.metrics(layers=layers)
    (axes,) = filter_map_figure(lines, layers).axes
    drawn = np.asarray(axes.images[1].get_array())
    assert len(drawn) < 512
    # groups differ in size by one filter, so the share is kept up to that
    assert drawn[:, 3].mean() == pytest.approx(len(lines[3]["dropped"]["conv1"]) / 512, rel=0.05)


RESNET = {f"stage{s}.block{b}.conv{c}": 16 * 2 ** (s - 1) for s in (1, 2, 3) for b in range(1, 10) for c in (1, 2)}
LONG = {f"backbone.stages.{i}.residual_branch.depthwise.convolution": 8 for i in range(6)}


@pytest.mark.parametrize(
    ("layers", "epochs", "seeds", "schemes"),
    [
        ({"conv1": 4}, 1, 1, 1),
        ({"0": 16, "3": 16, "6": 16}, 3, 1, 2),
        (LONG, 40, 2, 3),
        ({f"features.{i}": 64 for i in range(13)}, 200, 5, 2),
        ({"stem": 16, **RESNET}, 200, 1, 2),
        ({f"conv{i}": 64 for i in range(160)}, 20, 1, 1),
        ({"a": 8, "b": 8}, 30, 2, 9),
    ],
    ids=["least", "three-epochs", "long-names", "vgg", "resnet-56", "160-layers", "nine-schemes"],
)
def test_every_size_is_readable(made_up, layers, epochs, seeds, schemes):
    names = ["standard", "repr", "repr-random-with-a-long-name-of-its-own", *(f"other{i}" for i in range(9))]
    full, sub = max(1, epochs // 5), max(1, epochs // 10)
    runs = {
        name: {
            seed: made_up.metrics(
                seed, layers=layers, epochs=epochs, full=full, sub=sub, cycles=0 if number == 0 else 2
            )
            for seed in range(seeds)
        }
        for number, name in enumerate(names[:schemes])
    }
    assert_readable(accuracy_figure(runs, name="paper-c3-32-cifar10-release"))
    assert_readable(overlap_figure(runs, name="paper-c3-32-cifar10-release"))
    assert_readable(filter_map_figure(next(iter(runs[names[schemes - 1]].values())), layers, name="made-up, repr"))


def test_schemes_with_different_phases_get_strips_of_their_colours(made_up):
    runs = {
        "standard": {0: made_up.metrics(cycles=0)},
        "repr": {0: made_up.metrics(full=3, sub=2)},
        "dsd": {0: made_up.metrics(full=4, sub=2, cycles=1)},
    }
    figure = accuracy_figure(runs)
    strips = [
        (to_hex(patch.get_facecolor()).upper(), patch.get_x(), patch.get_x() + patch.get_width())
        for patch in figure.axes[0].patches
    ]
    assert strips == [(COLOURS[1], 3, 5), (COLOURS[1], 8, 10), (COLOURS[2], 4, 6)]
    assert_readable(figure)


@pytest.mark.parametrize("plunge", [0.0, 0.6])
def test_a_start_far_off_does_not_press_the_rest_flat(made_up, plunge):
    lines = made_up.metrics(epochs=40, full=10, sub=5)
    for line in lines:
        line["test_accuracy"] = 0.9 + 0.001 * line["epoch"] - (0.1 if line["phase"] == "sub" else 0.0)
    lines[0]["test_accuracy"] -= plunge
    low, high = accuracy_figure({"repr": {0: lines}}).axes[0].get_ylim()
    assert 78 < low < 83 and 94 < high < 97  # noqa: PT018  the dip of the sub-network phases stays in view


@pytest.mark.parametrize(("factor", "scale"), [(1.0, "linear"), (10.0, "log")])
def test_layers_of_very_different_overlap_get_a_logarithmic_axis(made_up, factor, scale):
    lines = made_up.metrics()
    for line in lines:
        line["overlap"] = {"conv1": 0.05 * factor, "conv2": 0.05, "conv3": 0.06}
    figure = overlap_figure({"standard": {0: lines}, "repr": {0: lines}})
    total, *panels = figure.findobj(matplotlib.axes.Axes)
    assert [panel.get_yscale() for panel in panels] == [scale, scale]
    assert total.get_yscale() == "linear"
    assert_readable(figure)


def test_seeds_of_different_length_are_compared_where_all_have_epochs(made_up):
    figure = accuracy_figure({"repr": {0: made_up.metrics(), 1: made_up.metrics(1)[:7]}})
    assert list(figure.axes[0].lines[0].get_xdata()) == list(range(1, 8))


def test_a_number_that_json_lacks_leaves_a_hole(made_up):
    lines = made_up.metrics()
    lines[4]["overlap_total"] = None
    drawn = overlap_figure({"repr": {0: lines}}).findobj(matplotlib.axes.Axes)[0].lines[0].get_ydata()
    assert [number for number, value in enumerate(drawn) if np.isnan(value)] == [4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: accuracy_figure({}), "runs: no metrics"),
        (lambda m: overlap_figure({"repr": {0: []}}), "no metrics for repr, seed 0"),
        (lambda m: filter_map_figure([], {"conv1": 8}), "metrics of 0 epochs"),
        (lambda m: filter_map_figure(m.metrics(), {"conv1": 8}), r"the metrics name \['conv2', 'conv3'\] as well"),
        (
            lambda m: filter_map_figure(m.metrics(), {"conv1": 8, "conv2": 2, "conv3": 16}),
            r"layers\['conv2'\]=2: the metrics name its filter",
        ),
    ],
)
def test_bad_input(made_up, call, message):
    with pytest.raises(ValueError, match=message):
        call(made_up)


def test_nothing_global_is_touched(runs):
    before = dict(matplotlib.rcParams)
    accuracy_figure(runs)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_draw_writes_the_three_figures(tmp_path, made_up):
    for seed in range(2):
        made_up.folder(tmp_path, "standard", seed)
        made_up.folder(tmp_path, "repr", seed)
    paths = report.draw(tmp_path, "made-up", {"standard": (0, 1), "repr": (0, 1)})
    folder = tmp_path / "made-up"
    assert paths == [folder / "accuracy.png", folder / "overlap.png", folder / "filters.png"]
    for path in paths:
        assert imread(path).std() > 0.05
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(path.name for path in paths)


def test_without_a_sub_network_phase_there_is_no_map(tmp_path, made_up):
    made_up.folder(tmp_path, "standard", 0)
    paths = report.draw(tmp_path, "made-up", {"standard": (0,), "never-run": (0,)})
    assert [path.name for path in paths] == ["accuracy.png", "overlap.png"]
    assert report.draw(tmp_path, "made-up", {"never-run": (0, 1)}) == []


@pytest.mark.parametrize(("schemes", "bands"), [(4, 4), (5, 0)])
def test_bands_of_many_schemes_would_hide_each_other(schemes, bands):
    line = {
        "epoch": 1,
        "phase": "full",
        "test_accuracy": 0.5,
        "train_accuracy": 0.6,
        "overlap_total": 1.0,
        "overlap": {},
    }
    runs = {f"s{k}": {seed: [line, {**line, "epoch": 2}] for seed in (0, 1)} for k in range(schemes)}
    figure = accuracy_figure(runs)
    assert len(figure.axes[0].collections) == bands
    assert ("band" in figure.axes[0].get_title(loc="left")) == bool(bands)
