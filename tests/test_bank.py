from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.nets import Residual, build, inputs, plain, train_step
from tests.twins import full_gradients
from torchreaper import bank as bank_module


@pytest.fixture
def bank():
    return tr.find_filters(build("residual")[0], inputs()[0])


@pytest.fixture
def unchecked(monkeypatch):
    """A user has no type checker between a call and its method, as these tests have."""
    monkeypatch.setattr(bank_module, "picked", inspect.unwrap(bank_module.picked))
    for name in ("drop", "cost", "_picked", "__getitem__"):
        monkeypatch.setattr(tr.FilterBank, name, inspect.unwrap(getattr(tr.FilterBank, name)))


GONE = {"block1.conv1": [3], "block2.conv1": [0, 5]}


def test_without_leaves_the_model_as_it_was(bank):
    model, images = bank.model.eval(), inputs(1)[0]
    before, outputs = copy.deepcopy(model.state_dict()), model(images)
    with bank.without(GONE) as inside:
        assert inside.dropped == {"block1.conv1": (3,), "block2.conv1": (0, 5)}
        assert not torch.equal(model(images), outputs)
    assert torch.equal(model(images), outputs)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert not any(m._forward_hooks or m._state_dict_hooks for m in model.modules()), "hooks stay behind"
    assert not any(p._backward_hooks for p in model.parameters())


def test_without_restores_after_an_error(bank):
    before = copy.deepcopy(bank.model.state_dict())
    with pytest.raises(RuntimeError, match="mine"), bank.without(GONE):
        raise RuntimeError("mine")
    assert not bank.dropped
    assert all(torch.equal(a, b) for a, b in zip(before.values(), bank.model.state_dict().values()))


def test_preview_changes_nothing_and_says_what_would_go(bank):
    before, state = copy.deepcopy(bank.model.state_dict()), bank.generator.get_state()
    for criterion in tr.criteria.names():
        preview = bank.preview(0.3, tr.criteria.make(criterion, [inputs(1)]))
        assert sum(map(len, preview.filters.values())) == int(0.3 * 26)
    assert torch.equal(state, bank.generator.get_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), bank.model.state_dict().values()))
    text = str(bank.preview(0.3))
    assert "7 of 26 ranked filters would be dropped" in text
    assert "multiply-adds per sample" in text


def test_costs_are_those_of_a_network_built_without_the_filters():
    big, small = plain(), plain(widths=(3, 4, 4))
    gone = {"0": (1,), "3": (0, 4), "6": (2,)}
    whole = tr.find_filters(small, inputs()[0], skip=None).preview(0.3).full
    preview = tr.find_filters(big, inputs()[0], skip=None)
    scores = {name: torch.tensor([float(i in gone[name]) for i in range(preview[name].filters)]) for name in gone}

    class Chosen:
        def scores(self, bank):
            return scores

    found = preview.preview(4 / 15, Chosen())
    assert found.filters == gone
    assert found.sub == whole
    assert found.full.parameters == sum(p.numel() for p in big.parameters())
    # By hand: 3x3 convolutions on 8x8, and the Linear.
    assert found.full.multiply_adds == 64 * 9 * (3 * 4 + 4 * 6 + 6 * 5) + 80 * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.drop({"conv9": [0]}), "layer='conv9': no such layer; the layers are stem, block1.conv1"),
        (lambda b: b.drop({"stem": [4]}), "filters of 'stem': 4 is not in 0..3"),
        (lambda b: b.drop({"stem": [-1]}), "filters of 'stem': -1 is not in 0..3"),
        (lambda b: b.drop({"stem": range(4)}), "filters of 'stem': all 4; a layer must keep at least one"),
        (lambda b: b.drop({"conv9": []}), "layer='conv9': no such layer"),
        (lambda b: b.cost({"conv9": [0]}), "layer='conv9': no such layer; the layers are stem"),
        (lambda b: b.cost({"stem": [4]}), "filters of 'stem': 4 is not in 0..3"),
        (lambda b: b.drop(GONE, mode="mask"), "subnetwork='mask': must be"),
        (lambda b: b.preview(1.3), "fraction=1.3: must be in (0, 1)"),
        (lambda b: b.preview(0.3, "magic"), "criterion='magic': must be one of"),
        (lambda b: b.preview(0.01), "fraction=0.01: of 26 ranked filters that is none; use at least 0.0385"),
        (lambda b: b.preview(0.3, min_filters=9), "min_filters=9, max_per_layer=1.0: no layer may lose a filter"),
        (lambda b: b.select({}, 0.3), "scores: the criterion gave none for layer 'block1.conv1'"),
        (
            lambda b: b.select({layer.name: torch.zeros(3) for layer in b}, 0.3),
            "scores of layer 'block1.conv1': shape [3]; must be [4]",
        ),
    ],
)
def test_wrong_calls_are_named(bank, call, message):
    before = copy.deepcopy(bank.model.state_dict())
    with pytest.raises(tr.ReaperError) as caught:
        call(bank)
    assert message in str(caught.value)
    assert not bank.dropped
    assert all(torch.equal(a, b) for a, b in zip(before.values(), bank.model.state_dict().values()))


