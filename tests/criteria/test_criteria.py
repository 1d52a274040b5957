from __future__ import annotations

import pytest
import torch

import torchreaper as tr
from tests.nets import Residual, inputs


@pytest.fixture
def bank():
    return tr.find_filters(Residual(), inputs()[0])


def test_registered_names():
    assert set(tr.criteria.names()) >= {
        *("orthogonality", "orthogonality-released", "orthogonality-corrected", "magnitude", "magnitude-l1", "random")
    }


@pytest.mark.parametrize("name", tr.criteria.names())
def test_every_criterion_scores_every_ranked_filter(bank, name):
    scores = tr.criteria.make(name).scores(bank)
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


def test_wrong_order_of_the_norm():
    with pytest.raises(tr.ReaperError, match="p=3: must be 1 or 2"):
        tr.criteria.Magnitude(3)
