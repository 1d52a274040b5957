"""The tables of an analysis: complete, readable by others' programs, with the right intervals."""

import csv
import json
import re
import shutil
from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch
from scipy import stats
from tests.lab.tiny import recipe

from torchreaper.analysis import Agreement, LayerOverlap
from torchreaper.lab.analyze import (
    Analysis,
    Look,
    Settings,
    agreement_table,
    analyze,
    find_subjects,
    layer_table,
    pooled,
    write,
)
from torchreaper.lab.errors import UserError
from torchreaper.lab.runs import read_events
from torchreaper.lab.statistics import correlation_interval

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = Settings(criteria=("magnitude", "random", "apoz"), images=60, split="test")
FILES = ["analysis.md", "analysis.json", "filters.csv", "layers.csv", "agreement.csv", "cca.csv"]


@pytest.fixture(scope="module")
def found(trained):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    analyses = analyze(find_subjects([trained]), SETTINGS)
    torch.set_num_threads(before)
    return analyses


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    there = tmp_path_factory.mktemp("tables") / "new" / "analysis"
    assert [path.name for path in write(found, there, SETTINGS)] == FILES
    assert sorted(path.name for path in there.iterdir()) == sorted(FILES)
    return there


def rows(path):
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in found)
    assert not re.search(r"\b(nan|inf|None)\b", path.read_text())
    return found


def made_up(label="net", seed=0, *, filters=(6, 1), agreements=None, layers=("a", "b|c")):
    """An analysis without a network; the second layer has one filter only."""
    lost = {name: torch.linspace(-0.1, 0.2, count, dtype=torch.float64) for name, count in zip(layers, filters)}
    look = Look(None, 0.75, lost, {"magnitude": lost}, agreements or {"magnitude": Agreement(7, 0.5, 0.4, 0.3)})
    overlaps = tuple(
        LayerOverlap(name, count, 9, 1, True, torch.zeros(count, dtype=torch.float64), 0.1, 0.01)
        for name, count in zip(layers, filters)
    )
    cca = {name: torch.eye(count, dtype=torch.float64) for name, count in zip(layers, filters)}
    return Analysis(label, seed, "here", look, (look,), overlaps, cca, dict.fromkeys(layers, 0.5),
                    (layers[0], torch.zeros(6, 1, 3, 3)), {}, [], 60, "test")  # fmt: skip


# --- files


def test_there_is_a_row_for_every_filter_layer_look_and_pair(found, folder):
    assert len(rows(folder / "filters.csv")) == 4 * 12
    assert len(rows(folder / "layers.csv")) == 4 * 2
    assert len(rows(folder / "agreement.csv")) == 3 * (2 * 5 + 2 * 3)
    assert len(rows(folder / "cca.csv")) == 4 * 2 * 15


def test_a_filters_row_holds_its_numbers(found, folder):
    by_place = {(r["network"], r["seed"], r["layer"], r["filter"]): r for r in rows(folder / "filters.csv")}
    for one in found:
        for number, layer in enumerate(("conv1", "conv2")):
            for index in range(6):
                row = by_place[one.label, str(one.seed), layer, str(index)]
                assert float(row["accuracy_lost_points"]) == pytest.approx(100 * float(one.look.lost[layer][index]))
                assert float(row["overlap"]) == float(one.overlaps[number].overlap[index])
                for name in SETTINGS.criteria:
                    assert float(row[name]) == float(one.look.scores[name][layer][index])


def test_times_dropped_agree_with_the_events(trained, folder):
    for row in rows(folder / "filters.csv"):
        events = read_events(trained / row["network"] / f"seed-{row['seed']}")
        drops = [event["filters"] for event in events if event["kind"] == "drop"]
        expected = sum(int(row["filter"]) in filters.get(row["layer"], ()) for filters in drops)
        assert int(row["times_dropped"]) == expected


def test_the_json_is_strict_and_complete(found, folder):
    def refuse(text):
        raise AssertionError(text)

    values = json.loads((folder / "analysis.json").read_text(), parse_constant=refuse)
    assert values["settings"]["criteria"] == ["magnitude", "random", "apoz"]
    assert {"torch", "torchreaper", "command", "device"} <= values["environment"].keys()
    for one, network in zip(found, values["networks"], strict=True):
        assert (network["network"], network["seed"], network["epoch"]) == (one.label, one.seed, 5)
        assert (network["images"], network["split"], network["path"]) == (60, "test", str(one.path))
        assert network["accuracy_lost"] == {name: values.tolist() for name, values in one.look.lost.items()}
        assert network["cca"]["conv2"] == one.cca["conv2"].tolist()
        assert len(network["agreement"]) == 3 * len(one.earlier)
        assert network["times_dropped"] == {
            layer: {str(index): times for index, times in filters.items()} for layer, filters in one.dropped.items()
        }


