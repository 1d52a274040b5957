"""The arithmetic of a comparison and what is said about it, on made-up results."""

import csv
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.comparison import (
    RUN_COLUMNS,
    Failure,
    Reach,
    details,
    duration,
    markdown,
    notes,
    parts_table,
    read_curves,
    runs_csv,
    summarise,
    summary_csv,
    table,
    write,
)
from torchreaper.lab.comparison.curves import curve, first_epoch, reach
from torchreaper.lab.published import Published
from torchreaper.lab.statistics import bootstrap_interval, seeds_needed


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
    assert (contrast.accuracy.low, contrast.accuracy.p, contrast.seeds_needed) == (None, None, None)
    assert (contrast.bootstrap, contrast.p_holm, contrast.answer) == (None, None, "open")
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


def test_without_a_finished_run_there_is_no_table():
    failures = [Failure("repr", seed, "epoch 1: the loss is nan") for seed in range(2)]
    comparison = summarise({"standard": {}, "repr": {}}, failures=failures)
    text = markdown(comparison)
    assert "|" not in text
    assert text.startswith(
        f"# {comparison.recipe}: no run is finished\n\n- Failed: repr, seed 0: epoch 1: the loss is nan"
    )


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
    (said,) = notes(summarise(results))
    assert said.startswith("repr is better")


@pytest.fixture
def open_results(results, made_up):
    """As `results`, with a scheme that differs from the baseline by nothing but a spread."""
    accuracies = enumerate([0.702, 0.701, 0.716])
    return {**results, "dsd": {seed: made_up.result("dsd", seed, accuracy) for seed, accuracy in accuracies}}


def test_several_schemes_are_judged_by_the_corrected_p(open_results):
    comparison = summarise(open_results)
    better, unclear = comparison.contrasts
    assert better.accuracy.p == pytest.approx(0.0180, abs=1e-3)
    assert better.p_holm == pytest.approx(2 * better.accuracy.p)
    assert unclear.p_holm == max(better.p_holm, unclear.accuracy.p)
    assert (better.answer, unclear.answer) == ("better", "open")
    assert "p = 0.036 by Holm's correction for 2 schemes" in better.verdict
    heads, rows = table(comparison)
    assert [row[heads.index("p (Holm)")] for row in rows] == ["", "0.036", f"{unclear.p_holm:.3f}"]
    heads, rows = details(comparison)
    assert [row[heads.index("p uncorrected")] for row in rows] == ["", "0.018", f"{unclear.accuracy.p:.3f}"]
    assert "corrected by Holm's method for 2 schemes" in markdown(comparison)


def test_a_third_scheme_can_take_the_evidence_away(results):
    comparison = summarise({**results, "b": results["repr"], "c": results["repr"]})
    assert {contrast.answer for contrast in comparison.contrasts} == {"open"}
    assert all(contrast.accuracy.low > 0 for contrast in comparison.contrasts)
    assert notes(comparison)[0].startswith(
        "No evidence of a difference between repr and standard after Holm's correction for 3 schemes"
    )


def test_seeds_needed_are_told_where_the_answer_is_open_and_only_there(results, open_results):
    one = summarise({key: open_results[key] for key in ("standard", "dsd")}, detect=0.5)
    (contrast,) = one.contrasts
    assert contrast.seeds_needed == seeds_needed(0.5, contrast.accuracy.sd)
    assert (
        f"With this spread it takes about {contrast.seeds_needed} seeds to see a difference of 0.5 points between dsd "
        "and standard 4 times out of 5. This is a guess: the spread comes from 3 seeds."
    ) in notes(one)
    hard = summarise({key: open_results[key] for key in ("standard", "dsd")}, detect=0.01)
    assert any(line.startswith("With this spread it takes more than 1000 seeds to see") for line in notes(hard))
    assert not any("seeds to see" in line for line in notes(summarise(results)))
    several = summarise({**open_results, "ema": open_results["dsd"]}, detect=0.01)
    strict = seeds_needed(0.01, contrast.accuracy.sd, level=1 - 0.05 / 3)
    assert [found.seeds_needed for found in several.contrasts[1:]] == [strict, strict]
    said = [
        line for line in notes(several) if line.startswith("Seeds to see a difference of 0.01 points from standard")
    ]
    assert "more than 1000 for repr, more than 1000 for dsd, more than 1000 for ema" in said[0]


