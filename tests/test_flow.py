from __future__ import annotations

import functools
import random
from typing import NamedTuple

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from tests.families import Frozen
from tests.nets import NETS, Residual, inputs, plain
from torchreaper.flow import find_flow
from torchreaper.flow.channels import NOBODY
from torchreaper.flow.following import reshaped


class Named(NamedTuple):
    once: torch.Tensor
    twice: torch.Tensor


def sequential(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *modules)


def barriers(*modules: nn.Module) -> list[str]:
    """What the filters of a first convolution run into."""
    return find_flow(sequential(*modules), inputs()[0]).barriers.get("0", [])


@pytest.mark.parametrize("net", NETS)
def test_nothing_in_the_model_changes(net):
    model = NETS[net]()
    model.eval()
    next(iter(model.children())).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    identities = [id(b) for b in model.buffers()]
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    find_flow(model, inputs()[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert identities == [id(b) for b in model.buffers()]
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state())


def test_residual_network():
    flow = find_flow(Residual(), inputs()[0])
    assert list(flow.start) == [
        *("stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut.0")
    ]
    assert list(flow.start.values()) == [0, 4, 8, 12, 18, 24]
    # The stem's channels go into the first block and past it into the sum.
    assert flow.readers["block1.conv1"].tolist() == [0, 1, 2, 3]
    assert set(flow.barriers) == {"stem", "block1.conv2", "block2.conv2", "block2.shortcut.0"}
    # After the sum the channels belong to nobody.
    assert "block2.conv1" not in flow.readers
    assert "fc" not in flow.readers
    assert flow.norms == {"norm", "block1.bn1", "block1.bn2", "block2.bn1", "block2.bn2", "block2.shortcut.1"}
    assert not flow.outputs


def test_flatten_repeats_each_filter_by_the_spatial_size():
    flow = find_flow(plain(), inputs()[0])
    assert flow.readers["11"].tolist() == [10 + f for f in range(5) for _ in range(16)]


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=50)
def test_reshaping_follows_a_channel_exactly(n, c, h, w):
    """A tensor that holds its channel's number must agree with the origins after every reshape."""
    origin = torch.arange(c).view(1, c, 1, 1)
    x = torch.arange(c).view(1, c, 1, 1).expand(n, c, h, w).contiguous()
    for shape in [(n, -1), (n, c, -1), (n, c, h * w), (n, c, w, h), (n, c, h, w, 1), (n, -1, w), (-1,), (n * c, h, w)]:
        y = x.reshape(shape)
        found = reshaped(origin, x.shape, y.shape)
        if found is not None:
            assert found.ndim == y.ndim
            assert (y == found).all()
        else:
            assert shape not in [(n, -1), (n, c, -1), (n, c, h * w), (n, c, w, h), (n, c, h, w, 1)]


class Functional(nn.Module):
    def __init__(self, function, width: int = 4) -> None:
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(width, 2, 1)
        self.function = function

    def forward(self, x):
        return self.read(self.function(self.conv(x)))


@pytest.mark.parametrize(
    "function",
    [
        *(F.relu, F.gelu, torch.tanh, lambda x: F.max_pool2d(x, 3, 2, padding=1), lambda x: F.dropout(x, 0.1)),
        *(lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), lambda x: 0.5 * x * 2),
        *(lambda x: x.float().contiguous().relu_(), lambda x: x / 3, lambda x: x.mean((2, 3), keepdim=True)),
        *(lambda x: F.interpolate(x, scale_factor=2), lambda x: F.hardtanh(x), lambda x: x.flatten(2).unsqueeze(-1)),
        *(lambda x: x + x, lambda x: x * x.mean((2, 3), keepdim=True), lambda x: x[:, :4], lambda x: x.clamp(-1, 2)),
        *(lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), lambda x: x.transpose(1, 2).transpose(1, 2)),
        *(lambda x: x * torch.sigmoid(x), lambda x: x * (x + 1), lambda x: x.view(x.shape[0], x.shape[1], 8, 8)),
        lambda x: torch.cat([x, x], 2)[:, :, :8],
    ],
)
def test_what_keeps_zero_passes_a_channel_on(function):
    model = Functional(function)
    flow = find_flow(model, inputs()[0])
    assert flow.readers["read"].tolist() == [0, 1, 2, 3]
    assert not flow.barriers
    zero = function(torch.zeros(2, 4, 8, 8))
    assert not zero.any()


@pytest.mark.parametrize(
    "function",
    [
        *(torch.sigmoid, lambda x: x + 1, lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), lambda x: x.softmax(1)),
        *(lambda x: F.layer_norm(x, x.shape[1:]), lambda x: x.cumsum(1), lambda x: F.hardtanh(x, 0.5, 1.0)),
        *(lambda x: x - x.mean(1, keepdim=True), lambda x: 1 / x),
        *(lambda x: x.clamp(min=0.5), lambda x: x.sqrt()),
    ],
)
def test_everything_else_is_a_barrier(function):
    flow = find_flow(Functional(function), inputs()[0])
    assert flow.barriers["conv"]
    assert "read" not in flow.readers


