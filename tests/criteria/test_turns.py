"""Filters in turn: none returns twice while another has not returned once, in a resumed training too."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchreaper as tr
from tests.nets import build, inputs


def scheme_for(seed: int = 0, **settings) -> tr.RePr:
    model, optimizer = build("residual")
    chosen = {"full": 1, "sub": 1, "cycles": 30, "skip": None, "criterion": "in-turn", "seed": seed, **settings}
    return tr.RePr(model, optimizer, inputs()[0], **chosen)


def drops(scheme: tr.RePr, count: int) -> list[set[tuple[str, int]]]:
    """What the next of its drops take, with the phases between them."""
    found = []
    while len(found) < count:
        if (moved := scheme.step()) and moved.scores:
            found.append({(name, one) for name, some in moved.filters.items() for one in some})
    return found


@pytest.mark.filterwarnings("ignore::torchreaper.OneLayerWarning")
@settings(max_examples=25)  # a scheme and up to nine drops each
@given(fraction=st.floats(0.1, 0.6), count=st.integers(1, 9), seed=st.integers(0, 99), sub=st.integers(0, 1))
def test_none_goes_while_another_that_could_has_gone_less_often(fraction, count, seed, sub):
    scheme = scheme_for(seed, fraction=fraction, sub=sub)
    times = {layer.name: [0] * layer.filters for layer in scheme.bank.ranked}
    for gone in drops(scheme, count):
        most = max(times[name][one] for name, one in gone)
        for name, often in times.items():
            stay = [one for one in range(len(often)) if (name, one) not in gone]
            # A layer keeps one filter at least, which may be due.
            assert len(stay) == 1 or min(often[one] for one in stay) >= most
        for name, one in gone:
            times[name][one] += 1


@pytest.mark.filterwarnings("ignore::torchreaper.OneLayerWarning")
def test_chance_says_which_of_those_that_are_due():
    first, again, other = (drops(scheme_for(seed), 1) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.filterwarnings("ignore::torchreaper.OneLayerWarning")
@settings(max_examples=15)
@given(before=st.integers(0, 5), after=st.integers(1, 5))
def test_whose_turn_it_is_is_known_to_a_training_that_goes_on(before, after):
    scheme = scheme_for()
    drops(scheme, before)
    kept = io.BytesIO()
    torch.save([scheme.model.state_dict(), scheme.state_dict()], kept)
    expected = drops(scheme, after)
    kept.seek(0)
    weights, state = torch.load(kept, weights_only=True)
    resumed = scheme_for()
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert drops(resumed, after) == expected


def test_a_bank_without_a_scheme_has_no_one_due():
    bank = tr.find_filters(build("residual")[0], inputs()[0])
    scores = tr.criteria.InTurn().scores(bank)
    assert all(0 <= score < 1 for some in scores.values() for score in some.tolist())
    assert sum(map(len, bank.preview(0.3, "in-turn").filters.values())) > 0
