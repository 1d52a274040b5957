"""What criteria that read images do with a model, and with wrong batches, losses and models."""

from __future__ import annotations

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchreaper as tr
from tests.nets import Residual, build, inputs, plain
from torchreaper.criteria.data import FromData, measuring

NAMES = sorted(name for name in tr.criteria.names() if tr.criteria.needs_data(name))
DATA = [inputs(1), inputs(2, 4)]
every = pytest.mark.parametrize("name", NAMES)


def bank_of(model=None):
    return tr.find_filters(model or build("residual")[0], inputs()[0])


def state_of(model):
    parameters = {name: (p.detach().clone(), p.grad, p.requires_grad) for name, p in model.named_parameters()}
    return parameters, {name: b.clone() for name, b in model.named_buffers()}, [m.training for m in model.modules()]


class Restless(Residual):
    """Draws random numbers, counts and keeps things, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last = None

    def forward(self, x):
        self.calls += 1
        self.last = F.dropout(x, 0.5, training=True) * random.random() * float(np.random.rand())
        return super().forward(x + 0 * self.last)


@every
@pytest.mark.parametrize("grad", [True, False])
def test_the_model_is_left_exactly_as_it_was(name, grad):
    torch.manual_seed(0)
    model = Restless()
    bank = bank_of(model)
    model.train()
    model.block1.eval()  # modes may be mixed
    F.cross_entropy(model(inputs()[0]), inputs()[1]).backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
    before, last = state_of(model), model.last
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    loader = DataLoader(TensorDataset(*inputs(1)), batch_size=3, shuffle=True)
    with torch.set_grad_enabled(grad):
        tr.criteria.make(name, loader).scores(bank)
    after = state_of(model)
    for key, (value, gradient, requires) in before[0].items():
        assert torch.equal(after[0][key][0], value)
        assert after[0][key][1] is gradient
        assert torch.equal(gradient, gradients[key])
        assert after[0][key][2] == requires
    assert all(torch.equal(after[1][key], value) for key, value in before[1].items())
    assert after[2] == before[2]
    assert model.last is last
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_pythons_own_random_state_is_put_back():
    """By itself: the checks of annotations in these tests draw from it too."""
    state = random.getstate()
    with measuring(Restless()):
        random.random()
    assert random.getstate() == state


@every
def test_a_failure_leaves_the_model_as_it_was(name):
    model, _ = build("residual")
    bank, before = bank_of(model), deepcopy(model.state_dict())

    def failing(outputs, targets):
        raise ValueError("no such target")

    wrong = [inputs(1), (torch.randn(2, 5, 8, 8), inputs(1)[1][:2])]
    for criterion in (tr.criteria.make(name, wrong), tr.criteria.make(name, DATA, failing)):
        reads_loss = name not in ("mean-activation", "apoz", "activation-correlation", "oracle")
        if criterion.batches is DATA and not reads_loss:
            continue
        with pytest.raises(tr.ReaperError):
            criterion.scores(bank)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not bank.dropped


@every
def test_batch_sizes_do_not_matter(name):
    """Means over samples, however they are dealt out; of the Hessian, all but its draws."""
    if name == "hessian":
        return
    model, _ = build("residual")
    model, images, labels = model.double(), inputs(1, 6, torch.float64)[0], inputs(1)[1]
    bank = bank_of(model)
    whole = tr.criteria.make(name, [(images, labels)]).scores(bank)
    parts = tr.criteria.make(name, [(images[:1], labels[:1]), (images[1:], labels[1:])]).scores(bank)
    for layer, values in whole.items():
        torch.testing.assert_close(parts[layer], values, rtol=1e-9, atol=1e-12)


def test_no_more_batches_are_read_than_asked_for():
    asked = []

    class Watched:
        def __iter__(self):
            for number in range(5):
                asked.append(number)
                yield inputs(number)

    tr.criteria.APoZ(Watched(), max_batches=2).scores(bank_of())
    assert asked == [0, 1]


@every
def test_a_subset_of_the_batches(name):
    bank = bank_of()
    kind = type(tr.criteria.make(name, DATA))
    options = {"measure": "loss"} if name == "oracle-loss" else {}
    state = bank.generator.get_state()
    first = kind([DATA[0]], **options).scores(bank)
    bank.generator.set_state(state)
    limited = kind(DATA, max_batches=1, **options).scores(bank)
    for layer, values in first.items():
        assert torch.equal(limited[layer], values)


@every
def test_inside_inference_mode(name):
    bank = bank_of()
    state = bank.generator.get_state()
    expected = tr.criteria.make(name, DATA).scores(bank)
    bank.generator.set_state(state)
    with torch.inference_mode():
        batches = [(images.clone(), labels.clone()) for images, labels in DATA]  # made there, they carry no gradients
        found = tr.criteria.make(name, batches).scores(bank)
    for layer, values in expected.items():
        torch.testing.assert_close(found[layer], values, rtol=1e-5, atol=1e-6)


@every
def test_inputs_as_tuples_and_dicts(name):
    class Named(Residual):
        def forward(self, image, scale=1.0):
            return super().forward(image * scale)

    torch.manual_seed(0)
    bank = bank_of(Named())
    images, labels = inputs(1)
    found = []
    for given in (images, (images,), {"image": images}, (images, 1.0)):
        state = bank.generator.get_state()
        found.append(tr.criteria.make(name, [(given, labels)]).scores(bank))
        bank.generator.set_state(state)
    for other in found[1:]:
        assert all(torch.equal(other[layer], values) for layer, values in found[0].items())


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_scores_near_the_single_ones(name, dtype):
    model, _ = build("residual")
    single = tr.criteria.make(name, DATA).scores(bank_of(model))
    scores = tr.criteria.make(name, DATA).scores(bank_of(deepcopy(model).to(dtype)))  # batches stay float32
    for values in scores.values():
        assert values.dtype == torch.float64
        assert values.isfinite().all()
    if name in ("mean-activation", "apoz", "taylor"):
        for layer, values in single.items():
            torch.testing.assert_close(scores[layer], values, rtol=0.1, atol=0.1)


@every
def test_scores_are_float64_on_the_cpu_without_gradient(name):
    for values in tr.criteria.make(name, DATA).scores(bank_of()).values():
        assert (values.dtype, values.device.type, values.requires_grad) == (torch.float64, "cpu", False)


@every
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (5, "batches=int: must give .inputs, targets. when iterated over"),
        (torch.zeros(3), "batches=Tensor: must give"),
        (iter(DATA), "batches=list_iterator: can be read only once"),
        ((batch for batch in DATA), "batches=generator: can be read only once"),
        ("data", "batches=str: must give"),
    ],
)
def test_what_is_no_batches_is_refused_at_once(name, batches, message):
    with pytest.raises(tr.ReaperError, match=message):
        tr.criteria.make(name, batches)


@every
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches: there are none; pass at least one"),
        ([torch.zeros(2, 3, 8, 8)], "batches: batch 0 is a Tensor; must be a pair .inputs, targets."),
        ([(torch.zeros(2, 3, 8, 8),)], "batches: batch 0 is a tuple of 1; must be a pair"),
        ([{"image": 1}], "batches: batch 0 is a dict of 1; must be a pair"),
        ([inputs(), (torch.zeros(0, 3, 8, 8), torch.zeros(0).long())], "batches: batch 1 has no samples"),
        (
            [(torch.zeros(2, 5, 8, 8), torch.zeros(2).long())],
            r"batches: Residual does not run on batch 0, inputs \[2, 5, 8, 8\]",
        ),
        ([(("a", "b"), torch.zeros(2).long())], "batches: batch 0 has no samples"),
    ],
)
def test_wrong_batches_are_named(name, batches, message):
    with pytest.raises(tr.ReaperError, match=message):
        tr.criteria.make(name, batches).scores(bank_of())


LOSSES = [name for name in NAMES if name in ("gradient", "taylor", "hessian", "oracle-loss")]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda o, t: F.cross_entropy(o, t, reduction="none"),
            r"loss_fn: gives a tensor of shape \[6\]; must give one number",
        ),
        (lambda o, t: 1.0, "loss_fn: gives a float; must give one number"),
        (lambda o, t: F.cross_entropy(o, t) * float("nan"), "loss_fn: gives nan on batch 0"),
        (lambda o, t: F.cross_entropy(o, t) / 0, "loss_fn: gives inf on batch 0"),
        (lambda o, t: o["logits"], "loss_fn: fails on batch 0"),
        (lambda o, t: F.cross_entropy(o, t + 5), "loss_fn: fails on batch 0 .*Target .* is out of bounds"),
    ],
)
def test_wrong_losses_are_named(name, loss, message):
    with pytest.raises(tr.ReaperError, match=message):
        tr.criteria.make(name, DATA, loss).scores(bank_of())


@pytest.mark.parametrize("name", ["gradient", "taylor", "hessian"])
def test_a_loss_without_a_way_back(name):
    with pytest.raises(tr.ReaperError, match=r"loss_fn: gives a loss that cannot be differentiated"):
        tr.criteria.make(name, DATA, lambda o, t: F.cross_entropy(o.detach(), t)).scores(bank_of())


def test_a_loss_that_is_no_function():
    with pytest.raises(tr.ReaperError, match=r"loss_fn='mse': must be a function of .outputs, targets."):
        tr.criteria.make("taylor", DATA, "mse")


@pytest.mark.parametrize("most", [0, -2, True])
def test_wrong_number_of_batches(most):
    with pytest.raises(tr.ReaperError, match=rf"max_batches={most}: must be a whole number of at least 1, or None"):
        tr.criteria.Taylor(DATA, max_batches=most)


@every
def test_activations_that_are_not_finite_are_named(name):
    model = plain()
    with torch.no_grad():
        model[3].bias[2] = torch.nan
    with pytest.raises(tr.ReaperError, match=r"layer '.*': its feature map is not finite on batch 0|nan|not finite"):
        tr.criteria.make(name, DATA).scores(bank_of(model))


@every
def test_infinite_inputs_are_an_error(name):
    images, labels = inputs(1)
    images[0, 0, 0, 0] = torch.inf
    with pytest.raises(tr.ReaperError, match=r"not finite|nan"):
        tr.criteria.make(name, [(images, labels)]).scores(bank_of())


@every
def test_a_layer_of_one_filter_is_not_ranked_and_does_not_disturb(name):
    torch.manual_seed(0)
    bank = bank_of(plain(widths=(4, 1, 5)))
    assert bank["3"].reason == "has one filter only"
    assert list(tr.criteria.make(name, DATA).scores(bank)) == ["6"]


@every
def test_a_filter_of_zero_norm_gets_a_finite_score(name):
    model, _ = build("plain-norm")
    with torch.no_grad():
        model[3].weight[2].zero_()
        model[3].bias[2] = 0
        model[4].bias[2] = 0
        model[4].running_mean[2] = 0
    scores = tr.criteria.make(name, DATA).scores(bank_of(model))["3"]
    assert scores.isfinite().all()
    if name in ("mean-activation", "apoz", "taylor"):
        assert scores[2] == scores.max()  # it does nothing, so it goes first
    if name in ("hessian", "oracle-loss", "activation-correlation"):
        assert scores[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in tr.criteria.names() if not tr.criteria.needs_data(n)])
def test_a_filter_of_zero_norm_gets_a_finite_score_without_data_too(name):
    model, _ = build("plain-norm")
    with torch.no_grad():
        model[3].weight[2].zero_()
    scores = tr.criteria.make(name).scores(bank_of(model))["3"]
    assert scores.isfinite().all()
    if name.startswith("orthogonality"):
        assert scores[2] == 0


class OnlyInTraining(nn.Module):
    """GoogLeNet's kind of head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(4, 6, 3)
        self.fc, self.side = nn.Linear(5, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x).relu()
        y = self.fc(self.second(x).relu().mean((2, 3)))
        return (y, self.side(self.head(x).relu().mean((2, 3)))) if self.training else y