@pytest.mark.parametrize("detect", [0.0, -1.0, float("nan")])
def test_a_difference_to_detect_is_above_nothing(results, detect):
    with pytest.raises(ValueError, match=r"detect=.*: must be above 0, in points"):
        summarise(results, detect=detect)


def test_bootstrap_intervals_are_those_of_the_accuracies_and_their_differences(results):
    comparison = summarise(results)
    first, expected = comparison.schemes[0].bootstrap, bootstrap_interval([70.0, 70.5, 71.4])
    assert (first.low, first.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    found = comparison.contrasts[0].bootstrap
    assert (found.low, found.high) == (pytest.approx(1.0), pytest.approx(1.6))  # of 3 values, the ends
    heads, rows = details(comparison)
    assert rows[1][heads.index("minus standard, bootstrap")] == "[+1.00, +1.60]"


def test_budgets_that_differ_are_shown_and_said(results, made_up):
    longer = {seed: made_up.result("longer", seed, 0.72 + seed / 100, epochs=24, seconds=20.0) for seed in range(3)}
    taught = {seed: {**run, "scheme": "kd", "teacher_seconds": 30.0} for seed, run in results["repr"].items()}
    comparison = summarise({**results, "longer": longer, "kd": taught})
    assert [(one.epochs, one.teacher_seconds) for one in comparison.schemes] == [(12, 0.0)] * 2 + [
        (24, 0.0),
        (12, 30.0),
    ]
    kd = comparison.contrasts[-1]
    assert kd.wall_clock == pytest.approx(39 / 11)
    assert kd.wall_clock_student == pytest.approx(9 / 11)
    heads, rows = table(comparison)
    assert [row[heads.index("epochs")] for row in rows] == ["12", "12", "24", "12"]
    assert rows[3][heads.index("time")] == "x 3.55"
    said = notes(comparison)
    assert "Budgets are not equal. Epochs of the network: 24 for longer; 12 for the others." in said
    assert (
        "Times include training the teachers: kd 30.0 s (without them x 0.82). A teacher that schemes share is "
        "charged to each."
    ) in said
    heads, rows = details(comparison)
    assert [row[heads.index("of its teachers")] for row in rows] == ["", "", "", "30.0 s"]
    assert "epochs" not in table(summarise(results))[0]


def points(*accuracies, sub=()):
    return curve(
        {"epoch": epoch, "test_accuracy": value, "phase": "sub" if epoch in sub else "full"}
        for epoch, value in enumerate(accuracies, 1)
    )


def test_epochs_to_baseline_are_the_median_of_the_seeds_that_came_so_far(results):
    curves = {
        "standard": {seed: points(0.5, results["standard"][seed]["test_accuracy"]) for seed in range(3)},
        "repr": {0: points(0.1, 0.9, 0.1), 1: points(0.9, 0.1, sub=[1]), 2: points(0.1, 0.2, 0.72)},
    }
    comparison = summarise(results, curves=curves)
    assert [one.epochs_to_baseline for one in comparison.schemes] == [Reach(2.0, 3, 3), Reach(3.0, 2, 3)]
    heads, rows = table(comparison)
    assert [row[heads.index("to baseline")] for row in rows] == ["2 (3 of 3)", "3 (2 of 3)"]
    assert any(line.startswith("To baseline: the first epoch") and "not a test" in line for line in notes(comparison))
    lines = list(csv.DictReader(runs_csv(results, baseline="standard", curves=curves).splitlines()))
    assert [line["epochs_to_baseline"] for line in lines] == ["2", "2", "2", "2", "", "3"]
    curves["repr"][2] = points(0.1)
    never = summarise(results, curves=curves)
    assert never.schemes[1].epochs_to_baseline == Reach(None, 1, 3)
    assert table(never)[1][1][heads.index("to baseline")] == "- (1 of 3)"
    assert all(one.epochs_to_baseline is None for one in summarise(results).schemes)


def test_an_epoch_counts_by_its_own_word_and_else_by_its_phase():
    line = {"epoch": 1, "test_accuracy": 0.5, "phase": "sub"}
    assert first_epoch(curve([line]), 0.5) is None
    assert first_epoch(curve([{**line, "counts": True}]), 0.5) == 1
    assert first_epoch(curve([{**line, "phase": "full", "counts": False}]), 0.5) is None
    assert reach({0: (), 1: points(0.5)}, {0: 0.5, 2: 0.5}) is None


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(0, 100))
def test_the_first_epoch_is_the_first(values, target):
    found = first_epoch(points(*values), target)
    assert all(value < target for value in values[: (found or len(values) + 1) - 1])
    assert found is None or values[found - 1] >= target