def test_cat_joins_and_add_of_others_ends():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), x, self.b(x)], dim=1))

    flow = find_flow(Joined(), inputs()[0])
    assert flow.readers["c"].tolist() == [0, 1, NOBODY, NOBODY, NOBODY, 2, 3, 4]
    assert not flow.barriers
    assert flow.outputs == {"c"}


def test_grouped_and_computed_weights_are_barriers():
    assert barriers(nn.Conv2d(4, 4, 1, groups=2)) == ["1"]
    assert barriers(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)))
    assert barriers(nn.GroupNorm(2, 4)) == ["1"]
    assert barriers(nn.PReLU()) == []
    assert barriers(nn.Linear(8, 2)) == ["1"], "a Linear over the last dimension reads positions, not channels"


def test_a_norm_used_twice_with_other_channels_is_a_barrier():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.c = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x):
            return self.c(self.norm(self.b(self.norm(self.a(x)))))

    flow = find_flow(Shared(), inputs()[0])
    assert flow.barriers == {"a": ["norm"], "b": ["norm"]}
    assert flow.norms == set()
    assert "c" not in flow.readers


def test_tied_weights_are_no_readers_and_not_ranked():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.Conv2d(4, 2, 1),
            )
            self.c.weight = self.b.weight

        def forward(self, x):
            return self.d(self.c(self.b(self.a(x)))).mean((2, 3)).softmax(1)

    bank = tr.find_filters(Tied(), inputs()[0], skip=None)
    assert [layer.reason for layer in bank.layers] == [
        *("full width at b", "weight is used in another place too", "weight is used in another place too"),
        "reaches an output of the model",
    ]


def test_a_weight_that_is_used_by_itself_is_not_ranked():
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.b(self.a(x))
            return self.c(F.conv2d(x, self.b.weight)).softmax(1)

    bank = tr.find_filters(Direct(), inputs()[0], skip=None)
    assert bank["b"].reason == "weight is used in another place too"
    assert "b" not in bank.flow.readers


@pytest.mark.parametrize("reader", [nn.Conv2d(4, 2, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))])
def test_a_module_used_on_other_channels_too_keeps_them_all(reader):
    """Its slices would be left out for the filter, and be missing for the other use."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.reader = nn.Conv2d(3, 4, 1), reader

        def forward(self, x):
            return self.reader(self.a(x)) + self.reader(self.a(x).cumsum(1))

    flow = find_flow(Twice(), inputs()[0])
    assert flow.readers == {}
    assert flow.norms == set()


class Written(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(3, 4, 1)
        self.write = write

    def forward(self, x):
        y = self.a(x)
        view = y.flatten(2)
        self.write(y, self.c(x))
        return self.b(y).mean((2, 3)) + view.mean((1, 2)).unsqueeze(1)


@pytest.mark.parametrize(
    "write", [lambda y, z: y.add_(z), lambda y, z: y.add_(1), lambda y, z: y.copy_(z), lambda y, z: torch.sigmoid_(y)]
)
def test_what_is_written_over_in_place_is_no_longer_the_filters(write):
    assert "b" not in find_flow(Written(write), inputs()[0]).readers
    assert find_flow(Written(lambda y, z: y), inputs()[0]).readers["b"].tolist() == [0, 1, 2, 3]


def test_padding_and_empty_reductions_of_channels_are_barriers():
    for function in (lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)), lambda x: F.pad(x, (0, 0, 0, 0, 2, 2))[:, 2:6]):
        flow = find_flow(Functional(function), inputs()[0])
        assert flow.barriers["conv"]
        assert "read" not in flow.readers


def test_heads_of_one_mode_only_are_found():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.aux, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 6, 1)

        def forward(self, x):
            x = self.a(x)
            return (self.b(x), self.aux(x)) if self.training else self.b(x)

    flow = find_flow(Heads().eval(), inputs()[0])
    assert set(flow.readers) == {"aux", "b"}
    assert flow.outputs == {"aux", "b"}


class Restless(nn.Module):
    """Draws random numbers, counts, keeps what it computed: all that a forward should not do, and some do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.Conv2d(4, 4, 1)
        self.c, self.inner = nn.Conv2d(4, 2, 1), nn.Sequential(nn.ReLU())
        self.register_buffer("count", torch.zeros(1))
        self.kept = "nothing"

    def forward(self, x):
        self.count += 1
        x = self.inner(self.norm(self.a(x))) + torch.rand(1) + random.random() + float(numpy.random.rand())
        self.kept = x
        if not self.training or random.random() < 0.5:
            x = self.b(x)
        return self.c(x).mean((2, 3))


