from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.nets import OPTIMIZERS, build, inputs, train_step
from torchreaper.state import Cut, all_finite, as_optimizers, per_weight_state, reset


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("how", ["zero", "layer-mean", "keep"])
def test_optimizer_state_on_return(optimizer, how):
    model, opt = build("plain-norm", optimizer)
    bank = tr.find_filters(model, inputs()[0])
    bank.attach(opt)
    for seed in range(4):
        train_step(model, opt, seed)
    weight, cut = model[3].weight, Cut(torch.tensor([1, 4]), torch.tensor([], dtype=torch.int64))
    before = {key: state[key].clone() for _, state, key in per_weight_state([opt], weight)}
    bank.drop({"3": [1, 4]})
    bank.restore(tr.Reinit(optimizer_state=how))
    assert (len(before) > 0) == (optimizer != "sgd")
    for _, state, key in per_weight_state([opt], weight):
        mask = cut.mask(weight)
        assert torch.equal(state[key][~mask], before[key][~mask])
        if how == "keep":
            assert torch.equal(state[key], before[key])
        elif how == "layer-mean" and key in ("exp_avg_sq", "square_avg", "max_exp_avg_sq"):
            torch.testing.assert_close(state[key][mask], before[key][~mask].mean().expand(int(mask.sum())))
        else:
            assert not state[key][mask].any()


@pytest.mark.parametrize("mode", ["masked", "compact"])
@pytest.mark.parametrize(
    ("reinit", "spoil", "named"),
    [
        (tr.Reinit(optimizer_state="layer-mean"), "moment", "the optimizer's exp_avg_sq of '3.weight'"),
        (tr.Reinit(consumers="random"), "reader", "'6.weight'"),
    ],
    ids=["moments", "reader"],
)
def test_a_return_from_what_is_not_finite_is_refused_and_changes_nothing(mode, reinit, spoil, named):
    """Adam divides by a second moment: a filter that returned with an infinite one would never move again."""
    model, opt = build("plain-norm", "adamw")
    bank = tr.find_filters(model, inputs()[0])
    bank.attach(opt)
    train_step(model, opt, 0)
    bank.drop({"3": [1, 4]}, mode=mode)
    source = opt.state[model[3].weight]["exp_avg_sq"] if spoil == "moment" else model[6].weight.detach()
    source[0, 0, 0, 0] = torch.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(tr.ReaperError, match=f"^restore: {named} is not finite, training has diverged"):
        bank.restore(reinit)
    assert bank.dropped == {"3": (1, 4)}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    source[0, 0, 0, 0] = 1.0
    assert bank.restore(reinit)


def test_first_adam_step_after_a_return():
    """A second moment of 0 under a large step count: (1 - b1) / sqrt(1 - b2) = 3.2 learning rates."""

    def first_update(how: str) -> float:
        model, opt = build("plain", "sgd")
        opt = torch.optim.Adam(model.parameters(), lr=1e-3)
        bank = tr.find_filters(model, inputs()[0])
        bank.attach(opt)
        for seed in range(300):
            train_step(model, opt, seed)
        for state in opt.state.values():
            state["step"].fill_(100_000)  # late in training, when bias correction is over
        bank.drop({"2": [1, 4]})
        bank.restore(tr.Reinit(consumers="keep", optimizer_state=how))
        before = model[2].weight.detach().clone()
        train_step(model, opt, 999)
        moved = (model[2].weight.detach() - before)[[1, 4]].abs()
        return float(moved[moved > 0].median()) / 1e-3

    assert first_update("zero") == pytest.approx(0.1 / 0.001**0.5, rel=0.25)
    assert first_update("layer-mean") < 1.5


@pytest.mark.parametrize(
    ("optimizer", "key", "value"),
    [
        (lambda p: torch.optim.Rprop(p, lr=0.02), "step_size", 0.02),
        (lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.3), "sum", 0.3),
    ],
)
def test_fresh_is_what_a_new_optimizer_holds(optimizer, key, value):
    weight = nn.Parameter(torch.ones(4, 3))
    opt = optimizer([weight])
    for _ in range(3):
        weight.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        opt.step()
    reset([opt], weight, Cut(torch.tensor([2]), torch.tensor([], dtype=torch.int64)), "zero")
    assert torch.allclose(opt.state[weight][key][2], torch.tensor(value))
    assert not torch.allclose(opt.state[weight][key][1], torch.tensor(value))


