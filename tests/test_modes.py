"""Which way `auto` chooses, and why."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.nets import build, inputs, looped, plain, train_step
from torchreaper.state import is_elementwise
from torchreaper.subnetwork.modes import resolve

torch.set_num_threads(1)


class Normalised(torch.optim.SGD):
    """LARS and its like: the step depends on the norm of the whole tensor."""


@tr.elementwise
class Signed(torch.optim.SGD):
    """One's own optimizer that treats every weight by itself."""


class Sharded(nn.Parameter):
    """Stands for a DTensor."""


def resolved(mode: str = "auto", make=lambda p: torch.optim.SGD(p, lr=0.1), model=None) -> tuple[str, str]:
    model = model or build("residual")[0]
    bank = tr.find_filters(model, inputs()[0])
    bank.attach(make(list(model.parameters())))
    return bank.resolve(mode)


ELEMENTWISE = ["SGD", "Adam", "AdamW", "RAdam", "NAdam", "Adamax", "Adagrad", "RMSprop", "Rprop", "ASGD", "Adadelta"]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_torchs_elementwise_optimizers_are_compact(name):
    assert resolved(make=getattr(torch.optim, name)) == ("compact", "")
    assert resolved("masked", getattr(torch.optim, name)) == ("masked", "")


OBSTACLES = {
    "subclass": (lambda p: Normalised(p, lr=0.1), "Normalised is not elementwise"),
    "lbfgs": (torch.optim.LBFGS, "LBFGS is not elementwise"),
    "capturable": (
        lambda p: torch.optim.Adam(p, capturable=True),
        "Adam is capturable, and CUDA graphs keep addresses",
    ),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_other_optimizers_are_masked_and_compact_is_refused(obstacle):
    make, reason = OBSTACLES[obstacle]
    assert resolved(make=make) == ("masked", reason)
    with pytest.raises(tr.ReaperError) as caught:
        resolved("compact", make)
    assert str(caught.value).startswith(f'subnetwork="compact": {reason}; use "masked", or ')
    assert "\n" not in str(caught.value)


def test_one_of_several_optimizers_decides():
    model = build("residual")[0]
    first, *rest = model.parameters()
    bank = tr.find_filters(model, inputs()[0])
    bank.attach([torch.optim.SGD(rest, lr=0.1), torch.optim.LBFGS([first])])
    assert bank.resolve() == ("masked", "LBFGS is not elementwise")


def test_registered_optimizers():
    assert resolved(make=lambda p: Signed(p, lr=0.1)) == ("compact", "")
    assert is_elementwise(Signed([nn.Parameter(torch.ones(1))]))
    assert tr.elementwise(Signed) is Signed
    for wrong in (Signed([nn.Parameter(torch.ones(1))]), int, "SGD"):
        with pytest.raises(tr.ReaperError, match=r"optimizer=.*: must be a class of torch.optim.Optimizer"):
            tr.elementwise(wrong)


def test_parameters_in_one_storage():
    model = plain()
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    at = 0
    for parameter in model.parameters():
        parameter.data = flat[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    assert resolved(model=model) == ("masked", "parameters lie in one flat storage")


def test_parameters_of_another_class():
    model = plain()
    model[0].bias = Sharded(model[0].bias.detach())
    assert resolved(model=model) == ("masked", "parameters are of type Sharded")


def test_nothing_to_narrow():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Softmax(dim=1), nn.Flatten(), nn.Linear(96, 3))
    bank = tr.find_filters(model, inputs()[0], skip=None)
    reason = "no layer can be made smaller (see the table of the bank)"
    mine = [layer for layer in bank.layers if layer.route == "masked"]
    assert resolve("auto", model, mine) == ("masked", reason)
    with pytest.raises(tr.ReaperError, match=r'subnetwork="compact": no layer can be made smaller .*; use "masked"'):
        resolve("compact", model, mine)


def test_without_an_optimizer():
    bank = tr.find_filters(plain(), inputs()[0])
    assert bank.resolve() == ("compact", "")
    with pytest.raises(tr.ReaperError, match="subnetwork='small': must be"):
        bank.resolve("small")


@torch._dynamo.config.patch(recompile_limit=8)  # importing timm.optim sets it to 1,000,000
def test_more_graphs_than_the_compiler_keeps():
    """Each set of widths is a graph; over the limit torch would fall back to eager for good."""
    torch._dynamo.reset()
    model, optimizer = build("residual")
    scheme = tr.RePr(model, optimizer, inputs()[0], full=1, sub=1, cycles=9)
    assert scheme._resolved() == ("compact", ""), "nobody knows yet that it will be compiled"
    called = looped(model, "compiled")
    train_step(called, optimizer, 0)
    limit = torch._dynamo.config.recompile_limit
    assert scheme.bank.resolve(drops=limit - 1) == ("compact", "")
    reason = f"compiled, {limit + 1} graphs would be needed and torch._dynamo.config.recompile_limit is {limit}"
    assert scheme.bank.resolve(drops=limit) == ("masked", reason)
    assert scheme.bank.resolve("compact", drops=limit) == ("compact", ""), "slow, not wrong: by name it is done"
    note = scheme.step().notes[-1]
    assert note == "sub-network: masked: " + reason.replace(str(limit + 1), str(10), 1)
    torch._dynamo.reset()


def test_it_says_what_it_does_and_why(caplog):
    for make, way in [
        (lambda p: torch.optim.SGD(p, lr=0.1), "compact"),
        (lambda p: Normalised(p, lr=0.1), "masked: Normalised is not elementwise"),
    ]:
        model = build("residual")[0]
        caplog.clear()
        with caplog.at_level(logging.INFO, "torchreaper"):
            scheme = tr.RePr(model, make(list(model.parameters())), inputs()[0], full=1, sub=1)
            assert str(scheme).endswith(f"of the multiply-adds; {way}")
            transition = scheme.step()
            assert scheme.bank.mode == way.split(":")[0]
            assert str(scheme).endswith(f"of the multiply-adds; {way}")
        assert transition.notes[-1] == f"sub-network: {way}"
        assert caplog.messages[0].endswith(f"); {way}")
        scheme.step()
        assert scheme.bank.mode is None
        assert scheme.history[1].notes[-1].startswith("block"), "a return does not say it again"


def test_compact_by_name_is_refused_before_anything_is_attached():
    model = build("residual")[0]
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(tr.ReaperError, match=r'subnetwork="compact": LBFGS is not elementwise; use "masked", or tr.el'):
        tr.RePr(model, optimizer, inputs()[0], subnetwork="compact")
    assert not any(m._forward_hooks or m._state_dict_hooks for m in model.modules())
