from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call

import torchreaper as tr
from tests.nets import inputs

BATCHES = [inputs(seed, n, torch.float64) for seed, n in ((1, 5), (2, 3))]


def small() -> nn.Module:
    """Smooth and small enough for its whole Hessian."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 2, 3, stride=2), nn.Tanh(), nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Softplus()),
        *(nn.Flatten(), nn.Linear(12, 3)),
    ).double()


def exact(model: nn.Module, name: str) -> torch.Tensor:
    """LeCun's saliency from the dense matrix of second derivatives of the mean loss."""
    model = model.eval()
    images, labels = (torch.cat(parts) for parts in zip(*BATCHES))
    key = f"{name}.weight"
    weight = model.get_parameter(key).detach()

    def loss(flat):
        return F.cross_entropy(functional_call(model, {key: flat.view_as(weight)}, (images,)), labels)

    diagonal = torch.autograd.functional.hessian(loss, weight.flatten()).diagonal()
    return (diagonal * weight.flatten().square() / 2).view(len(weight), -1).sum(1)


@pytest.fixture
def bank():
    return tr.find_filters(small(), BATCHES[0][0], skip=None)


def test_without_draws_it_is_the_exact_diagonal(bank):
    scores = tr.criteria.Hessian(BATCHES, samples=None).scores(bank)
    for layer in bank.ranked:
        torch.testing.assert_close(scores[layer.name], -exact(bank.model, layer.name), rtol=1e-8, atol=1e-12)


def test_draws_are_right_in_the_mean(bank):
    draws = torch.stack([tr.criteria.Hessian(BATCHES, samples=2).scores(bank)["2"] for _ in range(150)])
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).all()
    assert ((draws.mean(0) + exact(bank.model, "2")).abs() < 4.5 * error).all()


def test_more_draws_come_closer(bank):
    def spread(samples):
        found = [tr.criteria.Hessian(BATCHES, samples=samples).scores(bank)["2"] for _ in range(30)]
        return torch.stack(found).std(0).mean()

    assert spread(32) < 0.5 * spread(2)


def test_eighty_draws_rank_nearly_as_the_exact_diagonal_does():
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Softplus()),
        *(nn.Flatten(), nn.Linear(32, 3)),
    ).double()
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(3)
    bank = tr.find_filters(model, BATCHES[0][0], skip=None)
    exact, drawn = (tr.criteria.Hessian(BATCHES, samples=s).scores(bank) for s in (None, 40))
    first, second = (torch.cat(list(scores.values())) for scores in (exact, drawn))
    assert spearmanr(first, second).statistic > 0.85


def test_draws_come_from_the_banks_generator(bank):
    before, state = torch.get_rng_state(), bank.generator.get_state()
    first = tr.criteria.Hessian(BATCHES).scores(bank)["2"]
    assert not torch.equal(tr.criteria.Hessian(BATCHES).scores(bank)["2"], first)
    bank.generator.set_state(state)
    assert torch.equal(tr.criteria.Hessian(BATCHES).scores(bank)["2"], first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_linear_in_the_weights_has_no_second_derivatives():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 3, 3), nn.Flatten()).double()
    bank = tr.find_filters(model, BATCHES[0][0], include=["1"])
    scores = tr.criteria.Hessian(BATCHES, lambda outputs, targets: outputs.mean()).scores(bank)
    assert not scores["1"].any()


def test_any_memory_format(bank):
    expected = tr.criteria.Hessian(BATCHES, samples=None).scores(bank)
    model = small().to(memory_format=torch.channels_last)
    found = tr.criteria.Hessian(BATCHES, samples=None).scores(tr.find_filters(model, BATCHES[0][0], skip=None))
    for layer, values in expected.items():
        torch.testing.assert_close(found[layer], values)


@pytest.mark.parametrize("samples", [0, -1, True])
def test_wrong_number_of_draws(samples):
    with pytest.raises(tr.ReaperError, match=f"samples={samples}: must be a whole number of at least 1, or None"):
        tr.criteria.Hessian(BATCHES, samples=samples)
