"""benchmarks/readings.py: pairs of readings are told apart, and those that are one reading give the same."""

from __future__ import annotations

import json

import pytest
import torch
from tests.lab.tiny import recipe

from torchreaper.lab.run import train


@pytest.fixture
def readings(load):
    return load("readings")


@pytest.fixture
def net(readings, tmp_path):
    """A small network without norms, behind whose ReLUs all maps are 0 where they are not above it."""
    options = {"depth": 3, "width": 5, "pool": True}
    train(recipe(model__options=options), scheme="standard", seed=0, out=tmp_path)
    (network,) = readings.networks([tmp_path / "tiny" / "standard"])
    return readings.opened(network.sources[0], 20)


def test_program_has_a_row_for_every_reading(readings, trained, tmp_path, capsys):
    folder = str(trained / "standard")
    assert readings.main([folder, "--images", "20", "--out", str(tmp_path)]) == 0, capsys.readouterr()
    assert (tmp_path / "readings-cpu.md").read_text() == capsys.readouterr().out
    kept = json.loads((tmp_path / "readings-cpu.json").read_text())
    rows = {row["question"].split(":")[0]: row for row in kept["tables"]["readings"]}
    assert {"Taylor", "apoz", "oracle", "oracle-loss", "gradient"} <= set(rows)
    assert all(len(row["same"]["samples"]) == 2 for row in rows.values())
    assert all(0 <= share <= 1 for row in rows.values() for share in row["same"]["samples"])
    assert [row["criterion"] for row in kept["tables"]["ranks"]] == ["orthogonality", "taylor"]
    assert kept["failed"] == []


def test_without_norms_weights_at_zero_are_absence(readings, net):
    before = {name: value.clone() for name, value in net.bank.model.state_dict().items()}
    absent, zeroed = readings.zeroed(net)
    for name in absent:
        torch.testing.assert_close(zeroed[name], absent[name].double(), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in net.bank.model.state_dict().items())


def test_behind_a_relu_taylor_is_the_same(readings, net):
    before, behind = readings.behind(net)
    for name in before:
        torch.testing.assert_close(behind[name], before[name].double(), atol=1e-6, rtol=1e-4)


def test_a_reading_agrees_with_itself(readings, net):
    scores = readings.of(net, "orthogonality")
    assert readings.same(scores, scores) == 1
    assert readings.same(scores, {name: -values for name, values in scores.items()}) < 1


def test_what_is_no_run_is_refused(readings, tmp_path, capsys):
    with pytest.raises(SystemExit):
        readings.main([str(tmp_path / "nothing")])
    assert "nothing" in capsys.readouterr().err
