"""Judged after every so-many-th epoch only: the same run, with fewer looks at it."""

from __future__ import annotations

import json

import pytest
import torch
from tests.lab.test_run import stopped
from tests.lab.tiny import recipe
from torch import nn

from torchreaper.lab.comparison.curves import curve, first_epoch
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

LOOKS = ("test_accuracy", "test_loss", "validation_accuracy")


class Called:
    """A criterion that calls the network as it finds it: in training its BatchNorms would move."""

    def scores(self, bank):
        bank.model(torch.ones(2, 1, 8, 8))
        return {layer.name: layer.rows.sum(1) for layer in bank.ranked}


def spectral():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    nn.utils.parametrizations.spectral_norm(model[0])  # its power iteration goes on where the weight is read
    return model


def told(folder):
    """The lines of a run without what is measured by a clock."""
    lines = read_metrics(folder / "tiny" / "repr" / "seed-0")
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def run(out, **changes):
    found = train(recipe(augment="crop-flip", **changes), scheme="repr", seed=0, out=out)
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.mark.parametrize("judge", ["test", "validation"])
def test_nothing_else_changes(tmp_path, judge):
    whole = run(tmp_path / "1", data__judge=judge)
    for every, looks in ((2, [2, 4, 5]), (3, [3, 5]), (5, [5]), (99, [5])):
        assert run(tmp_path / str(every), data__judge=judge, eval_every=every) == whole
        for line, same in zip(told(tmp_path / str(every)), told(tmp_path / "1"), strict=True):
            nothing = {} if line["epoch"] in looks else dict.fromkeys(LOOKS)
            assert line == {**same, **nothing}


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme__criterion": f"{__name__}:Called"},
        {"model": {"name": f"{__name__}:spectral"}, "scheme": {"name": "repr", "full": 1, "sub": 2, "cycles": 1}},
    ],
    ids=["criterion", "network"],
)
def test_what_reads_the_network_between_epochs_finds_it_as_if_it_had_been_judged(tmp_path, changes):
    assert run(tmp_path / "1", **changes) == run(tmp_path / "99", eval_every=99, **changes)


def test_it_is_the_same_run_and_goes_on_with_what_it_is_given(tmp_path):
    whole = run(tmp_path / "whole")
    assert run(tmp_path / "whole", eval_every=2) == whole, "finished: not repeated"
    stopped(tmp_path / "cut", 2, recipe=recipe(augment="crop-flip", eval_every=9), scheme="repr", seed=0)
    assert run(tmp_path / "cut", eval_every=2) == whole
    assert [line["epoch"] for line in told(tmp_path / "cut") if line["test_accuracy"] is not None] == [4, 5]


def test_where_validation_chooses_it_chooses_among_what_was_judged_and_is_another_run(tmp_path):
    changes = {"report": "validation", "epochs": 6, "scheme__sub": 1}
    found = run(tmp_path, eval_every=3, **changes)
    lines = {line["epoch"]: line for line in told(tmp_path)}
    judged = {epoch: line["validation_accuracy"] for epoch, line in lines.items() if epoch in (3, 6)}
    assert found["reported_epoch"] == max(judged, key=lambda epoch: (judged[epoch], -epoch))
    with pytest.raises(
        UserError, match=r"^out=.*: holds a run of another recipe: eval_every is 3 there, 1 here; choose another"
    ):
        run(tmp_path, **changes)


def test_a_teacher_is_the_same_one_and_no_oftener_judged():
    teacher = {"model": {"name": "cnet", "options": {"depth": 2, "width": 8}}}
    one, other = (recipe(eval_every=every).teacher(teacher) for every in (1, 4))
    assert one.name == other.name
    assert (one.eval_every, other.eval_every) == (1, 4)


def test_the_curve_is_of_what_was_judged():
    lines = [{"epoch": e, "phase": "full", "test_accuracy": a} for e, a in enumerate((None, 0.5, None, 0.7), 1)]
    assert curve(json.loads(json.dumps(lines))) == [(2, 0.5, True), (4, 0.7, True)]
    assert first_epoch(curve(lines), 0.6) == 4