def markdown_tables(text):
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def test_markdown_tables_are_well_formed(found, folder):
    text = (folder / "analysis.md").read_text()
    lines = text.splitlines()
    assert lines[:2] == ["# standard, repr", ""]
    assert [re.sub(r"[\d.]+ %", "x", line) for line in lines[2:4]] == [
        f"- {name}: x of 60 test images right (mean of 2 seeds)" for name in ("standard", "repr")
    ]
    agreement, layers = markdown_tables(text)
    assert (len(agreement), len(layers)) == (2 + 3 * 2, 2 + 2 * 2)
    for table in (agreement, layers):
        assert {len(line) for line in table} == {len(table[0])}
        assert set(table[1]) == {"---"}
    assert "Mean over n seeds and its 95 % t-interval." in text
    assert "Means over seeds." in text


def test_figures_of_the_analysis_before_are_deleted_and_nothing_else(tmp_path):
    for name in ("agreement.png", "criteria.png", "my own.png"):
        (tmp_path / name).touch()
    write([made_up()], tmp_path, SETTINGS, figures=[tmp_path / "agreement.png", tmp_path / "criteria.png"])
    write([made_up()], tmp_path, SETTINGS, figures=[tmp_path / "criteria.png"])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["criteria.png", "my own.png"]
    # A damaged or hostile record deletes nothing elsewhere.
    (tmp_path / "outside.png").touch()
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "analysis.json").write_text(json.dumps({"figures": ["../outside.png", 3, "analysis.md"]}))
    write([made_up()], folder, SETTINGS)
    assert (tmp_path / "outside.png").exists()
    (folder / "analysis.json").write_text("{")
    write([made_up()], folder, SETTINGS)


def test_a_layer_of_one_filter_has_no_ratio_to_random_ones():
    assert [row[5] for row in layer_table([made_up()])[1]][1] == "-"


def test_names_with_bars_do_not_break_a_table(tmp_path):
    write([made_up("a|b"), made_up("c")], tmp_path, SETTINGS)
    text = (tmp_path / "analysis.md").read_text()
    assert r"| b\|c | a\|b | 1 |" in text
    assert all(len({len(line) for line in table}) == 1 for table in markdown_tables(text))


def test_a_layer_of_one_filter_has_no_correlations(tmp_path):
    write([made_up()], tmp_path, SETTINGS)
    assert [row["cca_mean"] for row in rows(tmp_path / "layers.csv")] == ["0.0", ""]
    assert [row[-3:-1] for row in layer_table([made_up()])[1]] == [["0.000", "0.500"], ["-", "0.500"]]


def test_layers_that_are_not_ranked_have_no_oracle(trained, tmp_path):
    settings = Settings(criteria=("magnitude",), images=60, split="test", skip="first", layers=("conv2",))
    found = analyze(find_subjects([trained / "repr" / "seed-0"]), settings)
    write(found, tmp_path, settings)
    first = rows(tmp_path / "layers.csv")[0]
    assert (first["ranked"], first["lost_points_mean"], first["harmless"], first["cca_mean"]) == ("False", "", "", "")
    assert {row["accuracy_lost_points"] for row in rows(tmp_path / "filters.csv") if row["layer"] == "conv1"} == {""}
    assert layer_table(found)[1][0][6:] == ["-"] * 7


