from __future__ import annotations

import pytest
import torch

import torchreaper as tr
from tests.nets import Residual, build, inputs, train_step

DATA = [inputs(1), inputs(2)]
DATA_DRIVEN = {
    *("mean-activation", "apoz", "activation-correlation", "gradient", "taylor", "hessian", "oracle", "oracle-loss"),
}


@pytest.fixture
def bank():
    return tr.find_filters(Residual(), inputs()[0])


def test_registered_names():
    assert set(tr.criteria.names()) >= {
        *("orthogonality", "orthogonality-released", "orthogonality-corrected", "magnitude", "magnitude-l1", "random"),
        *("geometric-median", "batchnorm-scale", *DATA_DRIVEN),
    }
    assert {name for name in tr.criteria.names() if tr.criteria.needs_data(name)} == DATA_DRIVEN
    assert not tr.criteria.needs_data("no such")


@pytest.mark.parametrize("name", tr.criteria.names())
def test_every_criterion_scores_every_ranked_filter(bank, name):
    scores = tr.criteria.make(name, DATA).scores(bank)
    assert list(scores) == [layer.name for layer in bank.ranked]
    for layer in bank.ranked:
        assert scores[layer.name].shape == (layer.filters,)
        assert torch.isfinite(scores[layer.name]).all()


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_drops_the_shortest_first(bank, p):
    layer = bank["block2.conv1"]
    scores = tr.criteria.Magnitude(p).scores(bank)[layer.name]
    expected = [-(sum(abs(float(w)) ** p for w in row.flatten()) ** (1 / p)) for row in layer.rows]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))
    layer.module.weight.data[3] *= 1e-3
    assert tr.criteria.Magnitude(p).scores(bank)[layer.name].argmax() == 3


def test_random_comes_from_the_banks_generator():
    model = Residual()
    banks = [tr.find_filters(model, inputs()[0], seed=seed) for seed in (1, 1, 2)]
    first, again, other = [tr.criteria.Random().scores(bank)["block2.conv1"] for bank in banks]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_users_criterion_is_three_lines(bank):
    class LargestBias:
        def scores(self, bank):
            return {layer.name: layer.module.weight.flatten(1).mean(1) for layer in bank.layers}

    optimizer = torch.optim.SGD(bank.model.parameters(), lr=0.1)
    scheme = tr.RePr(bank.model, optimizer, inputs()[0], full=1, sub=1, criterion=LargestBias(), max_per_layer=0.5)
    assert scheme.step().kind == "drop"


@pytest.mark.parametrize("name", sorted(DATA_DRIVEN))
def test_a_criterion_that_reads_images_says_so(bank, name):
    with pytest.raises(
        tr.ReaperError, match=rf"criterion='{name}': reads images; pass .*make\('{name}', batches, loss_fn\)"
    ):
        tr.RePr(bank.model, torch.optim.SGD(bank.model.parameters(), lr=0.1), inputs()[0], criterion=name)


@pytest.mark.parametrize("name", sorted(DATA_DRIVEN))
def test_a_scheme_ranks_by_images(name):
    model, optimizer = build("residual")
    criterion = tr.criteria.make(name, DATA)
    scheme = tr.RePr(model, optimizer, inputs()[0], full=1, sub=1, cycles=2, criterion=criterion, max_per_layer=0.5)
    for seed in range(4):
        train_step(model, optimizer, seed)
        scheme.step()
    assert [transition.kind for transition in scheme.history] == ["drop", "restore", "drop", "restore"]
    again = tr.RePr(*build("residual"), inputs()[0], full=1, sub=1, cycles=2, criterion=criterion, max_per_layer=0.5)
    again.load_state_dict(scheme.state_dict())  # the batches are no part of what must agree


def test_registering_one_that_reads_images():
    tr.criteria.register("test-only", lambda batches, loss_fn: tr.criteria.Taylor(batches, loss_fn), data=True)
    try:
        assert tr.criteria.needs_data("test-only")
        assert isinstance(tr.criteria.make("test-only", DATA), tr.criteria.Taylor)
    finally:
        from torchreaper.criteria import base

        del base._REGISTRY["test-only"]


def test_registering():
    tr.criteria.register("test-only", tr.criteria.Random)
    try:
        assert isinstance(tr.criteria.make("test-only"), tr.criteria.Random)
        with pytest.raises(tr.ReaperError, match="criterion='test-only': is registered already"):
            tr.criteria.register("test-only", tr.criteria.Random)
    finally:
        from torchreaper.criteria import base

        del base._REGISTRY["test-only"]


@pytest.mark.parametrize("wrong", ["ortogonality", object(), tr.criteria.Random])
def test_what_is_no_criterion_is_an_error(wrong):
    with pytest.raises(tr.ReaperError, match=r"criterion=.*: must be .*orthogonality"):
        tr.criteria.make(wrong)


@pytest.mark.parametrize("kind", [list, tuple, lambda values: values.numpy()])
def test_scores_may_be_any_array(kind):
    class Lists:
        def scores(self, bank):
            return {layer.name: kind(layer.rows.norm(dim=1)) for layer in bank.ranked}

    model, optimizer = build("residual")
    scheme = tr.RePr(model, optimizer, inputs()[0], full=1, sub=1, criterion=Lists(), max_per_layer=0.5)
    assert sum(map(len, scheme.bank.preview(0.3, Lists()).filters.values())) == 7
    assert scheme.step().kind == "drop"


def test_scores_that_are_no_numbers_and_factories_that_are_none(bank):
    class Words:
        def scores(self, bank):
            return {layer.name: ["much"] * layer.filters for layer in bank.ranked}

    with pytest.raises(tr.ReaperError, match=r"scores of layer 'block1.conv1': a list that is no array of numbers"):
        bank.preview(0.3, Words())
    with pytest.raises(tr.ReaperError, match="factory=Words: must make the criterion: a class or a function"):
        tr.criteria.register("words", Words())


def test_wrong_order_of_the_norm():
    with pytest.raises(tr.ReaperError, match="p=3: must be 1 or 2"):
        tr.criteria.Magnitude(3)