def test_curves_are_read_from_the_run_folders(made_up, tmp_path):
    made_up.folder(tmp_path, "repr", 0)
    found = read_curves(tmp_path / "made-up", {"repr": {0: {}, 1: {}}})
    lines = made_up.metrics(0)
    assert found["repr"][0] == [(line["epoch"], line["test_accuracy"], line["phase"] == "full") for line in lines]
    assert not found["repr"][1]


PAPER = Published(unit="error %", source="a table", data="CIFAR-10", values={"standard": 27.9, "dsd": 25.0})


def test_published_numbers_stand_beside_what_was_measured(results):
    comparison = summarise(results, published=PAPER)
    heads, rows = table(comparison)
    assert [row[heads.index("paper %")] for row in rows] == ["72.1", ""]
    (said,) = [line for line in notes(comparison) if line.startswith("Paper:")]
    assert "(a table, CIFAR-10); an error is shown as 100 minus it." in said
    assert "with the paper's full settings; a profile or other changes" in said
    assert comparison.as_dict()["published"]["values"] == {"standard": 27.9, "dsd": 25.0}
    assert "100 minus" not in " ".join(
        notes(replace(comparison, published=Published(**{**dict(PAPER), "unit": "accuracy %"})))
    )
    # None of these schemes is in the table: no column, but where the numbers are from is still told.
    assert "paper %" not in table(summarise({"repr": results["repr"]}, published=PAPER))[0]


def test_remarks_stand_before_the_failures(results):
    said = notes(summarise(results, remarks=["Two at once."], failures=[Failure("dsd", 0, "nan")]))
    assert said[-2:] == ["Two at once.", "Failed: dsd, seed 0: nan"]


def test_a_scheme_that_fails_at_times_is_not_flattered_silently(results):
    failures = [Failure("repr", seed, "nan") for seed in (3, 4)]
    assert notes(summarise(results, failures=failures))[-3:-2] == [
        "2 of 5 runs of repr failed: its numbers are of the others, which a scheme that fails at times is flattered by."
    ]