def test_optimizers_are_unwrapped_and_checked():
    opt = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    class Wrapper:
        optimizer = opt

    assert as_optimizers([opt, Wrapper()]) == (opt,), "one optimizer twice would store its state twice"
    assert as_optimizers(None) == ()
    with pytest.raises(tr.ReaperError, match=r"optimizer='adam': must be a torch.optim.Optimizer"):
        as_optimizers(["adam"])


def test_an_optimizer_that_takes_no_hooks_is_refused():
    """As timm's Lookahead, which wraps another one."""

    class Wrapping(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    optimizer = Wrapping(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.raises(tr.ReaperError, match="optimizer=Wrapping: does not let torch's hooks see its state, which"):
        as_optimizers(optimizer)


def lookahead(inner):
    """As it is usually written: slow weights of its own beside the state of the one that it wraps."""

    class Lookahead(torch.optim.Optimizer):
        def __init__(self):
            self.optimizer, self.param_groups, self.state = inner, inner.param_groups, defaultdict(dict)

    return Lookahead()


def sam(inner):
    """As it is usually written: two steps of its own, one of which lets the other optimizer move the weights."""

    class SAM(torch.optim.Optimizer):
        def __init__(self):
            super().__init__(inner.param_groups, {"rho": 0.05})
            self.base_optimizer, self.param_groups = inner, inner.param_groups

    return SAM()


@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (
            lookahead,
            "optimizer=Lookahead: keeps state of its own beside that of its 'optimizer', which could not be cut",
        ),
        (
            sam,
            "optimizer=SAM: works through another one, 'base_optimizer', whose state of dropped filters could not be",
        ),
    ],
)
def test_what_works_through_another_optimizer_is_refused(wrapped, said):
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    with pytest.raises(tr.ReaperError, match=said):
        as_optimizers(wrapped(inner))
    assert as_optimizers(inner) == (inner,)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_second_moment_of_0_needs_an_eps(kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    images = torch.ones(2, 3, 8, 8)
    said = r"optimizer: eps=0: would make weights NaN that are held at 0, 0 / 0; set it above 0, such as 1e-8"
    with pytest.raises(tr.ReaperError, match=said):
        tr.RePr(model, kind(model.parameters(), eps=0), images, full=1, sub=1, cycles=1)
    assert not any(module._forward_hooks for module in model.modules())
    bank = tr.find_filters(model, images)
    *owned, last = model.parameters()
    for wrong in (owned[2:3], [owned[-1]]):  # the filters of the second layer, and their columns of the last one
        with pytest.raises(tr.ReaperError, match=said):
            bank.attach(kind([{"params": wrong, "eps": 0}, {"params": [last]}]))
    assert not any(module._forward_hooks for module in model.modules())
    # What no filter has a part in may have what it wants.
    optimizer = kind([{"params": owned}, {"params": [last], "eps": 0}])
    bank.attach(optimizer)
    with bank.without({"1": [0, 2]}):
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 0])).backward()
            optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(700,), (700, 5), (3, 4, 2, 2)])
@pytest.mark.parametrize("power", [1, 2])
def test_mean_outside_a_part(shape, power):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    columns = [] if len(shape) == 1 else [1, 3]
    cut = Cut(torch.tensor([0, 2]), torch.tensor(columns, dtype=torch.int64))
    expected = tensor[~cut.mask(tensor)].double().pow(power).mean()
    assert cut.mean_outside(tensor, power) == pytest.approx(float(expected), rel=1e-12)
    everything = Cut(torch.arange(shape[0]), torch.tensor([], dtype=torch.int64))
    assert everything.mean_outside(tensor) is None


def test_values_are_put_row_by_row():
    tensor = torch.zeros(3, 3, 2, 2).to(memory_format=torch.channels_last)
    cut = Cut(torch.tensor([1]), torch.tensor([2]))
    mask = cut.mask(tensor)
    values = torch.arange(1.0, 1 + int(mask.sum()), dtype=torch.float64)
    cut.put(tensor, values)
    assert torch.equal(tensor[mask], values.float())
    assert not tensor[~mask].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_value_that_is_not_finite_is_seen_anywhere(dtype):
    largest = torch.finfo(dtype).max
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 17, 29):
            values = torch.full((5, 6), largest, dtype=dtype)
            assert all_finite(values)
            values.view(-1)[place] = bad
            assert not all_finite(values)
            assert not all_finite(values.t())
    assert all_finite(torch.empty(0, dtype=dtype))
