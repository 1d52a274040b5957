"""Compact equals masked: the same numbers from tensors that are really smaller (invariant 3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from tests.architectures import Architecture, architectures
from tests.families import FAMILIES
from tests.nets import NETS, OPTIMIZERS, build, inputs
from tests.twins import Twins, assert_all_close, flat_state

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


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
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


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_net(net, seed):
    """Outputs, gradients, weights after steps and after each way to return, in two cycles."""
    twins = Twins(build(net)[0].double(), double(0)[0], STEADY["nesterov"])
    steps(twins, [double(1)])
    for cycle, reinit in enumerate([tr.Reinit("orthogonal", consumers="random"), tr.Reinit("released", norms="keep")]):
        twins.drop(random_filters(twins.banks["masked"], seed + cycle))
        assert twins.smaller
        steps(twins, map(double, range(2, 4)))
        evaluated(twins, double(9)[0])
        twins.restore(reinit)
        steps(twins, [double(5)])


def clipped(model, optimizer):
    optimizer.zero_grad(set_to_none=False)
    output = model(double(1)[0])
    nn.functional.cross_entropy(output, double(1)[1]).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    optimizer.step()
    return torch.cat([output.detach().flatten(), norm[None]])


def accumulated(model, optimizer):
    """Over a whole number of steps and one more: gradients wait while filters go and come."""
    for seed in (1, 2, 3):
        nn.functional.cross_entropy(model(double(seed)[0]), double(seed)[1]).backward()
        if seed == 2:
            optimizer.step()
            optimizer.zero_grad()


def read_weights(model, optimizer):
    """A loss that reads weights: it must see the sub-network only."""
    optimizer.zero_grad()
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    loss = nn.functional.cross_entropy(model(double(1)[0]), double(1)[1]) + 0.01 * sum(
        w.square().sum() for w in weights
    )
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("loop", [clipped, accumulated, read_weights])
@pytest.mark.parametrize("net", ["plain", "residual"])
def test_every_loop(net, loop):
    twins = Twins(build(net)[0].double(), double(0)[0], STEADY["momentum"])
    twins.each(loop)
    for reinit in (None, "orthogonal"):
        twins.drop(random_filters(twins.banks["masked"], 4))
        twins.each(loop)
        twins.each(loop)
        twins.restore(reinit)
        twins.each(loop)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    """With a GradScaler for float16; the numbers agree as far as half precision goes."""
    twins = Twins(build("residual")[0], inputs(0)[0], STEADY["momentum"], tolerance={"rtol": 0.02, "atol": 0.02})
    scalers = {id(model): torch.amp.GradScaler("cpu", init_scale=256.0) for model in twins.models.values()}

    def step(model, optimizer):
        scaler = scalers[id(model)]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            output = model(inputs(1)[0])
            loss = nn.functional.cross_entropy(output, inputs(1)[1])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    twins.each(step)
    twins.drop(random_filters(twins.banks["masked"], 4))
    for _ in range(3):
        twins.each(step)
    twins.restore()
    twins.each(step)


@pytest.mark.parametrize("net", ["plain-norm", "residual"])
def test_channels_last(net):
    twins = Twins(
        build(net)[0].double().to(memory_format=torch.channels_last),
        *(double(0)[0], STEADY["momentum"]),
        routes={"stem": "scatter", "block1.conv2": "scatter"} if net == "residual" else {},
    )

    def step(model, optimizer):
        optimizer.zero_grad()
        output = model(double(1)[0].to(memory_format=torch.channels_last))
        nn.functional.cross_entropy(output, double(1)[1]).backward()
        optimizer.step()
        return output.detach()

    twins.each(step)
    twins.drop(random_filters(twins.banks["masked"], 4))
    weights = [p for p in twins.models["compact"].parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    twins.each(step)
    twins.restore("orthogonal")
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    twins.each(step)


def test_parameter_groups_and_several_optimizers():
    model = build("residual")[0].double()

    def groups(parameters):
        half = len(parameters) // 2
        return torch.optim.SGD(
            [{"params": parameters[:half], "lr": 0.1}, {"params": parameters[half:], "weight_decay": 0.1}],
            lr=0.02,
            momentum=0.9,
        )

    twins = Twins(model, double(0)[0], groups)
    steps(twins, [double(1)])
    twins.drop(random_filters(twins.banks["masked"], 4))
    steps(twins, [double(2), double(3)])
    twins.restore()
    steps(twins, [double(4)])
    results = []
    for mode in ("masked", "compact"):
        model = build("residual")[0].double()
        own = list(model.block1.parameters())
        rest = [p for name, p in model.named_parameters() if not name.startswith("block1")]
        optimizers = [torch.optim.Adam(own, lr=0.01), torch.optim.SGD(rest, lr=0.05, momentum=0.9)]
        bank = tr.find_filters(model, double(0)[0])
        bank.attach(optimizers)

        def step(model=model, optimizers=optimizers):
            nn.functional.cross_entropy(model(double(1)[0]), double(1)[1]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        step()
        bank.drop({"block1.conv1": [3], "block2.conv1": [0, 5]}, mode=mode)
        step()
        step()
        bank.restore("orthogonal")
        step()
        results.append(
            {**model.state_dict(), **{f"{k}{n}": v for k, o in enumerate(optimizers) for n, v in flat_state(o).items()}}
        )
    assert_all_close(*results, "several optimizers")


def test_one_filter_left_is_held_not_narrow():
    """A tensor with one channel would be broadcast silently by whoever still expects more."""
    model = build("plain")[0].double()
    twins = Twins(model, double(0)[0], STEADY["momentum"])
    twins.drop({"0": [1, 2, 3], "2": [0, 5]})
    weights = [tuple(twins.models["compact"][k].weight.shape[:2]) for k in (0, 2, 4)]
    assert weights == [(4, 3), (4, 4), (5, 4)]
    steps(twins, [double(1), double(2)])
    twins.restore("orthogonal")
    steps(twins, [double(3)])
    twins.drop({"0": [1, 2, 3]})
    assert twins.smaller == 0
    steps(twins, [double(1), double(2)])
    twins.restore()


class Sum(nn.Module):
    """A convolution that runs narrow and is put back to full width, and one that is read narrow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(k, 64, 1) for k in (3, 64, 64))
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        x = self.a(x).tanh()
        return self.head((x + self.c(self.b(x).tanh())).mean((-2, -1)))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batch", "single"])