def test_a_run_in_which_training_collapsed_is_named(results, made_up):
    assert not [line for line in notes(summarise(results)) if "ended with" in line]
    results["repr"][3] = made_up.result("repr", 3, 0.1, gap=0.0)
    (said,) = [line for line in notes(summarise(results)) if "ended with" in line]
    assert said == (
        "repr, seed 3 ended with a training accuracy of 10.0 %, another seed with 83.0 %: the mean and its interval "
        "say little like this. Look at its curve; if training collapsed, lower optim.lr or set grad_clip."
    )
    alone = {"repr": {3: results["repr"][3]}}  # nothing to compare it with
    assert not [line for line in notes(summarise(alone)) if "ended with" in line]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99.0, "99.0 s"), (150.0, "2.5 min"), (9000.0, "2.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_files_hold_the_comparison(results, tmp_path):
    comparison = summarise(results, recipe="made-up")
    paths = write(comparison, results, tmp_path / "made-up")
    assert sorted(path.name for path in (tmp_path / "made-up").iterdir()) == [
        "comparison-summary.csv",
        "comparison.csv",
        "comparison.json",
        "comparison.md",
    ]
    found = json.loads(paths[0].read_text())
    assert (found["unit"], found["recipe"], found["baseline"]) == ("percent", "made-up", "standard")
    assert found["schemes"][1]["accuracy"]["mean"] == comparison.schemes[1].accuracy.mean
    assert found["contrasts"][0]["accuracy"]["p"] == comparison.contrasts[0].accuracy.p
    assert found["notes"] == notes(comparison)
    text = paths[1].read_text()
    assert "| repr | 3 | 72.00 [69.52, 74.48] | 10.00 | +1.37 [+0.57, +2.17] | 0.018 | x 0.82 |" in text
    assert comparison.contrasts[0].verdict in text
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert [(row["scheme"], int(row["seed"]), float(row["test_accuracy"])) for row in rows] == [
        (scheme, seed, run["test_accuracy"]) for scheme, runs in results.items() for seed, run in runs.items()
    ]


def test_csv_of_no_runs_is_its_head():
    assert runs_csv({"standard": {}}).splitlines() == [",".join(RUN_COLUMNS)]


def test_the_summary_has_a_line_per_scheme_with_the_numbers_of_the_json(results):
    comparison = summarise(results, published=PAPER)
    first, second = csv.DictReader(summary_csv(comparison).splitlines())
    assert (first["scheme"], float(first["accuracy"]), float(first["published"])) == (
        "standard",
        comparison.schemes[0].accuracy.mean,
        72.1,
    )
    assert (first["difference"], first["p_holm"]) == ("", "")
    (contrast,) = comparison.contrasts
    assert second["answer"] == contrast.answer
    for key, value in {
        "difference": contrast.accuracy.mean,
        "difference_low": contrast.accuracy.low,
        "difference_bootstrap_high": contrast.bootstrap.high,
        "p": contrast.accuracy.p,
        "p_holm": contrast.p_holm,
        "gap_difference": contrast.gap.mean,
        "wall_clock": contrast.wall_clock,
        "seeds_needed": contrast.seeds_needed,
    }.items():
        assert float(second[key]) == value


def with_parts(results, metric="mAP"):
    """The same results, judged by another metric, with two further shares; one of them not in every run."""
    return {
        scheme: {
            seed: {
                **run,
                "metric": metric,
                "parts": {"AP cat": run["test_accuracy"] / 2, **({"odd": 0.1} if seed else {})},
            }
            for seed, run in runs.items()
        }
        for scheme, runs in results.items()
    }


def test_further_shares_have_a_table_of_their_own_with_their_differences(results):
    found = summarise(with_parts(results))
    assert found.metric == "mAP"
    for summary in found.schemes:
        assert list(summary.parts) == ["AP cat"]  # what some runs lack cannot be averaged
        assert summary.parts["AP cat"].mean == pytest.approx(summary.accuracy.mean / 2)
    (contrast,) = found.contrasts
    assert contrast.parts["AP cat"].mean == pytest.approx(contrast.accuracy.mean / 2)
    heads, rows = parts_table(found)
    assert heads == ["of it", "scheme", "%", "minus standard", "p uncorrected"]
    assert [row[:2] for row in rows] == [["AP cat", summary.scheme] for summary in found.schemes]
    assert rows[0][3:] == ["", ""]
    text = markdown(found)
    assert "## In parts" in text
    assert "test mAP %" in text
    assert "accuracy" not in text
    assert parts_table(summarise(results))[1] == []
    assert "## In parts" not in markdown(summarise(results))


def test_what_was_judged_on_validation_images_says_so_and_has_no_published_numbers_beside_it(results):
    paper = Published(unit="accuracy %", source="a paper", values={"standard": 70.0})
    seen = {s: {k: {**run, "judged": "validation"} for k, run in runs.items()} for s, runs in results.items()}
    found = summarise(seen, published=paper, curves={s: {k: [(1, 0.9, True)] for k in range(3)} for s in seen})
    assert (found.judged, found.published) == ("validation", None)
    assert table(found)[0][:3] == ["scheme", "n", "validation accuracy %"]
    text = markdown(found)
    assert "Validation accuracy of the last epoch" in text
    assert "at least the validation accuracy that standard" in text
    assert "test accuracy" not in text.lower()
    assert runs_csv(seen).splitlines()[0] == ",".join(name for name in RUN_COLUMNS if name != "test_accuracy")
    (line, _) = csv.DictReader(summary_csv(found).splitlines())
    assert (line["judged"], line["published"]) == ("validation", "")
    mixed = summarise({"standard": results["standard"], "repr": seen["repr"]}, published=paper)
    assert (mixed.measure, mixed.published) == ("test, validation accuracy", None)
    assert summarise(results, published=paper).measure == "test accuracy"


def test_published_shares_stand_beside_them(results):
    paper = Published(
        unit="error %", source="a paper", values={"standard": 40.0}, parts={"AP cat": {"standard": 30.0, "repr": 20.5}}
    )
    found = summarise(with_parts(results), published=paper)
    assert [one.published_parts for one in found.schemes] == [{"AP cat": 70.0}, {"AP cat": 79.5}]
    assert [row[2] for row in parts_table(found)[1]] == ["70.0", "79.5"]


def test_what_was_trained_before_costs_time_too(results):
    slow = {
        s: {k: {**run, "source_seconds": 9 * run["seconds"]} for k, run in runs.items()} for s, runs in results.items()
    }
    before, after = summarise(results), summarise({"standard": results["standard"], "repr": slow["repr"]})
    assert after.schemes[1].seconds == pytest.approx(10 * before.schemes[1].seconds)
    assert after.contrasts[0].wall_clock == pytest.approx(10 * before.contrasts[0].wall_clock)
