"""Comparisons of real, tiny trainings."""

import json

import pytest

from torchreaper.lab.compare import compare
from torchreaper.lab.comparison import Failure
from torchreaper.lab.errors import UserError
from torchreaper.lab.execution import jobs
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


_SHORT = {"name": "repr", "full": 1, "sub": 1, "cycles": 1}
SHARES = {"scheme": {**_SHORT, "fraction": 0.002}, "schemes": {"one": {**_SHORT, "fraction": 0.001}}}


def tiny(**changes):
    return Recipe.model_validate({**TINY, **changes})


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
    real = jobs.train

    def train(recipe, *, scheme, seed, **options):
        if (scheme, seed) == ("repr", 0):
            raise RunFailed("epoch 2, step 1: the training loss is nan")
        return real(recipe, scheme=scheme, seed=seed, **options)

    monkeypatch.setattr(jobs, "train", train)
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
        # An error of one scheme of several says whose it is.
        (SHARES, ["standard", "one"], 1, r"^schemes\.one: fraction=0.001: of 4 ranked filters that is none"),
        (SHARES, ["standard", "repr"], 1, r"^scheme: fraction=0.002: of 4 ranked filters that is none"),
        (SHARES, ["standard", "ema+one"], 1, r"^scheme='ema\+one': fraction=0.001: of 4 ranked filters that is none"),
        (SHARES, ["standard", "one+shorter"], 1, r"^scheme='one\+shorter': full=1, sub=1, cycles=1 need 2 epochs"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_written(tmp_path, changes, schemes, seeds, message):
    with pytest.raises(UserError, match=message):
        compare(tiny(**changes), schemes, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_written_has_the_curves_the_published_numbers_and_the_difference_asked_for(tmp_path):
    paper = {"unit": "accuracy %", "source": "a table", "values": {"standard": 72.1}}
    comparison = compare(tiny(published=paper), ["standard", "repr"], 2, tmp_path, detect=0.5)
    found = json.loads((tmp_path / "tiny" / "comparison.json").read_text())
    assert (found["detect"], found["published"]["values"]) == (0.5, {"standard": 72.1})
    first, second = found["schemes"]
    # The baseline gets at the latest in the last epoch where it is reported to be.
    assert first["epochs_to_baseline"]["reached"] == 2
    assert 1 <= first["epochs_to_baseline"]["median"] <= 3
    assert (first["published"], second["published"]) == (72.1, None)
    assert [note for note in found["notes"] if note.startswith("Paper:")]
    lines = (tmp_path / "tiny" / "comparison-summary.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["scheme", "standard", "repr"]
    assert comparison.contrasts[0].verdict == found["contrasts"][0]["verdict"]
