"""A return that changes next to nothing at first: the slices that read a filter at 0, a small gamma before a sum."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchreaper as tr
from tests.nets import Block, build, inputs, train_step

QUIET = tr.Reinit(consumers="zero", norms="small")


class Late(nn.Module):
    """Two branches that are added behind their activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b = (nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU()) for _ in range(2))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc((self.a(x) + self.b(x)).mean((2, 3)))


def everywhere(bank: tr.FilterBank) -> dict[str, list[int]]:
    return {layer.name: [0, layer.filters - 1] for layer in bank.ranked}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("net", ["plain", "plain-norm", "residual"])
def test_what_returns_quietly_changes_nothing_at_first_and_wakes(net, training):
    model, optimizer = build(net)
    for seed in range(3):
        train_step(model, optimizer, seed)
    bank = tr.find_filters(model, inputs()[0], skip="stem" if net == "residual" else None)
    x, y = inputs(7, n=12)
    bank.drop(everywhere(bank))
    expected = model.train(training)(x).detach()
    bank.restore(QUIET)
    found = model(x)
    assert torch.allclose(found, expected, atol=0.05 if net == "residual" else 1e-6)
    before = {layer.name: layer.module.weight.detach().clone() for layer in bank.ranked}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # what reads a filter moves first, the filter then
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    for layer in bank.ranked:
        assert not torch.equal(layer.module.weight[0], before[layer.name][0]), layer.name


@pytest.mark.parametrize("reinit", ["orthogonal", "random"])
def test_without_sums_the_default_is_quiet(reinit):
    model = build("plain-norm")[0].eval()
    bank = tr.find_filters(model, inputs()[0], skip=None)
    bank.drop(everywhere(bank))
    expected = model(inputs()[0]).detach()
    bank.restore(reinit)
    assert torch.allclose(model(inputs()[0]), expected, atol=1e-6)


def test_a_loud_return_would_be_seen():
    model = build("residual")[0].eval()
    bank = tr.find_filters(model, inputs()[0], skip="stem")
    bank.drop(everywhere(bank))
    expected = model(inputs()[0]).detach()
    bank.restore(tr.Reinit(consumers="zero"))
    assert not torch.allclose(model(inputs()[0]), expected, atol=0.2)


def test_gamma_is_small_only_where_the_norm_goes_right_into_a_sum():
    block = Block(3, 4)
    block_bank = tr.find_filters(block, inputs()[0], include=["*"])
    block_bank.drop({"conv1": [1], "conv2": [2], "shortcut.0": [3]})
    block_bank.restore(QUIET)
    assert block.bn1.weight.tolist() == [1, 1, 1, 1]
    assert block.bn2.weight.tolist() == pytest.approx([1, 1, 0.01, 1])
    assert block.shortcut[1].weight.tolist() == pytest.approx([1, 1, 1, 0.01])
    late = Late()
    bank = tr.find_filters(late, inputs()[0])
    bank.drop({"a.0": [1], "b.0": [1]})
    bank.restore(QUIET)
    assert late.a[1].weight.tolist() == late.b[1].weight.tolist() == [1] * 5


def test_a_choice_that_no_norm_can_feel_is_warned_of():
    model, optimizer = build("plain-norm")
    with pytest.warns(tr.NoEffectWarning) as caught:
        tr.RePr(model, optimizer, inputs()[0], reinit=tr.Reinit(norms="small"))
    assert str(caught[0].message) == (
        "reinit.norms='small': has no effect (no ranked filter's norm goes right into a sum); leave it out"
    )
