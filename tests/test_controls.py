"""The controls: filters that return as they were, filters that return at once, a ranking turned round."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from tests.nets import build, inputs, train_step


def scheme_for(model, optimizer, **settings) -> tr.RePr:
    return tr.RePr(model, optimizer, inputs()[0], **{"full": 2, "sub": 1, "cycles": 2, "skip": None, **settings})


def snapshot(model, optimizer):
    return {"model": copy.deepcopy(model.state_dict()), "state": copy.deepcopy(optimizer.state_dict()["state"])}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("net", ["plain", "residual"])
@pytest.mark.parametrize("subnetwork", ["compact", "masked"])
def test_kept_filters_return_bit_for_bit_with_their_state(net, subnetwork):
    """After a phase without a step, nothing at all has changed."""
    model, optimizer = build(net)
    scheme = scheme_for(model, optimizer, reinit="keep", subnetwork=subnetwork)
    for epoch in range(2):
        train_step(model, optimizer, epoch)
        before = snapshot(model, optimizer)
        scheme.step()
    assert scheme.phase == "sub"
    restored = scheme.step()
    assert restored.kind == "restore"
    assert all("as they were" in note for note in restored.notes)
    assert same(snapshot(model, optimizer), before)


def test_what_a_kept_weight_is_computed_from_returns_too():
    """Length and direction of weight normalisation; the direction's own length is no part of the weight."""
    model, optimizer = build("plain")
    for name in ("0", "2"):
        nn.utils.parametrizations.weight_norm(model.get_submodule(name))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheme = scheme_for(model, optimizer, full=1, reinit="keep")
    train_step(model, optimizer, 0)
    before = snapshot(model, optimizer)
    assert scheme.step().filters.keys() & {"0", "2"}
    scheme.step()
    assert same(snapshot(model, optimizer), before)


def test_a_phase_moves_the_others_and_not_the_kept():
    model, optimizer = build("plain")
    scheme = scheme_for(model, optimizer, reinit="keep")
    for epoch in range(2):
        train_step(model, optimizer, epoch)
        before = copy.deepcopy(model.state_dict())
        gone = scheme.step()
    train_step(model, optimizer, 2)
    scheme.step()
    for layer in scheme.bank.ranked:
        old, new = before[f"{layer.name}.weight"], layer.module.weight.detach()
        dropped = torch.zeros(layer.filters, dtype=torch.bool)
        dropped[list(gone.filters.get(layer.name, ()))] = True
        assert torch.equal(old[dropped], new[dropped])
        moved = (old != new).flatten(1).any(1)
        assert moved[~dropped].any()


@pytest.mark.parametrize("choice", [{"gain": 1.0}, {"gain": "kept"}])
def test_a_length_has_no_effect_on_kept_filters(choice):
    with pytest.raises(tr.ReaperError, match=r'^reinit.gain=.*: has no effect with method "keep"; leave it out$'):
        tr.Reinit("keep", **choice)


def test_what_else_of_kept_filters_is_fresh_can_be_said():
    assert tr.Reinit("keep").describe() == {
        **{"method": "keep", "gain": None, "bias": "keep", "consumers": "keep"},
        **{"optimizer_state": "keep", "norms": "keep"},
    }
    assert tr.Reinit("keep", norms="reset", optimizer_state="zero").norms == "reset"
    assert tr.Reinit("orthogonal").optimizer_state == "zero"


@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 3), st.integers(0, 3), st.sampled_from(["orthogonal", "random", tr.Reinit("keep", consumers="zero")])
)
def test_at_once_is_a_phase_without_a_step(full, cycles, method):
    """``sub`` 0 does what ``sub`` 1 would do if nothing were trained in its phase, draw for draw."""
    twins = [build("residual") for _ in range(2)]
    at_once, phased = (
        scheme_for(*twin, full=full, sub=sub, cycles=cycles, reinit=method) for twin, sub in zip(twins, (0, 1))
    )
    for epoch in range(full * (cycles + 1)):
        for model, optimizer in twins:
            train_step(model, optimizer, epoch)
        done, due = at_once.step(), phased.step()
        assert (done is None) == (due is None)
        assert at_once.phase == "full"
        if done is not None:
            returned = phased.step()
            assert (done.kind, done.cycle, done.step) == ("restore", due.cycle, epoch + 1)
            assert done.filters == due.filters == returned.filters
            assert same(done.scores, due.scores)
            assert set(returned.notes) <= set(done.notes)
        assert same(snapshot(*twins[0]), snapshot(*twins[1]))
    assert [one.kind for one in at_once.history] == ["restore"] * cycles