def test_a_restless_forward_leaves_no_trace():
    model = Restless()
    seen = []
    model.inner.register_forward_hook(lambda module, args, out: seen.append(float(out.max())))
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    names = []
    for seed in range(8):
        random.seed(seed)
        at_first = random.getstate()
        names.append(list(find_flow(model, inputs()[0]).start))
        assert random.getstate() == at_first
    assert names == [["a", "b", "c"]] * 8, "the order of the layers must not depend on chance"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (numpy.random.get_state()[1] == before[2]).all()
    assert model.count.item() == 0
    assert model.kept == "nothing"
    assert seen == []
    random.setstate(before[1])


def test_a_hook_on_a_container_is_a_barrier():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1))
    assert find_flow(model, inputs()[0]).readers["1"].tolist() == [0, 1, 2, 3]
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    flow = find_flow(model, inputs()[0])
    assert flow.barriers["0.0"] == ["seen_by_a_hook"]
    assert "1" not in flow.readers


def test_slices_of_a_sequential_and_small_batches_are_traced():
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = plain()

        def forward(self, x):
            return self.f[4:](self.f[:4](x))

    flow = find_flow(Sliced(), inputs(n=1)[0])
    assert list(flow.start) == ["f.0", "f.3", "f.6"]
    assert not flow.barriers
    tiny = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    assert find_flow(tiny, inputs(n=1)[0]).readers["2"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "end",
    [
        lambda y: F.log_softmax(y.mean((2, 3)), 1),
        lambda y: torch.sigmoid(y),
        lambda y: y.clamp(0, 1) + 1,
        lambda y: y.flatten(2).transpose(1, 2),
        lambda y: {"scores": [y[:, :, 0, 0].detach()]},
    ],
)
def test_filters_that_are_classes_are_outputs(end):
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 10, 1)

        def forward(self, x):
            return end(self.b(self.a(x)))

    bank = tr.find_filters(Classes(), inputs()[0], skip=None)
    assert [layer.ranked for layer in bank] == [True, False]


def test_a_pool_over_channels_is_a_barrier():
    for function in (lambda x: F.avg_pool3d(x, (3, 1, 1), 1, (1, 0, 0)), lambda x: nn.MaxPool3d((1, 2, 2), 1)(x)):
        flow = find_flow(Functional(function), inputs()[0])
        assert flow.barriers["conv"]
        assert "read" not in flow.readers


def test_in_place_activations_keep_the_filter_and_its_barriers():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            h = self.a(x)
            r = F.relu(h, inplace=True)
            return self.c(self.b(r) + h).mean((2, 3))

    flow = find_flow(InPlace(), inputs()[0])
    assert flow.barriers == {"a": ["add"], "b": ["add"]}

    class Augmented(InPlace):
        def forward(self, x):
            y = self.a(x)
            h = y
            h += self.b(y)
            return self.c(y).mean((2, 3))

    flow = find_flow(Augmented(), inputs()[0])
    assert "c" not in flow.readers
    assert flow.barriers["a"] == ["iadd"]


