from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

import torchreaper as tr
from tests.architectures import architectures
from tests.criteria.bruteforce import BATCHES, MAPS, built
from tests.families import FAMILIES
from tests.nets import build, inputs, train_step
from torchreaper.criteria import oracle


def by_definition(model, bank, measure):
    """A sub-network without each filter, made anew for each, by a bank of its own."""
    model = deepcopy(model).eval()
    own = tr.find_filters(model, BATCHES[0][0], skip=None)

    def value():
        with torch.no_grad():
            outputs = torch.cat([model(images) for images, _ in BATCHES])
        labels = torch.cat([labels for _, labels in BATCHES])
        right = (outputs.argmax(1) == labels).double().mean()
        return float(right if measure == "accuracy" else -F.cross_entropy(outputs, labels))

    whole, lost = value(), {}
    for layer in bank.ranked:
        lost[layer.name] = []
        for index in range(layer.filters):
            with own.without({layer.name: [index]}, mode="masked"):
                lost[layer.name].append(whole - value())
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in lost.items()}


def fc_inputs(model):
    """What the last layer reads."""
    seen, fc = [], list(model.modules())[-1]
    with torch.no_grad():
        fc.bias.zero_()
        handle = fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        model.eval()(BATCHES[0][0])
        handle.remove()
        model.train()
    return seen[0]


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
@pytest.mark.parametrize("net", list(MAPS))
def test_oracle_is_what_is_lost_without_each_filter(net, measure):
    model, bank = built(net)
    with torch.no_grad():
        fc = list(model.modules())[-1]  # so that the features decide, every one of them
        fc.bias.copy_(-fc(fc_inputs(model)).mean(0))
    expected = by_definition(model, bank, measure)
    found = tr.criteria.Oracle(BATCHES, measure=measure)
    lost, scores = found.lost(bank), found.scores(bank)
    assert list(lost) == [layer.name for layer in bank.ranked]
    for name, values in expected.items():
        torch.testing.assert_close(lost[name], values, rtol=1e-10, atol=1e-12)
        assert torch.equal(scores[name], 0.0 - lost[name])
    assert any(values.abs().max() > 0 for values in lost.values())


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_how_many_at_once_changes_nothing(at_once):
    _, bank = built("residual")
    expected = tr.criteria.Oracle(BATCHES, measure="loss").lost(bank)
    for name, values in tr.criteria.Oracle(BATCHES, measure="loss", at_once=at_once).lost(bank).items():
        torch.testing.assert_close(values, expected[name], rtol=1e-10, atol=1e-12)


def with_shifts(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return model


def both_ways(monkeypatch, bank, batches):
    """Side by side, failing where that does not work, and by a sub-network for every filter."""
    criterion = tr.criteria.Oracle(batches, lambda outputs, targets: outputs.mean(), measure="loss")
    with monkeypatch.context() as patch:
        patch.setattr(tr.criteria.Oracle, "_one_by_one", None)
        fast = criterion.lost(bank)
    mode = bank.model.training
    bank.model.eval()

    def value():
        with torch.no_grad():
            return sum(len(images) * bank.model(images).mean() for images, _ in batches).double()

    whole, samples, slow = value(), sum(len(images) for images, _ in batches), {}
    for layer in bank.ranked:
        slow[layer.name] = torch.zeros(layer.filters, dtype=torch.float64)
        for index in range(layer.filters):
            with bank.without({layer.name: [index]}, mode="masked"):
                slow[layer.name][index] = (value() - whole) / samples
    bank.model.train(mode)
    return fast, slow


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"boxed", "untraceable"}))
def test_side_by_side_is_one_by_one_in_every_family(monkeypatch, name):
    torch.manual_seed(5)
    model = with_shifts(FAMILIES[name]()).double()
    bank = tr.find_filters(model, BATCHES[0][0])
    fast, slow = both_ways(monkeypatch, bank, BATCHES)
    assert any(values.any() for values in slow.values())
    for layer, values in slow.items():
        torch.testing.assert_close(fast[layer], values, rtol=1e-10, atol=1e-12)


