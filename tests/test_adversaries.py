"""Models made to deceive the channel flow: masked must be absent, and compact the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import torchreaper as tr
from torchreaper.filters import cuts, dropped_ids

torch.set_num_threads(1)


class Two(nn.Module):
    """Two convolutions side by side; a subclass says what happens to their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
        self.other = nn.Conv2d(3, 8, 3)
        self.g = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.shared = nn.PReLU(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.emb = nn.Embedding(4, 8)
        self.b = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.sc = torch.rand(1, 8, 1, 1).double()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 3)

    def untracked(self, x: Tensor) -> Tensor:
        z = self.other(x)
        return z + z.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.ends(self.c1(x), x)


def case(function):
    return type(function.__name__, (Two,), {"ends": function})


def shared_scale(self, y, x):
    return self.c2(y * self.g) + self.c3(self.untracked(x) * self.g)


def shared_shift(self, y, x):
    return self.c2(y + self.g) + self.c3(self.untracked(x) + self.g)


def shared_slope(self, y, x):
    return self.c2(self.shared(y)) + self.c3(self.shared(self.untracked(x)))


def shared_depthwise(self, y, x):
    return self.c2(self.deep(y)) + self.c3(self.deep(self.untracked(x)))


def depthwise_shared_the_other_way_round(self, y, x):
    u = self.c3(self.deep(self.untracked(x)))
    return self.c2(self.deep(y)) + u


def constant(self, y, x):
    return self.c2(y.relu() * torch.linspace(0, 1, 8).double().view(1, -1, 1, 1))


def plain_attribute(self, y, x):
    return self.c2(y.relu() * self.sc)


def number_of_elements(self, y, x):
    return self.c2(y * (1000.0 / y.numel())) + self.c3(y / torch.numel(y)) + y.nelement()


def flipped(self, y, x):
    return self.c2(torch.flip(y, dims=[3]).flip(dims=(1,)).permute(dims=(0, 1, 3, 2)))


def pooled_with_indices(self, y, x):
    return self.c2(F.max_pool2d(y, 2, return_indices=True)[0])


def gate_of_permuted_rows(self, y, x):
    gate = self.up(torch.relu(self.down(y.mean((2, 3))))).sigmoid()
    return self.c2(y * gate[:, [7, 6, 5, 4, 3, 2, 1, 0]][:, :, None, None])


def gate_that_is_called_again(self, y, x):
    gate = self.up(torch.relu(self.down(y.mean((2, 3))))).sigmoid()[:, :, None, None]
    return self.c2(y * gate) + self.up(x.mean((2, 3)))[:, :5, None, None]


def embedding_as_a_weight(self, y, x):
    return self.c2(y).mean((2, 3)) + F.linear(y.mean((2, 3)), self.emb.weight)[:, :1] + self.emb.weight.sum()


def embedding_called_too(self, y, x):
    feature = F.linear(y.mean((2, 3)), self.emb.weight)
    return feature.sum() + self.emb(torch.zeros(1, dtype=torch.int64)).sum() + self.c2(y)


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x):
        x = x + self.b
        return (x, x.mean()) if self.training else x


class TupleInTraining(Two):
    def __init__(self) -> None:
        super().__init__()
        self.part = Tuple()

    def ends(self, y, x):
        y = self.part(y)
        return self.c2(y[0] if self.training else y)


class Times(nn.Module):
    def forward(self, value):
        return value * 1.5

    def right_inverse(self, value):
        return value / 1.5


class Parametrized(Two):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        for module, name in ((self.c1, "bias"), (self.deep, "bias"), (self.norm, "weight"), (self.up, "bias")):
            parametrize.register_parametrization(module, name, Times())

    def ends(self, y, x):
        y = self.deep(self.norm(y))
        return self.c2(y * self.up(torch.relu(self.down(y.mean((2, 3))))).sigmoid()[:, :, None, None])


class OtherNames(nn.Module):
    """A norm of the user's own, whose tensors are not called as torch's are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.gamma, self.beta, self.training)


class OtherReader(nn.Module):
    """Reads by a tensor that is not its ``weight``, though it has one."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.weight, self.aux, self.both = nn.Parameter(torch.rand(3, 8)), nn.Parameter(torch.rand(3, 8)), both

    def forward(self, x):
        return F.linear(x, self.aux) + (F.linear(x, self.weight) if self.both else 0)


class OtherBias(nn.Conv2d):
    def __init__(self, *args, **options):
        super().__init__(*args, bias=False, **options)
        self.other = nn.Parameter(torch.rand(self.out_channels))

    def forward(self, x):
        return F.conv2d(x, self.weight, self.other, padding=self.padding)


class OwnNorm(Two):
    def __init__(self) -> None:
        super().__init__()
        self.norm = OtherNames(8)

    def ends(self, y, x):
        return self.c2(self.norm(y))


class OwnReader(Two):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = OtherReader(both=False), OtherReader(both=True)

    def ends(self, y, x):
        return self.one(y.mean((2, 3))) + self.two(y.mean((2, 3)))