def test_each_file_is_replaced_as_a_whole(tmp_path):
    write([made_up("first"), made_up("second")], tmp_path, SETTINGS)
    write([made_up("third")], tmp_path, SETTINGS)
    assert {row["network"] for row in rows(tmp_path / "filters.csv")} == {"third"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


# --- intervals


def with_values(values, filters=40):
    return [
        made_up(seed=seed, agreements={"magnitude": Agreement(filters, value, value, value)})
        for seed, value in enumerate(values)
    ]


def cells(low, high, mean):
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def test_several_seeds_have_the_t_interval_in_fishers_z():
    """So that no interval leaves -1 to 1."""
    values = [0.31, 0.22, 0.47]
    heads, (row,) = agreement_table(with_values(values))
    assert heads == ["criterion", "n", "filters", "Pearson, values", "Pearson, ranks", "Spearman"]
    z = np.arctanh(values)
    low, high = np.tanh(stats.t.interval(0.95, 2, loc=z.mean(), scale=stats.sem(z)))
    assert row == ["magnitude", "3", "40", *[cells(low, high, np.tanh(z.mean()))] * 3]
    _, (wild,) = agreement_table(with_values([-0.9, 0.95]))
    assert wild[3] == "+0.18 [-1.00, +1.00]"


def test_correlations_that_are_none_are_told_and_do_not_count():
    _, (row,) = agreement_table(with_values([nan, nan]))
    assert row[3:] == ["n/a"] * 3
    _, (row,) = agreement_table(with_values([nan, 0.6]))
    assert row[3] == cells(*correlation_interval(0.6, 40), 0.6)


def test_silent_filters_are_counted_and_lower_no_mean(tmp_path):
    one = made_up()
    layer = next(iter(one.cca))
    matrix = torch.full((6, 6), 0.4, dtype=torch.float64).fill_diagonal_(1.0)
    matrix[2, :] = matrix[:, 2] = nan
    one = replace(one, cca={layer: matrix})
    row = next(row for row in layer_table([one])[1] if row[0] == layer)
    assert (row[-3], row[-1]) == ("0.400", "1.0")
    write([one], tmp_path, SETTINGS, ["something was left out"])
    assert "nan" not in (tmp_path / "cca.csv").read_text() + (tmp_path / "analysis.md").read_text()
    assert "- something was left out" in (tmp_path / "analysis.md").read_text()
    assert json.loads((tmp_path / "analysis.json").read_text())["notes"] == ["something was left out"]
    assert next(r for r in rows(tmp_path / "layers.csv") if r["layer"] == layer)["silent"] == "1"


def test_one_seed_has_fishers_interval_over_filters_wider_for_ranks():
    _, (row,) = agreement_table(with_values([0.6]))
    assert row[3] == cells(*correlation_interval(0.6, 40), 0.6)
    assert row[4] == row[5] == cells(*correlation_interval(0.6, 40, ranks=True), 0.6)
    assert row[3] != row[4]
    assert agreement_table(with_values([0.6], filters=4))[1][0][3:] == ["+0.60"] * 3


def test_what_an_interval_is_of_is_said(tmp_path):
    texts = {
        "over filters.": [made_up()],
        "Mean over n seeds and its 95 % t-interval.": [made_up(), made_up(seed=1)],
        "t-interval; where n is 1, a 95 % interval over filters.": [made_up(), made_up(seed=1), made_up("other")],
    }
    for text, found in texts.items():
        write(found, tmp_path, SETTINGS)
        assert text in (tmp_path / "analysis.md").read_text()


# --- what is shown


def test_criteria_stand_in_order_of_their_agreement(found):
    _, table = agreement_table(found)
    names = list(dict.fromkeys(row[0] for row in table))
    means = [sum(one.look.agreement[name].spearman for one in found) / 4 for name in names]
    assert means == sorted(means, reverse=True)
    assert [row[1] for row in table] == ["standard", "repr"] * 3


def test_a_criterion_that_one_network_lacks_has_no_row_for_it():
    both = {name: Agreement(7, 0.1, 0.1, 0.1) for name in ("magnitude", "batchnorm-scale")}
    _, table = agreement_table([made_up("a", agreements=both), made_up("b")])
    assert [row[:2] for row in table] == [["magnitude", "a"], ["magnitude", "b"], ["batchnorm-scale", "a"]]


def test_a_layers_row_is_the_mean_over_seeds(found):
    heads, table = layer_table(found)
    assert [row[:2] for row in table] == [
        [layer, label] for layer in ("conv1", "conv2") for label in ("standard", "repr")
    ]
    repr_conv2 = dict(zip(heads, table[3]))
    mine = [one for one in found if one.label == "repr"]
    assert repr_conv2["mean overlap"] == f"{sum(one.overlaps[1].mean for one in mine) / 2:.4f}"
    lost = torch.stack([one.look.lost["conv2"] for one in mine])
    assert repr_conv2["accuracy lost, points: mean"] == f"{100 * float(lost.mean()):.2f}"
    assert repr_conv2["harmless"] == f"{100 * float((lost <= 0).double().mean()):.0f} %"
    off = [(float(one.cca["conv2"].sum()) - 6) / 30 for one in mine]
    assert float(repr_conv2["CCA"]) == pytest.approx(sum(off) / 2, abs=6e-4)


def test_filters_of_all_seeds_are_pooled_in_points(found):
    mine = [one for one in found if one.label == "repr"]
    assert pooled(mine)["conv1"] == [100 * float(value) for one in mine for value in one.look.lost["conv1"]]


def test_nothing_is_written_where_something_fails(trained, tmp_path):
    folder = tmp_path / "repr" / "seed-0"
    shutil.copytree(trained / "repr" / "seed-0", folder)
    with pytest.raises(UserError):
        write(analyze(find_subjects([folder / "recipe.yaml"], recipe()), SETTINGS), tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
