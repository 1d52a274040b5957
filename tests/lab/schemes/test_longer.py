"""Longer training: more epochs, and the schedule stretched over them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import hooks_on, network, same, setup, train_epoch, weights_of
from tests.lab.schemes.test_resume import StopAfter, Stopped
from tests.lab.tiny import recipe

from torchreaper.lab.analyze.subjects import find_subjects
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_metrics
from torchreaper.lab.schemes import Attached, parse
from torchreaper.lab.schemes.longer import LongerSpec, ShorterSpec


@given(epochs=st.integers(1, 300), factor=st.floats(1.001, 5))
def test_one_training_longer_by_the_factor(epochs, factor):
    (length,) = LongerSpec(factor=factor).lengths(epochs)
    assert length > epochs
    assert abs(length - factor * epochs) <= max(0.5, epochs + 1 - factor * epochs)


@given(epochs=st.integers(2, 300), factor=st.floats(0.001, 0.999))
def test_one_training_shorter_by_the_factor(epochs, factor):
    (length,) = ShorterSpec(factor=factor).lengths(epochs)
    assert 1 <= length < epochs
    assert abs(length - factor * epochs) <= max(0.5, 1 - factor * epochs, factor * epochs - epochs + 1)


def test_one_epoch_cannot_be_shorter():
    with pytest.raises(UserError, match=r"^epochs=1: leaves nothing to shorten; use at least 2, or leave out shorter$"):
        parse({"name": "sam+shorter"}).check(1)


def test_a_costly_scheme_in_half_the_epochs(tmp_path, one_thread):
    what = recipe(schedule={"name": "step", "milestones": [2, 4]}, epochs=6)
    result = train(what, scheme="sam+shorter", seed=0, out=tmp_path)
    assert result["epochs"] == result["reported_epoch"] == 3
    rates = [line["lr"] for line in read_metrics(folder_of(tmp_path, "tiny", "sam+shorter", 0))]
    assert rates == pytest.approx([0.05, 0.005, 0.0005])


def test_repr_must_fit_into_what_is_left():
    parse({"name": "repr+shorter", "parts": {"repr": {"full": 2, "sub": 1, "cycles": 1}}}).check(8)
    with pytest.raises(UserError, match=r"need 6 epochs, the recipe has 4"):
        parse({"name": "repr+shorter", "parts": {"repr": {"full": 2, "sub": 1, "cycles": 2}}}).check(8)


@pytest.mark.parametrize("factor", [1, 1.5, 0])
def test_shorter_is_shorter(factor):
    with pytest.raises(UserError, match=rf"^scheme\.factor={factor}: must be (less|greater) than [01]"):
        parse({"name": "shorter", "factor": factor})


def test_an_epoch_is_one_of_standard_training():
    found = []
    for make in (lambda on: Attached(), LongerSpec().attach):
        on = setup(network())
        scheme = make(on)
        train_epoch(scheme, on)
        scheme.step()
        found.append(weights_of(on.model))
        assert hooks_on(on.model) == 0
    assert same(*found)


def test_the_schedule_is_stretched_and_the_result_says_how_long(tmp_path, one_thread):
    what = recipe(schedule={"name": "step", "milestones": [2, 4]}, schemes={"longer": {"factor": 2.0}})
    result = train(what, scheme="longer", seed=0, out=tmp_path)
    assert result["epochs"] == result["reported_epoch"] == 10
    rates = [line["lr"] for line in read_metrics(folder_of(tmp_path, "tiny", "longer", 0))]
    assert rates == pytest.approx([0.05] * 4 + [0.005] * 4 + [0.0005] * 2)


@pytest.mark.parametrize("factor", [1, 0.5])
def test_shorter_is_refused(factor):
    with pytest.raises(UserError, match=rf"^scheme\.factor={factor}: must be greater than 1"):
        parse({"name": "longer", "factor": factor})


def test_an_analysis_knows_how_long_the_run_is(tmp_path, one_thread):
    what, notes = recipe(), []
    folder = folder_of(tmp_path, "tiny", "longer", 0)
    with pytest.raises(Stopped):
        train(what, scheme="longer", seed=0, out=tmp_path, progress=StopAfter(6))
    ((source,),) = [subject.sources for subject in find_subjects([folder])]
    source.last(notes.append)
    assert notes == [f"{folder}: the run is not finished, this is epoch 6 of 10"]
    train(what, scheme="longer", seed=0, out=tmp_path)
    assert source.last(notes.append)[0] == 10
    assert len(notes) == 1