def test_at_once_goes_on_where_it_was_saved():
    (model, optimizer), (other, twin) = build("residual"), build("residual")
    scheme = scheme_for(model, optimizer, sub=0, cycles=3)
    for epoch in range(4):
        train_step(model, optimizer, epoch)
        scheme.step()
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, scheme)], buffer)
    buffer.seek(0)
    fresh = scheme_for(other, twin, sub=0, cycles=3)
    for part, state in zip((other, twin, fresh), torch.load(buffer, weights_only=True)):
        part.load_state_dict(state)
    for net, steps in (((model, optimizer), scheme), ((other, twin), fresh)):
        for epoch in range(4, 8):
            train_step(*net, epoch)
            steps.step()
    assert same(snapshot(model, optimizer), snapshot(other, twin))
    assert [one.step for one in fresh.history] == [2, 4, 6]


def test_at_once_that_fails_changes_nothing(monkeypatch):
    model, optimizer = build("plain")
    scheme = scheme_for(model, optimizer, sub=0)
    train_step(model, optimizer, 0)
    scheme.step()
    before = snapshot(model, optimizer)
    restore, calls = scheme.bank.restore, []

    def fails_once(reinit=None):
        calls.append(getattr(reinit, "method", None))
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return restore(reinit)

    monkeypatch.setattr(scheme.bank, "restore", fails_once)
    with pytest.raises(RuntimeError, match="no memory"):
        scheme.step()
    assert calls == ["orthogonal", None]
    assert (scheme.phase, scheme.steps) == ("full", 1)
    assert same(snapshot(model, optimizer), before)
    assert scheme.step().kind == "restore"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"subnetwork": "compact"}, "subnetwork='compact'"),
        ({"subnetwork": "masked"}, "subnetwork='masked'"),
        ({"exact_dropout": True}, "exact_dropout=True"),
        ({"reinit": "keep"}, "reinit='keep'"),
    ],
)
def test_what_needs_a_phase_has_no_effect_without_one(choice, said):
    with pytest.warns(tr.NoEffectWarning, match=rf"^{said}: has no effect \(with sub=0 there is no sub-network phase"):
        scheme_for(*build("plain"), sub=0, **choice)


def test_without_a_phase_no_smaller_network_is_told_of():
    scheme = scheme_for(*build("plain"), sub=0)
    assert str(scheme).endswith("\nno sub-network: filters return as soon as they are chosen")


def test_a_ranking_turned_round_takes_the_other_end():
    model, _ = build("residual")
    bank = tr.find_filters(model, inputs()[0], skip=None)
    ahead, back = (tr.criteria.make(name).scores(bank) for name in ("orthogonality", "orthogonality-reversed"))
    assert all(torch.equal(ahead[name], -back[name]) for name in ahead)
    ranked = sum(len(scores) for scores in ahead.values())
    first, _ = bank.select(ahead, 0.3)
    last, _ = bank.select(back, 0.3)
    taken = [{(name, one) for name, some in filters.items() for one in some} for filters in (first, last)]
    assert len(taken[0]) == len(taken[1]) == int(0.3 * ranked)
    assert not taken[0] & taken[1]


class ByIndex:
    """A user's own: no dataclass, and lists for tensors."""

    def scores(self, bank):
        return {layer.name: list(range(layer.filters)) for layer in bank.ranked}


def test_any_criterion_can_be_turned_round():
    bank = tr.find_filters(build("plain")[0], inputs()[0], skip=None)
    for one, plain in (("magnitude", "magnitude"), (ByIndex(), ByIndex())):
        ahead, back = tr.criteria.make(plain).scores(bank), tr.criteria.Reversed(one).scores(bank)
        assert all(torch.equal(torch.as_tensor(ahead[name]), -back[name]) for name in ahead)
    with pytest.raises(tr.ReaperError, match=r"^criterion='magnitud': must be one of "):
        tr.criteria.Reversed("magnitud")


def test_one_turned_round_goes_on_with_another_object_of_the_same_kind():
    states = [scheme_for(*build("plain"), criterion=tr.criteria.Reversed(ByIndex())) for _ in range(2)]
    states[1].load_state_dict(states[0].state_dict())
    other = scheme_for(*build("plain"), criterion=tr.criteria.Reversed("random"))
    with pytest.raises(tr.ReaperError, match=r"^load_state_dict: criterion was "):
        other.load_state_dict(states[0].state_dict())