@pytest.mark.parametrize("name", ["mean-activation", "apoz", "activation-correlation", "taylor"])
def test_a_layer_that_only_training_calls_is_named(name):
    with pytest.raises(tr.ReaperError, match=r"layer 'head': is not called in evaluation mode.*name it in skip"):
        tr.criteria.make(name, DATA).scores(bank_of(OnlyInTraining()))


@every
def test_a_layer_that_is_called_twice(name):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x = self.again(self.first(x).relu()).relu()
            return self.fc(self.again(x).relu().mean((2, 3)))

    torch.manual_seed(0)
    scores = tr.criteria.make(name, DATA).scores(bank_of(Twice()))
    assert scores["again"].isfinite().all()
    assert scores["again"].shape == (4,)


@every
def test_what_cannot_be_traced_is_ranked_too(name):
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
            self.norm, self.fc = nn.BatchNorm2d(5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.norm(self.second(self.first(x).relu())).relu()
            return self.fc((x * 2 if x.sum() > 1e9 else x).mean((2, 3)))

    torch.manual_seed(0)
    scores = tr.criteria.make(name, DATA).scores(bank_of(Untraceable()))
    assert scores["second"].isfinite().all()


@every
def test_a_model_compiled_in_place_is_measured_all_the_same(name):
    """A compiled call would not see hooks that are newer than itself: the oracle would find that nothing matters."""
    model, _ = build("residual")
    expected = tr.criteria.make(name, DATA).scores(bank_of(deepcopy(model)))
    bank = bank_of(model)
    model.compile(backend="eager")
    model.block2.compile(backend="eager")
    with torch.no_grad():
        model.eval()(inputs()[0])
        model.train()(inputs()[0])
    for key, value in bank_of(build("residual")[0]).model.state_dict().items():
        model.state_dict()[key].copy_(value)  # running statistics have moved
    found = tr.criteria.make(name, DATA).scores(bank)
    for layer, values in expected.items():
        torch.testing.assert_close(found[layer], values, rtol=1e-4, atol=1e-5)


def test_a_users_own_in_three_lines():
    """As the documentation shows it."""

    class LargestLoss(FromData):
        def scores(self, bank):
            batch = next(self.read(bank.model))
            return {layer.name: layer.rows.norm(dim=1) * len(batch.targets) for layer in bank.ranked}

    bank = bank_of()
    assert set(LargestLoss(DATA).scores(bank)) == {layer.name for layer in bank.ranked}