@pytest.mark.slow  # `make test` has every family
@settings(max_examples=40)
@given(architectures)
def test_side_by_side_is_one_by_one_in_random_networks(architecture):
    model = architecture.build().double().eval()
    images, _ = architecture.inputs(0)
    bank = tr.find_filters(model, images, skip=None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fast, slow = both_ways(monkeypatch, bank, [(images, None)])
    for layer, values in slow.items():
        torch.testing.assert_close(fast[layer], values, rtol=1e-9, atol=1e-12)


class Deciding(nn.Module):
    """Goes a way that depends on what a tensor holds: no copy of a batch can go two ways at once."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        if x.mean() > 1e9:
            x = x * 2
        return self.fc(x.mean((2, 3)))


def test_what_cannot_run_side_by_side_runs_one_by_one():
    torch.manual_seed(0)
    model = Deciding().double()
    bank = tr.find_filters(model, BATCHES[0][0], skip=None)
    seen = []
    criterion = tr.criteria.Oracle(BATCHES, measure="loss", progress=lambda done, of: seen.append((done, of)))
    lost = criterion.lost(bank)
    assert seen == [(4, 9), (9, 9)]
    expected = by_definition(model, bank, "loss")
    for name, values in expected.items():
        torch.testing.assert_close(lost[name], values, rtol=1e-10, atol=1e-12)
    assert not any(module._forward_hooks for module in model.modules())


def test_it_works_while_a_scheme_is_attached():
    model, optimizer = build("residual")
    data = [inputs(1)]
    criterion = tr.criteria.Oracle(data, measure="loss")
    scheme = tr.RePr(model, optimizer, inputs()[0], full=1, sub=1, criterion=criterion, max_per_layer=0.5)
    train_step(model, optimizer, 0)
    state = deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = by_definition_of_loss(model, scheme.bank, data)
    transition = scheme.step()
    for name, values in expected.items():
        torch.testing.assert_close(transition.scores[name], -values, rtol=1e-4, atol=1e-6)
    after = (model.state_dict(), optimizer.state_dict())
    for key, value in state[0].items():
        assert torch.equal(after[0][key], value)
    for key, value in state[1]["state"].items():
        assert torch.equal(after[1]["state"][key]["momentum_buffer"], value["momentum_buffer"])


def by_definition_of_loss(model, bank, data):
    copy = deepcopy(model).eval()
    for module in copy.modules():
        module._forward_hooks.clear(), module._state_dict_hooks.clear()
        module._load_state_dict_pre_hooks.clear()
    own, (images, labels) = tr.find_filters(copy, data[0][0]), data[0]
    with torch.no_grad():
        whole, lost = F.cross_entropy(copy(images), labels).double(), {}
        for layer in bank.ranked:
            values = []
            for index in range(layer.filters):
                with own.without({layer.name: [index]}, mode="masked"):
                    values.append(F.cross_entropy(copy(images), labels).double() - whole)
            lost[layer.name] = torch.stack(values)
    return lost


def test_what_cannot_run_side_by_side_works_while_a_scheme_is_attached():
    torch.manual_seed(0)
    model = Deciding()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = tr.criteria.Oracle([inputs(1)])
    scheme = tr.RePr(model, optimizer, inputs()[0], full=1, sub=1, criterion=criterion)
    for seed in range(2):
        train_step(model, optimizer, seed)
        scheme.step()
    assert [t.kind for t in scheme.history] == ["drop", "restore"]


def test_outputs_of_every_position_count():
    """Segmentation: classes for every pixel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    images = BATCHES[0][0]
    targets = torch.randint(3, (len(images), 8, 8), generator=torch.Generator().manual_seed(0))
    bank = tr.find_filters(model, images, skip=None)
    lost = tr.criteria.Oracle([(images, targets)]).lost(bank)["0"]
    whole = (model(images).argmax(1) == targets).double().mean()
    with bank.without({"0": [2]}):
        assert lost[2] == pytest.approx(float(whole - (model(images).argmax(1) == targets).double().mean()))


@pytest.mark.parametrize("targets", [torch.rand(6), torch.zeros(6, 3), torch.zeros(5).long(), "cat", None])
def test_accuracy_needs_classes(targets):
    _, bank = built("plain")
    criterion = tr.criteria.Oracle([(BATCHES[0][0], targets)])
    with pytest.raises(tr.ReaperError, match=r'measure="accuracy": needs outputs .* use measure="loss"'):
        criterion.lost(bank)


def test_targets_that_are_no_classes_are_named():
    _, bank = built("plain")
    images, labels = BATCHES[0]
    for wrong, value in ((labels + 1, 3), (labels - 1, -1)):
        with pytest.raises(tr.ReaperError, match=rf"batches: target {value} on batch 0 is none of 3 classes"):
            tr.criteria.Oracle([(images, wrong.where(wrong != 0, value))]).lost(bank)


def test_targets_to_ignore_do_not_count():
    _, bank = built("plain")
    images, labels = BATCHES[0]
    whole, expected = tr.criteria.Oracle([(images[:4], labels[:4])]).measured(bank)
    marked = labels.clone()
    marked[4:] = 255
    found = tr.criteria.Oracle([(images, marked)], ignore_index=255).measured(bank)
    assert found[0] == whole
    assert all(torch.equal(found[1][layer], values) for layer, values in expected.items())
    # A class that is ignored does not count as right either.
    whole, _ = tr.criteria.Oracle([(images, labels)], ignore_index=0).measured(bank)
    right = (bank.model.eval()(images).argmax(1) == labels)[labels != 0]
    assert whole == pytest.approx(right.double().mean().item())
    with pytest.raises(tr.ReaperError, match="ignore_index=255: all targets are that"):
        tr.criteria.Oracle([(images, torch.full_like(labels, 255))], ignore_index=255).lost(bank)


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_the_whole_network_is_measured_too(measure):
    model, bank = built("residual")
    whole, _ = tr.criteria.Oracle(BATCHES, measure=measure).measured(bank)
    model.eval()
    images, labels = (torch.cat(parts) for parts in zip(*BATCHES))
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).double().mean()
        loss = F.cross_entropy(model(images), labels)
    assert whole == pytest.approx((right if measure == "accuracy" else loss).item())


