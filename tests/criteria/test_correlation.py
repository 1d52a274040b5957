from __future__ import annotations

import numpy as np
import pytest
import torch

import torchreaper as tr
from tests.criteria.bruteforce import BATCHES, MAPS, all_maps, built


@pytest.mark.parametrize("net", list(MAPS))
def test_correlation_is_pearsons_of_the_maps(net):
    model, bank = built(net)
    criterion = tr.criteria.ActivationCorrelation(BATCHES)
    scores, matrices = criterion.scores(bank), criterion.correlations(bank)
    for layer in bank.ranked:
        rows = all_maps(model, net, layer.name).transpose(0, 1).flatten(1).numpy()
        with np.errstate(invalid="ignore"):
            expected = torch.from_numpy(np.nan_to_num(np.corrcoef(rows)))  # a constant map: NaN there, 0 here
        torch.testing.assert_close(matrices[layer.name], expected, rtol=1e-9, atol=1e-9)
        others = expected.abs() - expected.abs().diagonal().diag()
        torch.testing.assert_close(scores[layer.name], others.mean(1), rtol=1e-9, atol=1e-9)


def test_a_large_offset_loses_no_digits():
    model, bank = built("plain")
    expected = tr.criteria.ActivationCorrelation(BATCHES).correlations(bank)["2"]
    with torch.no_grad():
        model[2].bias += 1e4
    shifted = tr.criteria.ActivationCorrelation(BATCHES).correlations(bank)["2"]
    rows = all_maps(model, "plain", "2").transpose(0, 1).flatten(1)
    torch.testing.assert_close(shifted, torch.from_numpy(np.corrcoef(rows.numpy())), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(shifted, expected)  # the ReLU no longer cuts anything off


def test_a_constant_map_correlates_with_none():
    model, bank = built("plain")
    with torch.no_grad():
        model[2].weight[1].zero_()
        model[2].bias[1] = 0.1  # no binary number: sums of it are rounded
    found = tr.criteria.ActivationCorrelation(BATCHES).correlations(bank)["2"]
    assert not found[1].any()
    assert not found[:, 1].any()
