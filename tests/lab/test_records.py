"""What readers of a run's records may count on; what is damaged is told with its place."""

import json

import pytest

from torchreaper.lab.compare import _at_once as at_once
from torchreaper.lab.errors import UserError
from torchreaper.lab.runs import read_events, read_metrics, read_result


def lines(made_up, path, change):
    """The log of a made-up run with its third line changed."""
    rows = made_up.metrics()
    change(rows[2])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: row.pop("seconds"), "seconds: is missing"),
        (lambda row: row.update(test_accuracy="0.5"), "test_accuracy='0.5': must be a number"),
        (lambda row: row.update(test_accuracy=1.5), r"test_accuracy=1\.5: must be at most 1"),
        (lambda row: row.update(phase="both"), "phase='both': must be 'full' or 'sub'"),
        (lambda row: row.update(dropped={"conv2": [-1]}), r"dropped\.conv2\[0\]=-1: must be at least 0"),
        (lambda row: row.update(overlap=[0.1]), r"overlap=\[0\.1\]: must be a mapping"),
        (lambda row: row.update(epoch=2), "epoch 2 stands after epoch 2"),
        (lambda row: row.update(epoch=10**7), "epoch=10000000: must be at most"),
    ],
)
def test_a_wrong_line_of_metrics_is_named(made_up, tmp_path, change, problem):
    folder = lines(made_up, tmp_path / "metrics.jsonl", change)
    with pytest.raises(
        UserError, match=rf"metrics\.jsonl: line 3: is damaged: {problem}.*; delete the folder and run again"
    ):
        read_metrics(folder)


def test_more_keys_and_numbers_that_were_none_are_well(made_up, tmp_path):
    folder = lines(made_up, tmp_path / "metrics.jsonl", lambda row: row.update(train_loss=None, new={"a": [1]}))
    assert read_metrics(folder)[2]["new"] == {"a": [1]}


def test_no_number_of_json_is_no_number(made_up, tmp_path):
    folder = lines(made_up, tmp_path / "metrics.jsonl", lambda row: row.update(train_loss=float("nan")))
    with pytest.raises(UserError, match="line 3 is damaged"):
        read_metrics(folder)


def test_a_wrong_event_is_named(tmp_path):
    event = {"epoch": 3, "kind": "drop", "filters": {"conv1": [1]}}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n" + json.dumps({**event, "kind": "lost"}) + "\n")
    with pytest.raises(UserError, match=r"events\.jsonl: line 2: is damaged: kind='lost': must be 'drop' or 'restore'"):
        read_events(tmp_path)


def test_a_wrong_result_is_named(made_up, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(made_up.result()))
    assert read_result(tmp_path) == made_up.result()
    for change, problem in (
        ({"gap": None}, "gap=None: must be a number"),
        ({"judged": "training"}, "judged='training': must be 'test' or 'validation'"),
        ({"layers": {"conv1": 0}}, r"layers\.conv1=0: must be at least 1"),
        ({"epochs": True}, "epochs=True: must be a whole number"),
    ):
        path.write_text(json.dumps({**made_up.result(), **change}))
        with pytest.raises(UserError, match=rf"result\.json: is damaged: {problem}; delete the folder and run again"):
            read_result(tmp_path)
    path.write_text(json.dumps(made_up.result()).replace('"seed": 0', f'"seed": {"9" * 5000}'))
    with pytest.raises(UserError, match=r"result\.json: is damaged \(a whole number of too many digits\)"):
        read_result(tmp_path)


@pytest.mark.parametrize("begun", [{"jobs": "2"}, {"jobs": 3, "resumed": 4}, {"resumed": [1, None]}, {}], ids=str)
def test_how_many_runs_shared_the_machine_is_asked_of_whatever_stands_there(begun, tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps(begun))
    assert at_once(tmp_path) == (3 if begun.get("jobs") == 3 else 1)
