"""What all adapters share, without any stack: when the scheme is built, what it goes on from, how it ends."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

import torchreaper as tr
from tests.nets import build, inputs
from torchreaper.integrations.adapter import Adapter

SETTINGS = {"full": 2, "sub": 1, "cycles": 2, "fraction": 0.35, "skip": None}


def parts(seed: int = 0):
    model, _ = build("plain", seed=seed)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), inputs()[0]


def test_settings_are_checked_before_there_is_a_model():
    with pytest.raises(tr.ReaperError, match=r"^fractoin=0.3: RePr has full, sub, cycles, fraction, "):
        Adapter(fractoin=0.3)
    with pytest.raises(tr.ReaperError, match=r'^unit="?\'?batch\'?"?: must be "epoch" or "step"$'):
        Adapter(unit="batch")


@pytest.mark.parametrize("until", [None, 12])
def test_units_are_counted_from_where_training_stands(until):
    adapter = Adapter(**SETTINGS)
    adapter.start(*parts(), done=5, until=until)
    assert [t.step for done in range(6, 12) for t in adapter.reached(done)] == [2, 3, 5, 6]


@pytest.mark.filterwarnings("ignore::torchreaper.NoEffectWarning")
@pytest.mark.parametrize("until", [2, 4, 5])
def test_nothing_happens_after_the_last_unit(until):
    """A network that has just lost filters, or got new ones back, would be what training ends with."""
    adapter = Adapter(**SETTINGS)
    adapter.start(*parts(), until=until)
    assert [t.step for done in range(1, 20) for t in adapter.reached(done)] == [n for n in (2, 3, 5) if n < until]


@pytest.mark.parametrize("units", range(1, 7))
def test_a_state_goes_on_whether_the_unit_it_was_saved_in_was_ended_or_not(units):
    one = Adapter(**SETTINGS)
    scheme = one.start(*parts())
    for done in range(1, units + 1):
        one.reached(done)
    state = one.state_dict()
    model, optimizer, images = parts()
    if scheme.phase == "sub":
        scheme.bank.restore()
    model.load_state_dict(scheme.model.state_dict())
    for done, already in ((units, 0), (units + 1, 1)):
        other = Adapter(**SETTINGS)
        other.load_state_dict(state)
        model, optimizer, images = parts()
        other.start(model, optimizer, images, done=done)
        assert other.scheme.steps == units
        other.reached(done)
        assert other.scheme.steps == units + already


def test_an_end_in_a_sub_network_phase_is_refused_and_leaves_the_model_alone():
    model, optimizer, images = parts()
    message = r"^full=2, sub=1, cycles=2: training ends after 6 epochs, in a sub-network phase; change one$"
    with pytest.raises(tr.ReaperError, match=message):
        Adapter(**SETTINGS).start(model, optimizer, images, until=6)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(tr.NoEffectWarning):
        Adapter(**SETTINGS).start(model, optimizer, images, until=5)
    assert not any(module._forward_hooks for module in model.modules())
    Adapter(**SETTINGS).start(model, optimizer, images, until=7)  # nothing of the refused one is left on it
    with pytest.warns(tr.NoEffectWarning, match="only 1 cycles fit into 4 epochs"):
        Adapter(**SETTINGS).start(*parts(), until=4)


def test_phases_that_nobody_gave_are_planned_by_what_will_be_trained_and_stay_when_that_is_more():
    adapter = Adapter(skip=None)
    model, optimizer, images = parts()
    scheme = adapter.start(model, optimizer, images, done=20, until=60)
    assert (scheme.full, scheme.sub, scheme.cycles) == (2, 2, 8)
    adapter.reached(23)
    state = adapter.state_dict()
    adapter.finish()
    other = Adapter(skip=None)
    other.load_state_dict(state)
    scheme = other.start(*parts(), done=23, until=200)
    assert (scheme.full, scheme.sub, scheme.cycles, scheme.steps) == (2, 2, 8, 3)
    assert Adapter(skip=None, sub=1).start(*parts(), until=100).cycles == 13  # 13 times 5 + 1 epochs of 80
    assert Adapter(skip=None, full=None).start(*parts(), until=100).full == 5
    text = r"^full=1, sub=1, cycles=1: training ends after 2 epochs, in a sub-network phase; train for more epochs, or"
    with pytest.raises(tr.ReaperError, match=text):
        Adapter(skip=None).start(*parts(), until=2)
    with pytest.raises(tr.ReaperError, match=r"^epochs=40: the trainer knows how long it trains; leave it out$"):
        Adapter(epochs=40)
    with pytest.raises(tr.ReaperError, match=r"^full=0: must be a whole number of at least 1$"):
        Adapter(full=0).start(*parts(), until=40)


@pytest.mark.parametrize("until", [None, 95])
@pytest.mark.parametrize("phases", [(20, 10, 3), (5, 5, 8), (4, 0, 8)])
def test_a_training_goes_on_with_the_phases_it_began_with_whether_its_end_is_known_or_not(phases, until):
    """20, 10 and 3 were the defaults once."""
    model, optimizer, images = parts()
    began = Adapter(skip=None, **dict(zip(("full", "sub", "cycles"), phases)))
    began.start(model, optimizer, images)
    began.reached(3)
    other = Adapter(skip=None)
    other.load_state_dict(began.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tr.NoEffectWarning)
        scheme = other.start(*parts(), done=3, until=until)
    assert (scheme.full, scheme.sub, scheme.cycles) == phases
    other.finish()
    assert other.start(*parts(), done=3).full == phases[0]


@pytest.mark.parametrize("config", ["x", None, [1], {"full": "x"}, {"sub": -4}], ids=str)
def test_a_damaged_state_is_told_of_as_one(config):
    adapter = Adapter(skip=None)
    adapter.load_state_dict({"scheme": {"version": 1, "config": config}, "began": 0, "example": None})
    with pytest.raises(tr.ReaperError, match=r"^load_state_dict: "):
        adapter.start(*parts(), until=40)


def test_inputs_go_where_the_parameters_are_and_have_their_precision():
    model, optimizer, images = parts()
    model.double()
    adapter = Adapter(**SETTINGS)
    adapter.start(model, optimizer, {"input": images})
    assert adapter.scheme.bank.ranked


def test_without_sub_network_phases_cycles_that_fit_are_not_warned_of():
    at_once = {**SETTINGS, "sub": 0}
    Adapter(**at_once).start(*parts(), until=5)
    with pytest.warns(tr.NoEffectWarning, match="only 1 cycles fit into 4 epochs"):
        Adapter(**at_once).start(*parts(), until=4)


def test_what_is_dropped_at_the_end_is_back_as_it_was(caplog):
    model, optimizer, images = parts()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = Adapter(**SETTINGS)
    adapter.start(model, optimizer, images)
    adapter.reached(2)
    values = adapter.values()
    assert values["repr/sub"] == 1
    assert values["repr/filters_dropped"] == sum(map(len, adapter.scheme.dropped.values())) > 0
    with caplog.at_level(logging.WARNING, "torchreaper"):
        adapter.finish()
    assert "training ended in a sub-network phase" in caplog.text
    assert adapter.scheme is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_same_trainer_goes_on_and_another_one_begins():
    adapter = Adapter(**SETTINGS)
    model, optimizer, images = parts()
    adapter.start(model, optimizer, images)
    adapter.reached(2)
    adapter.finish()
    assert adapter.start(model, optimizer, images, done=2).steps == 2
    assert adapter.scheme.phase == "sub"
    adapter.finish()
    assert adapter.start(*parts(), done=0).steps == 0


def test_a_first_part_of_one_unit_counts():
    """Nothing is ended when training stops: the unit is as the next part begins."""
    adapter = Adapter(**SETTINGS)
    model, optimizer, images = parts()
    adapter.start(model, optimizer, images)
    adapter.finish()
    adapter.start(model, optimizer, images, done=1)
    assert [t.step for done in (1, 2) for t in adapter.reached(done)] == [2]
