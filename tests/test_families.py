"""The difficulties of architectures, one at a time: what is found, and that the invariants hold there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.families import FAMILIES, Excitation, Headed, Same, Shifted
from tests.nets import inputs
from torchreaper.flow import find_flow

torch.set_num_threads(1)


def build(family: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family]().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def bank_of(family: str, **settings) -> tr.FilterBank:
    return tr.find_filters(build(family), inputs(dtype=torch.float64)[0], **{"skip": None, **settings})


def reasons(bank: tr.FilterBank) -> dict[str, tuple[str, str]]:
    return {layer.name: (layer.route, layer.reason) for layer in bank}


EXPECTED = {
    "pre-activation": {"stem": "narrow", "convs.0": "narrow", "convs.1": "narrow"},
    "mobile": {"expand": "narrow", "gate.down": "narrow", "stem": "masked", "project": "masked"},
    "followers": {"stem": "narrow", "conv": "narrow", "last": "narrow"},
    "offsets": {"stem": "narrow", "a": "narrow", "b": "narrow", "c": "masked"},
    "shuffle": {"stem": "narrow", "conv": "masked", "point": "masked", "last": "narrow"},
    "u-net": {"stem": "narrow", "down": "narrow", "up": "narrow", "join": "narrow"},
    "computed": {"stem": "masked", "a": "masked", "b": "masked", "c": "masked"},
    "boxed": {"stem": "narrow", "before": "masked", "box.conv": "masked", "box.back": "masked", "after": "narrow"},
    "untraceable": dict.fromkeys(["stem", "before", "box.conv", "box.back", "after"], "masked"),
    "shared": {"stem": "masked", "twice": "masked", "wide": "narrow", "read": "masked", "aux": "narrow"},
    "wide": {"stem": "narrow", "conv1": "scatter", "conv2": "scatter"},
    "frozen": {"stem": "masked", "conv1": "narrow", "conv2": "masked", "conv3": "masked"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_gets_the_best_route_that_is_exact(family):
    assert {layer.name: layer.route for layer in bank_of(family).ranked} == EXPECTED[family]


@pytest.mark.parametrize(
    ("family", "layer", "reason"),
    [
        ("mobile", "depthwise", "depthwise: follows expand"),
        ("mobile", "gate.up", "gate: follows expand"),
        ("mobile", "stem", "full width at add"),
        ("followers", "twice", "depthwise: follows conv"),
        ("offsets", "c", "full width at sigmoid"),
        ("computed", "a", "its weight is computed"),
        ("computed", "d", "coupled by SpectralNorm"),
        ("boxed", "box.conv", "full width at inside box, which cannot be traced"),
        ("untraceable", "box.conv", "full width at the model cannot be traced"),
        ("shared", "tied", "weight is used in another place too"),
        ("shared", "other", "weight is used in another place too"),
    ],
)
def test_the_reason_is_said(family, layer, reason):
    bank = bank_of(family)
    assert bank[layer].reason == reason
    assert reason in str(bank)


def test_what_cannot_be_traced_is_said():
    assert "torch.fx cannot trace box (symbolically traced variables" in str(bank_of("boxed"))
    assert "torch.fx cannot trace the model (symbolically traced variables" in str(bank_of("untraceable"))
    assert "cannot trace" not in str(bank_of("mobile"))


def test_entries_that_follow_a_channel():
    flow = bank_of("followers").flow
    conv = list(range(flow.start["conv"], flow.start["conv"] + 5))
    twice = [i for i in conv for _ in range(2)]
    assert flow.grouped["twice"].tolist() == conv
    found = {
        f"{module}.{tensor}": share.origin.tolist()
        for module, tensors in flow.shares.items()
        for tensor, shares in tensors.items()
        for share in shares
        if share.role == "follower"
    }
    assert found == {
        **{"twice.weight": twice, "twice.bias": twice, "slope.weight": conv, ".gamma": conv},
        **{"gate.up.weight": twice, "gate.up.bias": twice},
    }
    assert flow.readers["gate.down"].tolist() == twice
    assert flow.readers["last"].tolist() == twice


def test_every_later_norm_of_a_densenet_is_masked_in_its_own_slice():
    flow = bank_of("pre-activation").flow
    for k, width in enumerate((6, 10, 14)):
        assert flow.sites[f"norms.{k}"].origin.tolist() == list(range(width))
        assert {share.origin.tolist()[-1] for share in flow.shares[f"norms.{k}"]["bias"]} == {width - 1}


def test_heads_end_where_a_mask_can_stand():
    assert bank_of("wide").flow.heads["conv1"] == ("conv1", "norm1")
    assert bank_of("wide").flow.heads["conv2"] == ("conv2", "norm2"), "a norm and activation in one module"
    assert bank_of("mobile").flow.heads["expand"] == ("expand", "norm1", "depthwise", "norm2")


def choose(bank: tr.FilterBank, fraction: float = 0.4) -> dict[str, tuple[int, ...]]:
    return bank.preview(fraction, "random", max_per_layer=0.6).filters


def owned(bank: tr.FilterBank, filters, roles=frozenset({"filter", "norm", "follower"})):
    from torchreaper.filters import cuts, dropped_ids

    return [
        (f"{module}.{tensor}", bank.model.get_submodule(module), tensor, cut)
        for module, tensors in cuts(bank.flow, dropped_ids(bank.layers, filters), roles).items()
        for tensor, cut in tensors.items()
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", [1.0, 1e30])
def test_a_dropped_filter_is_absent(family, training, size):
    """Invariant 1: whatever its own tensors hold, no output changes and no gradient enters it."""
    bank = bank_of(family)
    model = bank.model.train(training)
    images, labels = inputs(5, dtype=torch.float64)
    filters = choose(bank)

    def result():
        buffers = copy.deepcopy(list(model.buffers()))
        model.zero_grad()
        output = model(images)
        nn.functional.cross_entropy(output, labels).backward()
        for buffer, value in zip(model.buffers(), buffers):
            buffer.copy_(value)
        return output.detach().clone(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    bank.drop(filters, mode="masked")
    output, gradients = result()
    assert output.isfinite().all()
    for name, module, tensor, cut in owned(bank, filters):
        if "original" not in name or size == 1.0:  # weight_norm of a huge direction is not finite by itself
            cut.fill(getattr(module, tensor).detach(), size)
    changed, changed_gradients = result()
    assert torch.equal(output, changed)
    for before, after in zip(gradients, changed_gradients):
        assert (before is None) == (after is None)
        assert before is None or torch.equal(before, after)
    for name, module, tensor, cut in owned(bank, filters):
        parameter = getattr(module, tensor)
        if isinstance(parameter, nn.Parameter) and parameter.grad is not None:
            assert not parameter.grad[cut.mask(parameter)].any(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_changes_the_function_and_restoring_brings_it_back(family):
    bank = bank_of(family)
    model, images = bank.model.eval(), inputs(1, dtype=torch.float64)[0]
    before, output = copy.deepcopy(model.state_dict()), model(images)
    with bank.without(choose(bank)):
        assert not torch.equal(model(images), output)
        whole = model.state_dict()
        assert all(torch.equal(whole[k], before[k]) for k in before), "a checkpoint is whole"
    torch.testing.assert_close(model(images), output, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def trained(family: str, mode: str) -> dict[str, torch.Tensor]:
    """Outputs and weights through two phases: masked and compact must give the same."""
    bank = bank_of(family)
    model, found = bank.model, {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    bank.attach(optimizer)

    def step(number: int) -> None:
        images, labels = inputs(number, dtype=torch.float64)
        optimizer.zero_grad()
        output = model(images)
        nn.functional.cross_entropy(output, labels).backward()
        optimizer.step()
        found[f"output {number}"] = output.detach().clone()

    for number, how in enumerate((None, "orthogonal")):
        step(10 * number)
        bank.drop(choose(bank), mode=mode)
        for k in range(3):
            step(10 * number + 1 + k)
        found[f"eval {number}"] = model.eval()(inputs(9, dtype=torch.float64)[0]).detach()
        found |= {f"{name} {number}": value.clone() for name, value in model.train().state_dict().items()}
        bank.restore(how)
        step(10 * number + 5)
    return {**found, **{name: value.clone() for name, value in model.state_dict().items()}}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("computed", "untraceable")])
def test_compact_equals_masked(family):
    """Invariant 3."""
    masked, compact = trained(family, "masked"), trained(family, "compact")
    for name, value in masked.items():
        torch.testing.assert_close(
            compact[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("family", ["computed", "untraceable"])
def test_what_cannot_be_smaller_says_so(family):
    bank = bank_of(family)
    assert bank.resolve("auto") == ("masked", "no layer can be made smaller (see the table of the bank)")
    with pytest.raises(tr.ReaperError, match='subnetwork="compact": no layer can be made smaller'):
        bank.drop(choose(bank), mode="compact")


@pytest.mark.parametrize("mode", ["masked", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_filter_is_frozen_and_comes_back_orthogonal(family, mode):
    """Invariants 2 and 4, with weight decay and momentum that would move it."""
    bank = bank_of(family)
    model = bank.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    bank.attach(optimizer)

    def step(number: int) -> None:
        images, labels = inputs(number, dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step(0)
    filters = choose(bank)
    everything = frozenset({"filter", "norm", "follower", "consumer"})
    parts = owned(bank, filters, everything)
    before = [getattr(module, tensor).detach()[cut.mask(getattr(module, tensor))] for _, module, tensor, cut in parts]
    old = {name: bank[name].rows.clone() for name in filters}
    bank.drop(filters, mode=mode)
    for k in range(3):
        step(1 + k)
    bank.restore()
    for (name, module, tensor, cut), value in zip(parts, before):
        now = getattr(module, tensor).detach()
        assert torch.equal(now[cut.mask(now)], value), name
    bank.drop(filters, mode=mode)
    bank.restore("orthogonal")
    for name, indices in filters.items():
        layer, chosen = bank[name], list(indices)
        reference = layer.rows.clone()
        reference[chosen] = old[name][chosen]
        unit = nn.functional.normalize(reference)
        new = nn.functional.normalize(layer.rows[chosen])
        if layer.dims - torch.linalg.matrix_rank(unit) >= len(chosen):
            assert (new @ unit.T).abs().max() < 1e-5, name


def test_depthwise_convolutions_and_gates_can_be_asked_for():
    bank = bank_of("mobile", include=["depthwise", "gate.up"])
    assert [layer.name for layer in bank.ranked] == ["stem", "expand", "depthwise", "gate.down", "gate.up", "project"]
    assert bank["expand"].reason == "full width at depthwise"
    assert bank["depthwise"].reason == "its groups must keep their size"
    with bank.without({"depthwise": [1, 5], "gate.up": [2]}, mode="masked"):
        seen = {}
        bank.model.norm2.register_forward_hook(lambda m, i, o: seen.__setitem__("x", o))
        bank.model(inputs(dtype=torch.float64)[0])
        assert not seen["x"][:, [1, 5]].any()
        assert seen["x"][:, [0, 2]].any()


def test_two_gates_on_one_tensor_and_a_gate_that_goes_elsewhere():
    class Elsewhere(Headed):
        def make(self):
            self.conv, self.down, self.up = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
            self.second = Excitation(6)

        def body(self, x):
            y = torch.relu(self.conv(x))
            gate = self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True))))
            return self.second(y * gate.sigmoid()) + gate

    flow = find_flow(Elsewhere(), inputs()[0])
    assert list(flow.gates) == ["second.up"], "what makes a gate must make nothing else"


def test_sizes_that_a_model_computes_with_need_the_full_width():
    class Scaled(Headed):
        def make(self):
            self.conv, self.last = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)

        def body(self, x):
            y = self.conv(x)
            return self.last(y / y.shape[1])

    flow = find_flow(Scaled(), inputs()[0])
    assert flow.barriers["conv"] == ["truediv"]
    assert flow.readers["last"].tolist() == list(range(6, 11))


def test_a_branch_on_sizes_goes_the_way_of_the_example():
    flow = find_flow(nn.Sequential(Same(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), inputs()[0])
    assert not flow.untraced
    assert flow.readers["2"].tolist() == [0, 1, 2, 3]
    assert flow.sites["0"].origin.tolist() == [0, 1, 2, 3]


def test_an_offset_in_a_module_of_its_own_is_masked_behind_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Shifted(4), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(128, 3))
    bank = tr.find_filters(model, inputs()[0], skip=None)
    seen = {}
    model[1].register_forward_hook(lambda m, i, o: seen.__setitem__("x", o))
    flow = find_flow(model, inputs()[0])
    assert flow.barriers["0"] == ["seen_by_a_hook"], "the user's hook sees it at full width"
    with bank.without({"0": [2]}, mode="masked"):
        model(inputs()[0])
    assert not seen["x"][:, 2].any()
    assert seen["x"][:, 1].any()


def test_a_layer_of_one_filter_is_not_ranked():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    bank = tr.find_filters(model, inputs()[0], skip=None)
    assert [layer.reason for layer in bank] == ["", "has one filter only", ""]


def test_three_dimensions_come_for_free():
    model = nn.Sequential(
        *(nn.Conv3d(3, 5, 3, padding=1), nn.BatchNorm3d(5), nn.ReLU(), nn.MaxPool3d(2)),
        *(nn.ConvTranspose3d(5, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        nn.Linear(4, 3),
    ).double()
    x = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    bank = tr.find_filters(model, x, skip=None)
    assert [layer.route for layer in bank] == ["narrow", "narrow"]
    outputs = []
    for mode in ("masked", "compact"):
        with bank.without({"0": [1, 3], "4": [0]}, mode=mode):
            outputs.append(model.eval()(x))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)


class Branching(nn.Module):
    """Convolves, then goes one of two ways by what the tensor holds; as a part it is opaque, as a model untraceable."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.other = self.norm if shared else nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.a(x))
        if x.mean() > 1e6:
            return x
        return self.other(self.b(x.relu()))