@pytest.mark.parametrize("method", ["drop", "cost"])
@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({3: [0]}, "layer=3: no such layer; the layers are stem"),
        ({"stem": 3}, "filters of 'stem'=3: must be a list of indices, whole numbers"),
        ({"stem": "03"}, "filters of 'stem'='03': must be a list of indices, whole numbers"),
        ({"stem": [0.5]}, "filters of 'stem'=[0.5]: must be a list of indices, whole numbers"),
        ({"stem": [True, False]}, "filters of 'stem'=[True, False]: must be a list of indices, whole numbers"),
        ({"stem": torch.eye(4)[0] > 0}, "must be a list of indices, whole numbers"),
        ({"stem": np.eye(4)[0] > 0}, "must be a list of indices, whole numbers"),
        ({"stem": torch.eye(2).long()}, "must be a list of indices, whole numbers"),
        ([("stem", [0])], "filters=[('stem', [0])]: must be a mapping of layer names to lists of indices"),
        (None, "filters=None: must be a mapping of layer names to lists of indices"),
    ],
    ids=repr,
)
def test_what_are_no_filters_is_refused(bank, method, filters, message, unchecked):
    with pytest.raises(tr.ReaperError) as caught:
        getattr(bank, method)(filters)
    assert message in str(caught.value)
    assert not bank.dropped


@pytest.mark.parametrize(
    "indices", [[3, 0, 3], (0, 3), {3, 0}, range(0, 4, 3), torch.tensor([3, 0]), np.array([0, 3], np.uint8)], ids=repr
)
def test_indices_may_come_in_any_collection(bank, indices, unchecked):
    whole = bank.cost({})
    assert bank.cost({"block2.conv1": indices}) == bank.cost({"block2.conv1": [0, 3]}) != whole
    bank.drop({"block2.conv1": indices, "stem": []})
    assert bank.dropped == {"block2.conv1": (0, 3)}
    bank.restore()


def test_a_diverged_network_is_not_brought_back_half(bank):
    bank.drop(GONE)
    bank.model.block2.conv1.weight.data[2] = float("nan")
    before = [p.detach().clone() for p in bank.model.parameters()]
    with pytest.raises(tr.ReaperError, match=r"restore: the weights of layer 'block2.conv1' are not finite"):
        bank.restore("orthogonal")
    assert bank.dropped == {"block1.conv1": (3,), "block2.conv1": (0, 5)}
    for a, b in zip(before, bank.model.parameters(), strict=True):
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    bank.restore()


def test_frozen_tensors_are_not_written(bank):
    model = bank.model
    for parameter in (model.block2.bn1.weight, model.block2.bn1.bias, model.block2.conv2.weight):
        parameter.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    bank.drop({"block2.conv1": [0, 5]})
    bank.restore(tr.Reinit(consumers="random"))
    after = model.state_dict()
    for name in ("block2.bn1.weight", "block2.bn1.bias", "block2.conv2.weight"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["block2.conv1.weight"], after["block2.conv1.weight"])
    model.block2.conv1.weight.requires_grad_(False)
    bank.drop({"block2.conv1": [0, 5]})
    with pytest.raises(tr.ReaperError, match=r"restore: layer 'block2.conv1' is frozen; restore it as it was"):
        bank.restore("orthogonal")
    bank.restore()


def test_a_norm_that_is_frozen_keeps_its_statistics_too(bank):
    model = bank.model
    model.block2.bn1.eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    bank.drop(GONE)
    bank.restore("orthogonal")
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("block2.bn1."))
    assert after["block1.bn1.running_var"][3] == 1


@pytest.mark.parametrize("how", ["reset", "keep"])
def test_a_norm_that_averages_over_all_batches_begins_anew_with_what_returns(bank, how):
    """The statistics of a returned filter would be drawn to where they were reset to, for as long as it trains."""
    model = bank.model.train()
    for norm in (model.block2.bn1, model.block1.bn1):
        norm.momentum = None
    other = model.block1.bn1
    for seed in range(5):
        model(inputs(seed)[0])
    bank.drop({"block2.conv1": [0, 5]})
    bank.restore(tr.Reinit(norms=how))
    seen = []
    handle = model.block2.conv1.register_forward_hook(lambda module, given, output: seen.append(output.mean((0, 2, 3))))
    for seed in range(5, 8):
        model(inputs(seed)[0])
    handle.remove()
    assert int(other.num_batches_tracked) == 8
    assert int(model.block2.bn1.num_batches_tracked) == (3 if how == "reset" else 8)
    if how == "reset":
        torch.testing.assert_close(model.block2.bn1.running_mean, torch.stack(seen).mean(0))