def test_transforms_of_functions_find_what_autograd_does(batch):
    """Gradients of single samples, Jacobians and Hessians by ``torch.func``, of a network with a scattered layer."""
    torch.manual_seed(0)
    model = Sum().double()
    bank = tr.find_filters(model, torch.ones(1, 3, 2, 2, dtype=torch.double))
    bank.drop({"b": [0, 5], "c": [1, 2, 63]}, mode="compact")
    assert bank["c"].route == "scatter"
    assert model.c.weight.shape == (61, 62, 1, 1)
    parameters = dict(model.named_parameters())
    images = torch.randn(*batch, 3, 2, 2, dtype=torch.double)
    singles = images.view(-1, 3, 2, 2)

    def loss(weights, image):
        return torch.func.functional_call(model, weights, (image,)).square().sum()

    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, singles)
    for number, image in enumerate(singles):
        for name, gradient in zip(parameters, torch.autograd.grad(loss(parameters, image), list(parameters.values()))):
            torch.testing.assert_close(by_sample[name][number], gradient, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(images)
    _, forward = torch.func.jvp(model, (images,), (direction,))
    _, by_autograd = torch.autograd.functional.jvp(model, images, direction)
    torch.testing.assert_close(forward, by_autograd, rtol=1e-10, atol=1e-12)

    def score(image):
        return model(image).square().sum()

    torch.testing.assert_close(
        torch.func.hessian(score)(images), torch.autograd.functional.hessian(score, images), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scatter", [False, True])
def test_every_family(family, scatter):
    """All difficulties of the flow, with what meets a barrier masked, or scattered though it is small."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]().double()
    bank = tr.find_filters(model, double(0)[0], skip=None)
    may = [
        layer.name for layer in bank.layers if layer.groups == 1 and layer.droppable and layer.name in bank.flow.heads
    ]
    computed = set(bank.flow.computed)
    routes = {layer.name: "scatter" for layer in bank.layers if layer.route == "masked" and layer.name in may}
    routes = {name: route for name, route in routes.items() if scatter and name not in computed}
    if not routes and (scatter or all(layer.route == "masked" for layer in bank.layers)):
        pytest.skip("nothing to do")
    twins = Twins(model, double(0)[0], STEADY["momentum"], routes=routes)
    steps(twins, [double(1)])
    for cycle in range(3):
        twins.drop(random_filters(twins.banks["masked"], 7 + cycle, 0.5))
        steps(twins, [double(2 + cycle), double(3 + cycle)])
        evaluated(twins, double(9)[0])
        twins.restore([None, "orthogonal", "random"][cycle])
    steps(twins, [double(5)])
