"""Optimizer state in sub-network phases: state born in one, and checkpoints of it."""

from __future__ import annotations

import copy

import pytest
import torch

import torchreaper as tr
from tests.nets import build, inputs, plain, train_step
from tests.test_compact import ELEMENTWISE, double, steps
from tests.twins import Twins, flat_state

torch.set_num_threads(1)

MODES = ("masked", "compact")
GONE = {"block1.conv1": [3], "block2.conv1": [0, 5], "stem": [1]}
STATELESS = ("sgd",)


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_state_that_first_arises_in_a_phase(optimizer):
    """The first step in the phase: afterwards it is full, and the missing part what a new optimizer holds."""
    twins = Twins(build("residual")[0].double(), double(0)[0], ELEMENTWISE[optimizer])
    twins.drop(GONE)
    steps(twins, [double(1), double(2)])
    inside = {mode: copy.deepcopy(flat_state(o)) for mode, o in twins.optimizers.items()}
    twins.restore()
    for mode, model in twins.models.items():
        optimizer_ = twins.optimizers[mode]
        fresh = ELEMENTWISE[optimizer]([torch.nn.Parameter(p.detach().clone()) for p in model.parameters()])
        for p in fresh.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        outside = flat_state(optimizer_)
        assert outside.keys() == inside[mode].keys()
        for name, value in outside.items():
            assert torch.equal(value, inside[mode][name]), f"{name}: the state dict in the phase was not the full one"
        conv = [p is model.block2.conv1.weight for p in model.parameters()].index(True)
        weight = model.block2.conv1.weight
        entries = {k: v for k, v in optimizer_.state[weight].items() if v is not None and v.shape == weight.shape}
        assert bool(entries) == (optimizer not in STATELESS), conv
        expected = {"sum": 0.1, "step_size": 0.01}
        for key, value in entries.items():
            assert (value[[0, 5]] == expected.get(key, 0.0)).all(), key
            assert (value[1:5] != expected.get(key, 0.0)).any(), key
    steps(twins, [double(3)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "rmsprop"])
def test_a_checkpoint_of_such_state_is_loaded_like_any_other(mode, optimizer):
    def fresh(seed):
        model, opt = build("residual", optimizer, seed=seed)
        settings = {"full": 1, "sub": 3, "cycles": 2, "subnetwork": mode}
        return model, opt, tr.RePr(model, opt, inputs()[0], **settings)

    def run(model, opt, scheme, first, last):
        for epoch in range(first, last):
            train_step(model, opt, epoch)
            scheme.step()
        return model.state_dict()

    one = fresh(0)
    one[2].step()  # the filters go before the first optimizer step
    assert one[2].bank.mode == mode
    run(*one, 0, 2)
    saved = [copy.deepcopy(part.state_dict()) for part in one]
    whole = {k: tuple(p.shape) for k, p in enumerate(build("residual", optimizer)[0].parameters())}
    for number, state in saved[1]["state"].items():
        assert all(tuple(v.shape) in ((), whole[number]) for v in state.values() if v is not None)
    other = fresh(5)
    for part, state in zip(other, saved):
        part.load_state_dict(state)
    expected, found = run(*one, 2, 9), run(*other, 2, 9)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_state_dict_does_not_touch_the_live_state():
    model, optimizer = build("residual", "adam")
    bank = tr.find_filters(model, inputs()[0])
    bank.attach(optimizer)
    train_step(model, optimizer, 0)
    bank.drop(GONE, mode="compact")
    weight = model.block2.conv1.weight
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    optimizer.state_dict()
    for key, value in optimizer.state[weight].items():
        assert torch.equal(value, before[key])
        assert value.shape in ((), weight.shape)


def test_a_parameter_of_no_dimension_and_one_of_another_optimizer():
    """A step counter has the shape of a scalar parameter; neither is anybody's filter."""
    model = plain()
    model.register_parameter("temperature", torch.nn.Parameter(torch.tensor(1.0)))
    mine = [*model[3].parameters(), model.temperature]
    rest = [p for p in model.parameters() if all(p is not one for one in mine)]
    optimizers = [torch.optim.Adam(mine, lr=0.01), torch.optim.SGD(rest, lr=0.01, momentum=0.9)]
    bank = tr.find_filters(model, inputs()[0])
    bank.attach(optimizers)

    def step():
        (torch.nn.functional.cross_entropy(model(inputs()[0]), inputs()[1]) * model.temperature).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step()
    before = [copy.deepcopy(o.state_dict()["state"]) for o in optimizers]
    with bank.without({"3": [0, 4]}, "compact"):
        assert optimizers[0].state[model[3].weight]["exp_avg"].shape == (4, 4, 3, 3)
        assert optimizers[1].state[model[6].weight]["momentum_buffer"].shape == (5, 4, 3, 3)
        for state, optimizer in zip(before, optimizers):
            for number, entries in optimizer.state_dict()["state"].items():
                assert all(torch.equal(entries[key], state[number][key]) for key in entries)
        step()
    step()


def test_masked_and_compact_checkpoints_are_the_same_thing():
    """Saved compact and resumed masked, and the other way round: the same run, to rounding."""

    def fresh(mode):
        model, _ = build("residual")
        model = model.double()
        opt = torch.optim.AdamW(model.parameters(), lr=0.01)
        settings = {"full": 2, "sub": 3, "cycles": 2, "subnetwork": mode}
        return model, opt, tr.RePr(model, opt, double(0)[0], **settings)

    def run(model, opt, scheme, first, last):
        for epoch in range(first, last):
            images, labels = double(epoch)
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            opt.step()
            scheme.step()
        return {**model.state_dict(), **flat_state(opt)}

    expected = run(*fresh("masked"), 0, 9)
    for first, second in (MODES, MODES[::-1]):
        one, other = fresh(first), fresh(second)
        run(*one, 0, 4)
        assert one[2].bank.mode == first
        for part, source in zip(other, one):
            part.load_state_dict(copy.deepcopy(source.state_dict()))
        assert other[2].bank.mode == second
        found = run(*other, 4, 9)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-10)