def test_what_is_run_twice_is_counted_once():
    """Fake tensors fail at the branch, behind the first convolution; the run on real ones is what counts."""
    box = tr.find_filters(nn.Sequential(Branching(), nn.Conv2d(4, 2, 1)), inputs()[0], skip=None)
    assert box.flow.positions == dict.fromkeys(["0.a", "0.norm", "0.b", "0.other", "1"], 64)
    assert set(box.flow.sites) == {"0.a", "0.norm", "0.b", "0.other", "1"}


def test_a_norm_of_two_convolutions_belongs_to_neither_where_nothing_can_be_traced():
    for model, prefix in ((Branching(True), ""), (nn.Sequential(Branching(True), nn.Conv2d(4, 2, 1)), "0.")):
        flow = find_flow(model, inputs()[0])
        assert {f"{prefix}a", f"{prefix}b"} <= set(flow.sites)
        assert f"{prefix}norm" not in flow.sites
        assert f"{prefix}norm" not in flow.shares


def test_scripted_models_are_refused():
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        scripted = torch.jit.trace(nn.Conv2d(3, 4, 1), inputs()[0])
    with pytest.raises(tr.ReaperError, match="scripted; pass the module it was made from"):
        find_flow(scripted, inputs()[0])


def test_old_weight_norm_is_said_to_be_computed():
    with pytest.warns(FutureWarning):
        conv = nn.utils.weight_norm(nn.Conv2d(4, 5, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.Conv2d(5, 2, 1), nn.Flatten(), nn.Linear(72, 3))
    bank = tr.find_filters(model, inputs()[0], skip=None)
    assert bank["1"].reason.startswith("weight is computed by WeightNorm")
    assert bank["0"].reason == "full width at 1"