class OwnBias(Two):
    def __init__(self) -> None:
        super().__init__()
        self.between = OtherBias(8, 8, 3)

    def ends(self, y, x):
        return self.c2(self.between(y))


FUNCTIONS = [
    *(shared_scale, shared_shift, shared_slope, shared_depthwise, depthwise_shared_the_other_way_round, constant),
    *(plain_attribute, number_of_elements, flipped, pooled_with_indices, gate_of_permuted_rows),
    *(gate_that_is_called_again, embedding_as_a_weight, embedding_called_too),
]
CASES = {**{f.__name__: case(f) for f in FUNCTIONS}, "tuple in training": TupleInTraining, "parametrized": Parametrized}
CASES |= {"own norm": OwnNorm, "own reader": OwnReader, "own bias": OwnBias}


def build(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CASES[name]().double()
        return model, torch.randn(2, 3, 8, 8).double()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_absent_and_compact_the_same(name, training):
    outputs = {}
    for mode in ("masked", "auto"):
        model, x = build(name)
        model.train(training)
        bank = tr.find_filters(model, x, skip=None)
        filters = {"c1": [1, 2]}
        with bank.without(filters, mode=mode):
            outputs[mode] = model(x)
            if mode == "masked":
                for module, tensors in cuts(bank.flow, dropped_ids(bank.layers, filters)).items():
                    for tensor, cut in tensors.items():
                        if "running" not in tensor:
                            cut.fill(getattr(model.get_submodule(module), tensor).detach(), 1e30)
                assert torch.equal(model(x), outputs["masked"])
    torch.testing.assert_close(outputs["auto"], outputs["masked"], rtol=1e-10, atol=1e-10)


def test_a_convolution_with_a_bias_of_another_name_is_not_ranked():
    model, x = build("own bias")
    (layer,) = [layer for layer in tr.find_filters(model, x, skip=None).layers if layer.name == "between"]
    assert not layer.droppable


@pytest.mark.parametrize("name", ["gate_of_permuted_rows", "gate_that_is_called_again"])
def test_what_is_no_gate_keeps_its_rows(name):
    assert not tr.find_filters(build(name)[0], build(name)[1], skip=None).flow.gates


def test_repr_takes_computed_weights():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.ReLU(), nn.Conv2d(6, 4, 1)),
        *(nn.Flatten(), nn.Linear(64, 3)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheme = tr.RePr(
        model, optimizer, torch.randn(2, 3, 8, 8), full=1, sub=1, cycles=1, fraction=0.4, max_per_layer=0.5
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        scheme.step()
    assert [t.kind for t in scheme.history] == ["drop", "restore"]
    assert "1" in scheme.history[0].filters
    other = torch.optim.SGD(model[3].parameters(), lr=0.1)
    scheme.remove()
    with pytest.raises(tr.ReaperError, match=r"optimizer: does not hold 1\.weight"):
        tr.RePr(model, other, torch.randn(2, 3, 8, 8))


def test_computed_weights_are_ranked_whatever_the_default_device():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )
    x = torch.randn(2, 3, 8, 8)
    with torch.device("meta"):
        bank = tr.find_filters(model, x)
    assert [layer.name for layer in bank.ranked] == [layer.name for layer in tr.find_filters(model, x).ranked]


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.norm, self.fc = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        y = self.c1(x)
        z = self.c2(y.relu())
        z += y
        return self.fc(self.norm(z).mean((2, 3)))


def test_a_norm_behind_a_sum_in_place_is_not_the_filters():
    flow = tr.find_filters(AddsInPlace(), torch.randn(2, 3, 8, 8), skip=None).flow
    assert "norm" not in flow.sites
    assert set(flow.sites) == {"c1", "c2"}


class Tied(nn.Module):
    """Two convolutions with one weight, in a model that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (nn.Conv2d(width, 8, 3, padding=1) for width in (3, 8, 8))
        self.c3.weight = self.c2.weight
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.norm2.weight = self.norm1.weight
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        if x.sum() > -1e9:
            x = self.norm1(self.c1(x)).relu()
        return self.fc(self.norm2(self.c3(self.c2(x).relu())).relu().mean((2, 3)))


def test_a_weight_that_two_layers_hold_is_not_ranked_where_nothing_can_be_traced_either():
    model = Tied()
    bank = tr.find_filters(model, torch.randn(2, 3, 8, 8), skip=None)
    assert {layer.name: layer.droppable for layer in bank.layers} == {"c1": True, "c2": False, "c3": False}
    assert [layer.reason for layer in bank.layers][1:] == ["weight is used in another place too"] * 2
    before = model.norm2.weight.detach().clone()
    bank.drop({"c1": [1, 2]})
    bank.restore("orthogonal")
    assert torch.equal(model.norm2.weight, before)


def test_the_worst_cosine_of_a_float64_return_is_true():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2)).double()
    bank = tr.find_filters(model, torch.zeros(1, 3, 8, 8).double(), skip=None)
    bank.drop({"1": [0, 3]})
    (note,) = bank.restore("orthogonal")
    assert float(note.rsplit(" ", 1)[1]) < 1e-10
