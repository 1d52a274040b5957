"""Compact equals masked: the same numbers from tensors that are really smaller (invariant 3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from tests.architectures import Architecture, architectures
from tests.nets import OPTIMIZERS, build, inputs
from tests.twins import Twins

torch.set_num_threads(1)

ELEMENTWISE = {
    **OPTIMIZERS,
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1, weight_decay=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, t0=2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "foreach momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
}

# For networks in which a bias stands under a norm: its gradient is rounding noise, which a division by the root of its
# own square would make as large as a gradient.
STEADY = {
    **{name: ELEMENTWISE[name] for name in ("sgd", "momentum", "nesterov", "adagrad", "asgd")},
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, amsgrad=True, eps=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, eps=1e-2),
}


def random_filters(bank: tr.FilterBank, seed: int, share: float = 0.6) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    gone = {}
    for layer in bank.layers:
        count = int(torch.randint(0, 1 + int(layer.filters * share), (), generator=generator))
        if layer.droppable and count:
            gone[layer.name] = torch.randperm(layer.filters, generator=generator)[:count].tolist()
    return gone


def steps(twins: Twins, batches) -> None:
    def train(images, labels):
        def step(model, optimizer):
            optimizer.zero_grad()
            output = model(images)
            nn.functional.cross_entropy(output, labels).backward()
            optimizer.step()
            return output.detach()

        return step

    for images, labels in batches:
        twins.each(train(images, labels))


def evaluated(twins: Twins, images) -> None:
    def step(model, optimizer):
        with torch.no_grad():
            output = model.eval()(images)
        model.train()
        return output

    twins.each(step)


def double(seed: int):
    return inputs(seed, dtype=torch.float64)


@settings(max_examples=60, phases=[Phase.explicit, Phase.generate])
@given(architectures, st.integers(0, 999), st.sampled_from(sorted(STEADY)), st.data())
def test_any_architecture(architecture: Architecture, seed: int, optimizer: str, data):
    """Two cycles with steps before, inside and after, on whatever routes the flow finds, some made scatter by hand."""
    model = architecture.build().double()
    example = architecture.inputs(0)[0]
    bank = tr.find_filters(model, example, skip=None)
    routes, heads = {}, {}
    none_narrow = not any(layer.route == "narrow" for layer in bank.layers)
    for layer in bank.layers:
        if layer.route == "masked" and (none_narrow or data.draw(st.booleans())):
            routes[layer.name] = "scatter"
            norm = layer.name.removesuffix("conv") + "norm"
            if norm in bank.flow.sites and data.draw(st.booleans()):
                heads[layer.name] = (layer.name, norm)
    twins = Twins(model, example, STEADY[optimizer], routes=routes, heads=heads)
    if data.draw(st.booleans()):
        steps(twins, [architecture.inputs(1)])
    for cycle in range(2):
        twins.drop(random_filters(bank, seed + cycle))
        steps(twins, [architecture.inputs(cycle + k) for k in range(2, 4)])
        evaluated(twins, architecture.inputs(9)[0])
        twins.restore(data.draw(st.sampled_from([None, *tr.METHODS])))
        steps(twins, [architecture.inputs(cycle + 5)])


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
@pytest.mark.parametrize("net", ["plain", "residual"])
def test_every_elementwise_optimizer(net, optimizer):
    twins = Twins(build(net)[0].double(), double(0)[0], ELEMENTWISE[optimizer])
    steps(twins, [double(1)])
    twins.drop(random_filters(twins.banks["masked"], 5))
    assert twins.smaller
    steps(twins, map(double, range(2, 5)))
    evaluated(twins, double(9)[0])
    twins.restore("orthogonal")
    steps(twins, map(double, range(5, 7)))
