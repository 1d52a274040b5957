"""The arithmetic of a comparison and what is said about it, on made-up results."""

import csv
import json

import pytest

from torchreaper.lab.comparison import (
    RUN_COLUMNS,
    Failure,
    duration,
    markdown,
    notes,
    runs_csv,
    summarise,
    table,
    write,
)


@pytest.fixture
def results(made_up):
    return {
        "standard": {
            seed: made_up.result("standard", seed, accuracy, gap=0.2, seconds=10.0 + seed)
            for seed, accuracy in enumerate([0.700, 0.705, 0.714])
        },
        "repr": {
            seed: made_up.result("repr", seed, accuracy, gap=0.1, seconds=8.0 + seed)
            for seed, accuracy in enumerate([0.710, 0.720, 0.730])
        },
    }


def test_summary_and_contrast(results):
    comparison = summarise(results, recipe="made-up")
    standard, repr_ = comparison.schemes
    assert (standard.scheme, standard.accuracy.n, standard.seeds) == ("standard", 3, (0, 1, 2))
    assert standard.accuracy.mean == pytest.approx(100 * (0.700 + 0.705 + 0.714) / 3)
    assert (standard.gap.mean, repr_.gap.mean) == (pytest.approx(20.0), pytest.approx(10.0))
    assert repr_.train_accuracy.mean == pytest.approx(82.0)
    assert (standard.seconds, repr_.seconds) == (11.0, 9.0)
    (contrast,) = comparison.contrasts
    assert (contrast.scheme, contrast.baseline, contrast.seeds) == ("repr", "standard", (0, 1, 2))
    # by hand: differences 1.0, 1.5, 1.6; mean 1.3667, sd 0.3215; t(2) = 4.3027
    assert contrast.accuracy.mean == pytest.approx(1.36667, abs=1e-4)
    assert contrast.accuracy.low == pytest.approx(0.5681, abs=1e-3)
    assert contrast.accuracy.high == pytest.approx(2.1652, abs=1e-3)
    assert contrast.accuracy.p == pytest.approx(0.0180, abs=1e-3)
    assert contrast.gap.mean == pytest.approx(-10.0)
    assert contrast.wall_clock == pytest.approx(9 / 11)  # of 8/10, 9/11, 10/12
    assert contrast.verdict.startswith("repr is better than standard by 1.37 points")


def test_the_first_scheme_is_the_baseline(results):
    turned = summarise({"repr": results["repr"], "standard": results["standard"]})
    assert turned.baseline == "repr"
    assert turned.contrasts[0].verdict.startswith("standard is worse than repr by 1.37 points")


def test_only_common_seeds_are_paired(results):
    del results["standard"][1]
    contrast = summarise(results).contrasts[0]
    assert contrast.seeds == (0, 2)
    assert contrast.accuracy.mean == pytest.approx((1.0 + 1.6) / 2)
    assert summarise(results).schemes[1].accuracy.n == 3


def test_one_seed_gives_no_interval_and_no_verdict_of_better(results):
    comparison = summarise({scheme: {0: runs[0]} for scheme, runs in results.items()})
    contrast = comparison.contrasts[0]
    assert (contrast.accuracy.low, contrast.accuracy.p, contrast.seeds_for_one_point) == (None, None, None)
    assert "One seed says nothing" in contrast.verdict
    assert "nan" not in markdown(comparison).lower()


def test_a_scheme_without_a_finished_run_stands_in_the_failures_only(results):
    failures = [Failure("dsd", seed, "epoch 1: the loss is nan") for seed in range(3)]
    comparison = summarise({**results, "dsd": {}}, failures=failures)
    assert [summary.scheme for summary in comparison.schemes] == ["standard", "repr"]
    assert "Failed: dsd, seed 1: epoch 1: the loss is nan" in notes(comparison)
    without_baseline = summarise({"standard": {}, "repr": results["repr"]}, failures=failures)
    assert without_baseline.contrasts == ()
    assert [row[0] for row in table(without_baseline)[1]] == ["repr"]


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="results: empty"):
        summarise({})


def test_the_table_has_two_decimals_and_what_the_notes_say(results):
    heads, rows = table(summarise(results))
    assert heads == ["scheme", "n", "test accuracy %", "gap", "minus standard", "p", "time"]
    assert rows == [
        ["standard", "3", "70.63 [68.87, 72.40]", "20.00", "", "", "11.0 s"],
        ["repr", "3", "72.00 [69.52, 74.48]", "10.00", "+1.37 [+0.57, +2.17]", "0.018", "x 0.82"],
    ]
    said = notes(summarise(results))
    assert said[0].startswith("repr is better")
    assert "it takes about 4 seeds to see a difference of 1 point" in said[1]
    assert len(said) == 2


def test_several_comparisons_are_said_to_be_uncorrected(results):
    said = notes(summarise({**results, "again": results["repr"]}))
    assert any("2 schemes are compared with standard; the p-values are not corrected" in line for line in said)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99.0, "99.0 s"), (150.0, "2.5 min"), (9000.0, "2.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_files_hold_the_comparison(results, tmp_path):
    comparison = summarise(results, recipe="made-up")
    paths = write(comparison, results, tmp_path / "made-up")
    assert sorted(path.name for path in (tmp_path / "made-up").iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "comparison.md",
    ]
    found = json.loads(paths[0].read_text())
    assert (found["unit"], found["recipe"], found["baseline"]) == ("percent", "made-up", "standard")
    assert found["schemes"][1]["accuracy"]["mean"] == comparison.schemes[1].accuracy.mean
    assert found["contrasts"][0]["accuracy"]["p"] == comparison.contrasts[0].accuracy.p
    text = paths[1].read_text()
    assert "| repr | 3 | 72.00 [69.52, 74.48] | 10.00 | +1.37 [+0.57, +2.17] | 0.018 | x 0.82 |" in text
    assert comparison.contrasts[0].verdict in text
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert [(row["scheme"], int(row["seed"]), float(row["test_accuracy"])) for row in rows] == [
        (scheme, seed, run["test_accuracy"]) for scheme, runs in results.items() for seed, run in runs.items()
    ]


def test_csv_of_no_runs_is_its_head():
    assert runs_csv({"standard": {}}).splitlines() == [",".join(RUN_COLUMNS)]