def test_dropping_nothing_is_nothing(bank):
    bank.drop({"stem": []})
    assert bank._subnetwork is None
    bank.attach()
    bank.drop({})
    with bank.without({}):
        assert bank.dropped == {}


def test_in_inference_mode(bank):
    optimizer = torch.optim.SGD(bank.model.parameters(), lr=0.1, momentum=0.9)
    bank.attach(optimizer)
    train_step(bank.model, optimizer, 0)
    with torch.inference_mode():
        bank.drop(GONE)
    train_step(bank.model, optimizer, 1)
    with torch.inference_mode():
        bank.restore("orthogonal")
    train_step(bank.model, optimizer, 2)


def test_order_of_calls_is_checked(bank):
    bank.attach()
    with pytest.raises(tr.ReaperError, match="attached already"):
        bank.attach()
    with pytest.raises(tr.ReaperError, match="filters of this model are managed already"):
        tr.find_filters(bank.model, inputs()[0]).attach()
    bank.drop(GONE)
    with pytest.raises(tr.ReaperError, match="dropped already; restore them"):
        bank.drop(GONE)
    with pytest.raises(tr.ReaperError, match="preview: filters are dropped, their weights are not in place"):
        bank.preview(0.3)
    with pytest.raises(tr.ReaperError, match=r"detach: filters are dropped; call restore\(\)"):
        bank.detach()
    bank.restore()
    assert bank.restore() == []
    bank.detach()
    tr.find_filters(bank.model, inputs()[0]).attach()