def test_wrong_settings():
    with pytest.raises(tr.ReaperError, match="measure='recall': must be one of accuracy, loss"):
        tr.criteria.Oracle(BATCHES, measure="recall")
    with pytest.raises(tr.ReaperError, match="at_once=0: must be a whole number of at least 1"):
        tr.criteria.Oracle(BATCHES, at_once=0)


def test_outputs_that_are_not_finite():
    model, bank = built("plain")
    with torch.no_grad():
        model[-1].bias[0] = torch.inf
    with pytest.raises(tr.ReaperError, match="outputs are not finite on batch 0"):
        tr.criteria.Oracle(BATCHES).lost(bank)


def test_when_memory_runs_out_fewer_are_left_out_at_once(monkeypatch):
    _, bank = built("residual")
    expected = tr.criteria.Oracle(BATCHES, measure="loss").lost(bank)
    sizes, without = [], oracle._without

    def small_memory(bank, layer, indices, batch):
        sizes.append(len(indices))
        if len(indices) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return without(bank, layer, indices, batch)

    monkeypatch.setattr(oracle, "_without", small_memory)
    found = tr.criteria.Oracle(BATCHES, measure="loss").lost(bank)
    assert {4, 2, 1} <= set(sizes)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(oracle, "_without", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        tr.criteria.Oracle(BATCHES).lost(bank)


def test_a_second_bank_may_look_while_a_scheme_is_attached(caplog):
    torch.manual_seed(0)
    model = Deciding()
    scheme = tr.RePr(model, torch.optim.SGD(model.parameters(), lr=0.1), inputs()[0], skip=None)
    with caplog.at_level("INFO", logger="torchreaper"):
        lost = tr.criteria.Oracle([inputs(1)], measure="loss").lost(tr.find_filters(model, inputs()[0], skip=None))
    assert "oracle: first: filters are left out one by one, which is slower" in caplog.text
    assert "oracle: 9 of 9 filters, second done" in caplog.text
    assert any(values.any() for values in lost.values())
    scheme.remove()
