"""Comparisons: the arithmetic on made-up results, and real, tiny trainings."""

import csv
import json

import pytest

from torchreaper.lab import compare as comparing
from torchreaper.lab.compare import Failure, compare, markdown, notes, runs_csv, summarise, table, write
from torchreaper.lab.errors import UserError
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import RunFailed

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "name": "tiny",
    "epochs": 3,
    "batch": 25,
    "data": {"name": "digits", "limit": 50},
    "model": {"name": "cnet", "options": {"depth": 2, "width": 4}},
    "optim": {"name": "sgd", "lr": 0.05},
    "scheme": {"name": "repr", "full": 1, "sub": 1, "cycles": 1},
}


def tiny(**changes):
    return Recipe.model_validate({**TINY, **changes})


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
    assert comparing.duration(seconds) == text


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
    assert runs_csv({"standard": {}}).splitlines() == [",".join(comparing.RUN_COLUMNS)]


def test_equal_schemes_come_out_equal_seed_by_seed(tmp_path):
    # The same training under other names: pairs share weights, images and their order, so nothing may differ.
    # RePr without a cycle is standard training too.
    recipe = tiny(schemes={"again": {"name": "standard"}, "idle": {"name": "repr", "cycles": 0}})
    comparison = compare(recipe, ["standard", "again", "idle"], 2, tmp_path)
    for contrast in comparison.contrasts:
        assert (contrast.accuracy.mean, contrast.accuracy.sd, contrast.gap.mean) == (0.0, 0.0, 0.0)
        assert contrast.verdict.startswith("No evidence of a difference")
    prints = {
        seed: {
            json.loads((tmp_path / "tiny" / scheme / f"seed-{seed}" / "result.json").read_text())["fingerprint"]
            for scheme in ("standard", "again", "idle")
        }
        for seed in range(2)
    }
    assert [len(found) for found in prints.values()] == [1, 1]
    assert prints[0] != prints[1]


class Listener(NullProgress):
    """Notes which runs were trained, which were told to be finished, and notes."""

    def __init__(self):
        self.started, self.ended, self.notes = [], [], []

    def start_run(self, title, epochs, batches, done):
        self.started.append(title)

    def end_run(self, result):
        self.ended.append((result["scheme"], result["seed"]))

    def note(self, text):
        self.notes.append(text)


def test_finished_runs_are_not_repeated(tmp_path):
    first, second = Listener(), Listener()
    before = compare(tiny(), ["standard", "repr"], 1, tmp_path, first)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").rglob("seed-0/*")}
    after = compare(tiny(), ["standard", "repr"], 2, tmp_path, second)
    # schemes take turns, seed by seed
    assert first.ended == [("standard", 0), ("repr", 0)]
    assert second.ended == [("standard", 0), ("repr", 0), ("standard", 1), ("repr", 1)]
    assert [title.split(" / ")[1:] for title in second.started] == [["standard", "seed 1"], ["repr", "seed 1"]]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").rglob("seed-0/*")} == stamps
    assert (before.schemes[1].seeds, after.schemes[1].seeds) == ((0,), (0, 1))


def test_a_run_of_another_recipe_is_met_before_the_first_run(tmp_path):
    compare(tiny(batch=30), ["repr"], 2, tmp_path)
    listener = Listener()
    with pytest.raises(UserError, match="holds a run of another recipe: batch is 30 there, 25 here"):
        compare(tiny(), ["standard", "repr"], 2, tmp_path, listener)
    assert listener.started == []
    assert not (tmp_path / "tiny" / "standard").exists()


def test_a_run_that_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    real = comparing.train

    def train(recipe, *, scheme, seed, **options):
        if (scheme, seed) == ("repr", 0):
            raise RunFailed("epoch 2, step 1: the training loss is nan")
        return real(recipe, scheme=scheme, seed=seed, **options)

    monkeypatch.setattr(comparing, "train", train)
    listener = Listener()
    comparison = compare(tiny(), ["standard", "repr"], 2, tmp_path, listener)
    assert comparison.failures == (Failure("repr", 0, "epoch 2, step 1: the training loss is nan"),)
    assert [summary.seeds for summary in comparison.schemes] == [(0, 1), (1,)]
    assert comparison.contrasts[0].seeds == (1,)
    assert listener.notes == ["failed: repr, seed 0: epoch 2, step 1: the training loss is nan"]
    assert "Failed: repr, seed 0" in (tmp_path / "tiny" / "comparison.md").read_text()


def test_when_every_run_fails_the_comparison_says_so(tmp_path):
    comparison = compare(tiny(optim={"name": "sgd", "lr": 1e30}), ["standard", "repr"], 1, tmp_path)
    assert (comparison.schemes, comparison.contrasts) == ((), ())
    assert [(failure.scheme, failure.seed) for failure in comparison.failures] == [("standard", 0), ("repr", 0)]
    assert all("the training loss is" in failure.reason for failure in comparison.failures)


@pytest.mark.parametrize(
    ("changes", "schemes", "seeds", "message"),
    [
        ({}, [], 1, "schemes: none named"),
        ({}, ["repr", "repr"], 1, "schemes=repr,repr: repr is named twice"),
        ({}, ["standard", "rerp"], 1, "'rerp': unknown scheme; did you mean 'repr'"),
        ({}, ["standard", "repr"], 0, "seeds=0: must be 1 or more"),
        (
            {"model": {"name": "cnet", "options": {"depth": 1, "width": 4}}},
            ["standard", "repr"],
            1,
            "no convolution to rank",
        ),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_written(tmp_path, changes, schemes, seeds, message):
    with pytest.raises(UserError, match=message):
        compare(tiny(**changes), schemes, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()