def test_memory_of_a_grouped_reader_is_left_alone():
    """A grouped convolution reads its input at full width: none of its columns belongs to a filter."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(288, 2))
    bank = tr.find_filters(model, inputs()[0], skip=None)
    weight = model[1].weight.detach().clone()
    with bank.without({"0": [1]}):
        assert torch.equal(model[1].weight.detach(), weight)


@pytest.mark.parametrize("dropped", [False, True])
def test_copies_and_pickles_of_the_model_are_whole(bank, dropped):
    bank.attach()
    images, model = inputs(1)[0], bank.model.eval()
    before = copy.deepcopy(model.state_dict())
    if dropped:
        bank.drop(GONE)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))
        assert all(torch.equal(a, b) for a, b in zip(before.values(), other.state_dict().values()))


@pytest.mark.parametrize("mode", ["masked", "compact"])
def test_pending_gradients_of_dropped_filters_are_dropped(bank, mode):
    """Gradients that wait (accumulation) go along; after the return there are zeros for what was not there."""
    model = bank.model
    bank.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    nn.functional.cross_entropy(model(inputs()[0]), inputs()[1]).backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    bank.drop(GONE, mode=mode)
    assert (model.block2.conv1.weight.grad.shape[0] == 6) == (mode == "masked")
    found = full_gradients(bank)
    bank.restore()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, found[name]), name
    rows, columns = model.block2.conv1.weight.grad, model.block2.conv2.weight.grad
    assert not rows[[0, 5]].any()
    assert not columns[:, [0, 5]].any()
    assert torch.equal(rows[1:5], before["block2.conv1.weight"][1:5])
    assert torch.equal(columns[:, 1:5], before["block2.conv2.weight"][:, 1:5])


@pytest.mark.parametrize("mode", ["masked", "compact"])
@pytest.mark.parametrize("moments", [False, True])
def test_a_model_that_is_cast_in_a_phase_comes_back_whole(bank, mode, moments):
    """As one that is moved: what was stored follows the tensors where they are now."""
    model = bank.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train_step(model, optimizer, 0)
    bank.attach(optimizer)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    bank.drop(GONE, mode=mode)
    model.double()
    if moments:
        for entries in optimizer.state.values():
            entries |= {key: value.double() for key, value in entries.items() if value.ndim}
    assert all(torch.equal(a.double(), b.double()) for a, b in zip(before.values(), model.state_dict().values()))
    bank.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value.double(), before[name].double()), name
        assert value.dtype == (torch.float64 if before[name].is_floating_point() else before[name].dtype)
    for number, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value.double(), state[number][key].double()) for key, value in entries.items())


def test_an_optimizer_that_moves_weights_without_gradient_is_held(bank):
    class Drift(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p].setdefault("seen", torch.zeros_like(p)).add_(1)
                    p.add_(0.1)

    model, optimizer = bank.model, Drift(bank.model.parameters())
    optimizer.step()
    bank.attach(optimizer)
    before, state = model.block2.conv1.weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    bank.drop(GONE)
    for seed in range(3):
        train_step(model, optimizer, seed)
        assert not model.block2.conv1.weight.detach()[[0, 5]].any()
        assert not model.block2.conv2.weight.detach()[:, [0, 5]].any()
    bank.restore()
    assert torch.equal(model.block2.conv1.weight.detach()[[0, 5]], before[[0, 5]])
    assert not torch.equal(model.block2.conv1.weight.detach()[[1]], before[[1]])
    index = [p is model.block2.conv1.weight for p in model.parameters()].index(True)
    seen = optimizer.state_dict()["state"][index]["seen"]
    assert torch.equal(seen[[0, 5]], state["state"][index]["seen"][[0, 5]])
    assert (seen[[1]] == 4).all()


@pytest.mark.parametrize("how", ["keep", "zero", "random"])
def test_consumer_slices_on_return(bank, how):
    model = bank.model
    before = model.block2.conv2.weight.detach().clone()
    bank.drop({"block2.conv1": [0, 5]})
    bank.restore(tr.Reinit(consumers=how))
    now = model.block2.conv2.weight.detach()
    assert torch.equal(now[:, 1:5], before[:, 1:5])
    if how == "keep":
        assert torch.equal(now, before)
    elif how == "zero":
        assert not now[:, [0, 5]].any()
    else:
        ratio = now[:, [0, 5]].square().mean() / before[:, 1:5].square().mean()
        assert not torch.equal(now[:, [0, 5]], before[:, [0, 5]])
        assert 0.5 < ratio < 2


@pytest.mark.parametrize("how", ["zero", "keep"])
def test_biases_and_norm_entries_on_return(how):
    model = build("plain-norm")[0]
    bank = tr.find_filters(model, inputs()[0], skip=None)
    before = copy.deepcopy(model.state_dict())
    bank.drop({"3": [1]})
    bank.restore(tr.Reinit(bias=how, consumers="keep", norms="keep" if how == "keep" else "reset"))
    after = model.state_dict()
    if how == "keep":
        assert all(torch.equal(after[k], before[k]) for k in before if k != "3.weight")
    else:
        assert after["3.bias"][1] == 0
        assert [after[f"4.{k}"][1].item() for k in ("weight", "bias", "running_mean", "running_var")] == [1, 0, 0, 1]
        assert torch.equal(after["3.bias"][2:], before["3.bias"][2:])


@pytest.mark.parametrize("method", tr.METHODS)
def test_methods_of_return(bank, method):
    layer = bank["block2.conv1"]
    old = layer.rows.clone()
    bank.drop({layer.name: [0, 5]})
    notes = bank.restore(method)
    assert notes[0].startswith("block2.conv1: 2 back, ")
    assert torch.equal(layer.rows[1:5], old[1:5])
    if method == "zero":
        assert not layer.rows[[0, 5]].any()
    elif method == "keep":
        assert torch.equal(layer.rows, old)
    else:
        assert (layer.rows[[0, 5]] != old[[0, 5]]).any(dim=1).all()
        cosines = torch.cosine_similarity(layer.rows[[0, 5]], old[[0, 5]]).abs()
        assert (cosines < 1e-5).all() if method == "orthogonal" else (cosines > 1e-5).all()


def test_grouped_convolutions_come_back_orthogonal_inside_their_group():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 3, 1), nn.Flatten(), nn.Linear(108, 2)
    )
    bank = tr.find_filters(model, inputs()[0])
    old = bank["1"].rows.clone()
    bank.drop({"1": [0, 1, 6]})
    bank.restore("orthogonal")
    unit, reference = (nn.functional.normalize(x) for x in (bank["1"].rows, old))
    assert (unit[[0, 1]] @ reference[:4].T).abs().max() < 1e-5
    assert (unit[[6]] @ reference[4:].T).abs().max() < 1e-5
    assert torch.equal(bank["1"].rows[[2, 3, 4, 5, 7]], old[[2, 3, 4, 5, 7]])


def test_the_table_reads_well():
    bank = tr.find_filters(Residual(), inputs()[0])
    lines = str(bank).splitlines()
    assert lines[0].split() == ["layer", "filters", "d", "ranked", "route", "dropped", "now", "why"]
    assert lines[2].split() == ["stem", "4", "27", "no", "masked", "0", "skipped"]
    assert len({line.index(value) for line, value in zip(lines[2:4], ("masked", "narrow"))}) == 1