def test_subclasses_that_compute_something_else_are_not_taken_for_what_they_inherit():
    class Shifted(nn.Hardtanh):
        def forward(self, x):
            return super().forward(x) + 1

    class Standardised(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight - weight.mean(), bias)

    class Same(nn.Conv2d):
        pass

    flow = find_flow(Functional(Shifted()), inputs()[0])
    assert flow.sites["function"].origin.tolist() == [0, 1, 2, 3], "what is added must be masked again"
    assert find_flow(nn.Sequential(Same(3, 4, 1), Same(4, 2, 1)), inputs()[0]).readers["1"].tolist() == [0, 1, 2, 3]
    coupled = nn.Sequential(Standardised(3, 4, 1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    bank = tr.find_filters(coupled, inputs()[0], skip=None)
    assert [layer.reason for layer in bank] == ["coupled by its own forward", "", "reaches an output of the model"]


def test_the_users_hooks_see_no_tracing():
    model, seen = plain(), []
    model[3].register_forward_hook(lambda *_: seen.append(1))
    flow = find_flow(model, inputs()[0])
    assert not seen
    # And what they see is whole, for they may change it.
    assert flow.barriers == {"0": ["3"], "3": ["3"]}
    attached = plain()
    tr.find_filters(attached, inputs()[0]).attach()
    assert not find_flow(attached, inputs()[0]).barriers, "the package's own hooks are no barrier"


class Padded(nn.Module):
    """Pads by plain numbers out of the sizes of a map, as TensorFlow does; `scaled`: divides by its channels."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 3)
        self.scaled = scaled

    def forward(self, x):
        x = self.a(x).relu()
        over = int(x.shape[-1]) % 2
        x = nn.functional.pad(x, (over, over + 1, over, over + 1))
        if self.scaled:
            x = x / int(x.shape[1])
        return self.last(self.b(x).relu().mean((2, 3)))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_size_taken_as_a_number_keeps_the_width_where_it_counts_channels(scaled):
    model, images = Padded(scaled).double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    bank = tr.find_filters(model, images, skip=None)
    assert not bank.flow.untraced
    assert bank["a"].route == ("masked" if scaled else "narrow")
    found = []
    for mode in ("masked", "compact"):
        with bank.without({"a": [1, 4], "b": [0]}, mode=mode):
            found.append(model(images))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def test_a_decorated_forward_is_called_by_its_names():
    def keyword_only(forward):
        @functools.wraps(forward)
        def wrapped(self, *args, **kwargs):
            kwargs.pop("unknown", None)
            return forward(self, *args, **kwargs)

        return wrapped

    class Decorated(Padded):
        @keyword_only
        def forward(self, images=None, labels=None, twice: bool = False, **more):
            return (2 if twice else 1) * super().forward(images)

    bank = tr.find_filters(Decorated(), {"images": torch.randn(2, 3, 9, 9), "twice": True}, skip=None)
    assert not bank.flow.untraced
    assert bank["a"].route == "narrow"


def test_arguments_of_forward():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x, scale=2.0, mask=None):
            x = self.a(x) * scale
            return self.b(x if mask is None else x * mask)

    images = inputs()[0]
    assert not find_flow(Two(), images).barriers
    assert not find_flow(Two(), {"x": images, "scale": 3.0}).barriers
    assert find_flow(Two(), (images, 1.0, torch.ones(6, 4, 8, 8))).barriers == {"a": ["mul"]}


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (plain(), torch.zeros(2, 1, 8, 8), "example_inputs={'input': [2, 1, 8, 8]}: Sequential does not run on them"),
        (plain(), {"images": inputs()[0]}, "example_inputs: Sequential.forward does not take them"),
        (nn.DataParallel(plain()), inputs()[0], "model=DataParallel: a wrapper; pass model.module"),
        (torch.compile(plain(), backend="eager"), inputs()[0], "already compiled; attach to the plain module first"),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(model, example, message):
    with pytest.raises(tr.ReaperError) as caught:
        find_flow(model, example)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_frozen_norm_goes_with_its_channels():
    """All it computes is computed of its own entries, one by one: they leave with the filter, and keep their values."""
    flow = find_flow(Frozen(), inputs()[0])
    assert {name for name, places in flow.barriers.items() if places} == {"stem", "conv2", "conv3"}
    for norm, width, mine in (("norm1", 7, "conv1"), ("norm2", 6, "conv2")):
        first = flow.start[mine]
        assert set(flow.shares[norm]) == {"weight", "bias", "running_mean", "running_var"}
        for shares in flow.shares[norm].values():
            assert {(one.dim, one.role) for one in shares} == {(0, "follower")}
            assert all(one.origin.tolist() == list(range(first, first + width)) for one in shares)
    assert "norm1" in flow.sites, "the mask stands behind the shift"
    assert "norm3" not in flow.shares, "what reads entries at full width keeps them all"


class Pair(nn.Module):
    """Cannot be traced, and hands out a tuple with names."""

    def forward(self, x: torch.Tensor) -> Named:
        twice = x * 2
        return Named(x, twice[: len(x)])


class TakesAttributes(nn.Module):
    """An attribute of what one box hands out is first asked for by another one, which cannot be traced either."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second, self.fc = nn.Conv2d(3, 4, 3), Pair(), Pair(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(self.conv(x)).twice).twice.mean((2, 3)))


def test_attributes_between_boxes():
    flow = find_flow(TakesAttributes(), inputs()[0])
    assert set(flow.untraced) == {"first", "second"}
    assert flow.barriers["conv"] == ["first"]


class Keeps(nn.Module):
    """Cannot be traced, not even on stand-ins for tensors, and keeps what it computed at its first call."""

    kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.ones_like(x)
        y = x * self.kept
        return y[: len(x)] * len(y.nonzero())


def test_a_box_keeps_nothing_of_how_it_was_looked_at():
    """Else the second trace would take proxies of the first, and the real run what the run on stand-ins left."""
    model = sequential(Keeps())
    flow = find_flow(model, inputs()[0])
    assert (set(flow.untraced), flow.barriers["0"]) == ({"1"}, ["1"])
    assert model[1].kept is None
    model(inputs()[0])
    kept = model[1].kept
    assert find_flow(model, inputs()[0]).barriers["0"] == ["1"]
    assert model[1].kept is kept
