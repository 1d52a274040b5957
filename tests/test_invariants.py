"""The invariants of the method, for every kind of network, optimizer and loop."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.nets import LOOPS, NETS, OPTIMIZERS, OTHER_SHAPES, build, inputs, looped, train_step
from tests.twins import full_gradients
from torchreaper.filters import cuts, dropped_ids
from torchreaper.geometry import unit_rows
from torchreaper.state import Cut, per_weight_state

torch.set_num_threads(1)


def scheme_for(model, optimizer, **settings) -> tr.RePr:
    defaults = {"full": 2, "sub": 3, "cycles": 2, "fraction": 0.35, "max_per_layer": 0.6, "skip": None}
    return tr.RePr(model, optimizer, inputs()[0], **{**defaults, **settings})


MODES = ("masked", "compact")


def belongings(bank: tr.FilterBank, filters) -> list[tuple[str, torch.Tensor, Cut]]:
    """Every tensor that holds something of these filters, and which part."""
    found = cuts(bank.flow, dropped_ids(bank.layers, filters))
    return [
        (f"{name}.{tensor}", getattr(bank.model.get_submodule(name), tensor), cut)
        for name, entries in found.items()
        for tensor, cut in entries.items()
    ]


def in_a_phase(net: str, optimizer: str = "momentum", loop: str = "plain", warmup: int = 2, subnetwork: str = "masked"):
    model, opt = build(net, optimizer)
    scheme = scheme_for(model, opt, full=warmup, subnetwork=subnetwork)
    called = looped(model, loop)
    for epoch in range(warmup):
        train_step(called, opt, epoch, loop)
        transition = scheme.step()
    assert transition is not None
    assert transition.kind == "drop"
    assert scheme.dropped
    assert scheme.bank.mode == subnetwork
    return model, opt, scheme, called


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", [1.0, 1e30, 3e38])
def test_a_dropped_filter_is_absent(net, training, size):
    """Invariant 1: whatever its own tensors hold, no output changes and no gradient enters it."""
    model, _, scheme, _ = in_a_phase(net)
    model.train(training)
    images, labels = inputs(5)

    def result():
        before = copy.deepcopy(list(model.buffers()))
        model.zero_grad()
        output = model(images)
        nn.functional.cross_entropy(output, labels).backward()
        for buffer, value in zip(model.buffers(), before):
            buffer.data.copy_(value)
        return output.detach().clone(), [p.grad.clone() for p in model.parameters()]

    output, gradients = result()
    own = belongings(scheme.bank, scheme.dropped)
    for name, tensor, cut in own:
        rows = Cut(cut.rows, cut.columns[:0])  # what belongs to the filter itself; consumer slices are the consumer's
        rows.fill(tensor.detach(), abs(size) if "running_var" in name else size)
    changed, changed_gradients = result()
    assert torch.equal(output, changed)
    for before, after in zip(gradients, changed_gradients):
        assert torch.equal(before, after)
    for _, tensor, cut in own:
        if isinstance(tensor, nn.Parameter):
            assert not tensor.grad[cut.mask(tensor)].any()


@pytest.mark.parametrize("net", ["residual", "conv1d"])
def test_the_channel_is_zero_where_it_is_read_or_meets_a_barrier(net):
    model, _, scheme, _ = in_a_phase(net)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
    model(inputs(3)[0])
    followed_by = {"stem": "norm", "conv2": "bn" if net == "conv1d" else "", "block1.conv1": "block1.bn1"}
    followed_by |= {"block1.conv2": "block1.bn2", "block2.conv1": "block2.bn1", "block2.conv2": "block2.bn2"}
    followed_by |= {"block2.shortcut.0": "block2.shortcut.1"}
    for layer, indices in scheme.dropped.items():
        last = seen[followed_by.get(layer) or layer]
        assert not last[:, list(indices)].any()
        others = [i for i in range(last.shape[1]) if i not in indices]
        assert last[:, others].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [False, True])
def test_it_equals_a_network_built_without_the_filters(norm, mode):
    """Outputs, and weights after training steps, against the same network at the widths that are left."""
    from tests.nets import plain

    model = plain(norm).double()
    gone = {"0": [1], "3" if norm else "2": [0, 4], "6" if norm else "4": [2]}
    bank = tr.find_filters(model, inputs(dtype=torch.float64)[0], skip=None)
    assert list(gone) == [layer.name for layer in bank.layers]
    small = plain(norm, (3, 4, 4)).double()
    keep = {name: [i for i in range(bank[name].filters) if i not in gone[name]] for name in gone}

    def slices(module_index: int):
        before = [n for n in gone if int(n) < module_index]
        own = keep.get(str(module_index)) or (keep[before[-1]] if before else None)
        return own, keep[before[-1]] if before else None

    def copy_into_small():
        for index, (big, little) in enumerate(zip(model, small)):
            rows, columns = slices(index)
            if isinstance(big, nn.Conv2d):
                weight = big.weight[rows]
                little.weight.data = (weight[:, columns] if columns else weight).detach().clone()
                little.bias.data = big.bias[rows].detach().clone()
            elif isinstance(big, nn.BatchNorm2d):
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(little, name).data = getattr(big, name)[rows].detach().clone()
            elif isinstance(big, nn.Linear):
                features = [16 * c + k for c in columns for k in range(16)]
                little.weight.data = big.weight[:, features].detach().clone()
                little.bias.data = big.bias.detach().clone()

    copy_into_small()
    big_optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    small_optimizer = torch.optim.SGD(small.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    bank.attach(big_optimizer)
    with bank.without(gone, mode):
        for seed in range(4):
            images, labels = inputs(seed, dtype=torch.float64)
            for net, optimizer in ((model, big_optimizer), (small, small_optimizer)):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images), labels).backward()
                optimizer.step()
        for training in (True, False):
            images, _ = inputs(9, dtype=torch.float64)
            torch.testing.assert_close(
                model.train(training)(images), small.train(training)(images), rtol=1e-10, atol=1e-10
            )
    trained = copy.deepcopy(small.state_dict())
    copy_into_small()
    for name, value in small.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(value, trained[name], rtol=1e-9, atol=1e-9)


def residual_without(model: nn.Module, images: torch.Tensor, gone: dict[str, list[int]]) -> torch.Tensor:
    """The residual network computed with narrow weights, put back to full width only for its sums. In train mode."""

    def branch(x, alive, conv_name, norm_name):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        kept = [i for i in range(conv.out_channels) if i not in gone.get(conv_name, ())]
        y = nn.functional.conv2d(x, conv.weight[kept][:, alive], None, conv.stride, conv.padding)
        return nn.functional.batch_norm(y, None, None, norm.weight[kept], norm.bias[kept], training=True), kept

    def wide(x, kept, width):
        full = x.new_zeros(x.shape[0], width, *x.shape[2:])
        full[:, kept] = x
        return full

    y, kept = branch(images, [0, 1, 2], "stem", "norm")
    x = wide(y, kept, 4).relu()
    for name, width in (("block1", 4), ("block2", 6)):
        everything = list(range(x.shape[1]))
        y, alive = branch(x, everything, f"{name}.conv1", f"{name}.bn1")
        y, kept = branch(y.relu(), alive, f"{name}.conv2", f"{name}.bn2")
        if name == "block2":
            short, short_kept = branch(x, everything, "block2.shortcut.0", "block2.shortcut.1")
            x = wide(short, short_kept, width)
        x = (wide(y, kept, width) + x).relu()
    return model.fc(x.mean((2, 3)))


@pytest.mark.parametrize("mode", MODES)
def test_it_equals_a_residual_network_computed_without_the_filters(mode):
    model = build("residual")[0].double()
    gone = {"stem": [1], "block1.conv1": [0, 2], "block1.conv2": [3], "block2.conv1": [5], "block2.conv2": [0, 1]}
    gone["block2.shortcut.0"] = [2]
    images, labels = inputs(4, dtype=torch.float64)
    whole = copy.deepcopy(model)
    expected = residual_without(whole, images, gone)
    nn.functional.cross_entropy(expected, labels).backward()
    with tr.find_filters(model, images, skip=None).without(gone, mode) as bank:
        found = model(images)
        nn.functional.cross_entropy(found, labels).backward()
        gradients = full_gradients(bank)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == dict(whole.named_parameters()).keys()
    for name, p in whole.named_parameters():
        # Beyond the stem, a dropped filter's reader sees zeros at full width: no gradient for it either.
        torch.testing.assert_close(
            gradients[name], p.grad, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_a_dropped_filter_is_frozen(net, optimizer, mode):
    """Invariant 2, plain loop: every net with every optimizer."""
    check_frozen(net, optimizer, "plain", mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("net", ["plain-norm", "residual"])
@pytest.mark.parametrize("loop", LOOPS[1:])
def test_a_dropped_filter_is_frozen_in_every_loop(net, optimizer, loop, mode):
    check_frozen(net, optimizer, loop, mode)


def check_frozen(net: str, optimizer: str, loop: str, mode: str) -> None:
    model, opt = build(net, optimizer)
    scheme = scheme_for(model, opt)
    called = looped(model, loop)
    for epoch in range(3):
        train_step(called, opt, epoch, loop)
    filters, _ = scheme.bank.select(tr.criteria.make("random").scores(scheme.bank), 0.35, max_per_layer=0.6)
    parts = belongings(scheme.bank, filters)
    before = [tensor.detach()[cut.mask(tensor)] for _, tensor, cut in parts]
    state = [[s[k][cut.mask(t)] for _, s, k in per_weight_state([opt], t)] for _, t, cut in parts]
    others = [tensor.detach()[~cut.mask(tensor)].clone() for _, tensor, cut in parts]
    whole = sum(p.numel() for p in model.parameters())
    scheme.bank.drop(filters, mode=mode)
    assert (sum(p.numel() for p in model.parameters()) < whole) == (mode == "compact")
    held = [(tensor, cut) for _, tensor, cut in parts] if mode == "masked" else []
    for tensor, cut in held:
        assert not tensor.detach()[cut.mask(tensor)].any(), "weight-reading losses must see zeros"
    losses = [train_step(called, opt, 10 + step, loop) for step in range(3)]
    assert all(loss == loss for loss in losses)
    for tensor, cut in held:
        assert not tensor.detach()[cut.mask(tensor)].any()
    scheme.bank.restore()
    for (name, tensor, cut), value, entries, rest in zip(parts, before, state, others):
        assert torch.equal(tensor.detach()[cut.mask(tensor)], value), name
        if tensor.ndim > 1:  # a bias under BatchNorm has no gradient
            assert not torch.equal(tensor.detach()[~cut.mask(tensor)], rest), f"{name}: the kept part did not train"
        now = [s[k][cut.mask(tensor)] for _, s, k in per_weight_state([opt], tensor)]
        assert all(torch.equal(a, b) for a, b in zip(now, entries, strict=True)), name


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("loop", ["plain", "compiled"])
@pytest.mark.parametrize("mode", MODES)
def test_a_returning_filter_is_orthogonal_and_fresh(net, optimizer, loop, mode):
    """Invariant 4."""
    check_returning(net, optimizer, loop, mode)


def check_returning(net: str, optimizer: str, loop: str, mode: str) -> None:
    model, opt, scheme, called = in_a_phase(net, optimizer, loop, subnetwork=mode)
    parameters, keys = list(model.parameters()), {k: v.shape for k, v in model.state_dict().items()}
    whole = {k: v.clone() for k, v in model.state_dict().items()}  # old values of the dropped, in place
    dropped = scheme.dropped
    for epoch in range(3):
        train_step(called, opt, epoch, loop)
        transition = scheme.step()
    assert transition is not None
    assert transition.kind == "restore"
    assert transition.filters == dropped
    assert scheme.phase == "full"
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert {k: v.shape for k, v in model.state_dict().items()} == keys
    for name, indices in dropped.items():
        layer, chosen = scheme.bank[name], list(indices)
        reference = layer.rows.double().clone()
        old = whole[f"{name}.weight"].double()
        reference[chosen] = (old.transpose(0, 1) if layer.module.transposed else old).flatten(1)[chosen]
        new, unit = unit_rows(layer.rows[chosen]), unit_rows(reference)
        if layer.dims - torch.linalg.matrix_rank(unit) >= len(chosen):
            assert (new @ unit.T).abs().max() < 1e-5
            assert (new @ new.T - torch.eye(len(chosen))).abs().max() < 1e-5
    norms = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, tensor, cut in belongings(scheme.bank, dropped):
        module, kind = name.rsplit(".", 1)
        if isinstance(model.get_submodule(module), (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert (tensor.detach()[cut.mask(tensor)] == norms[kind]).all(), name
        for _, state, key in per_weight_state([opt], tensor):
            assert not state[key][cut.mask(tensor)].any(), (name, key)


@pytest.mark.parametrize("net", [*NETS, "dropout"])
def test_no_cycles_is_training_without_the_library(net):
    """Invariant 5, bit for bit, under the model's own use of random numbers too."""
    results = []
    for attached in (True, False):
        torch.manual_seed(3)
        model, optimizer = build(net)
        scheme = scheme_for(model, optimizer, cycles=0) if attached else None
        for epoch in range(6):
            train_step(model, optimizer, epoch)
            if scheme:
                assert scheme.step() is None
        results.append((model.state_dict(), torch.get_rng_state()))
    assert list(results[0][0]) == list(results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][0].values(), results[1][0].values(), strict=True))
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("criterion", "method"),
    [
        (criterion, method)
        for criterion in tr.criteria.names()
        for method in (tr.METHODS[:1] if tr.criteria.needs_data(criterion) else tr.METHODS)
    ],
)
def test_no_global_random_state_is_touched(criterion, method):
    """Invariant 5."""
    model, optimizer = build("residual")
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    reinit = tr.Reinit(method, consumers="random")
    ranking = tr.criteria.make(criterion, [inputs(1)])
    settings = {"full": 2, "sub": 3, "cycles": 2, "criterion": ranking, "reinit": reinit, "max_per_layer": 0.5}
    with tr.RePr(model, optimizer, inputs()[0], **settings) as scheme:
        for _ in range(10):
            scheme.step()
        assert str(scheme)
        assert str(scheme.bank.preview(0.3, ranking))
        assert len(scheme.history) == 4
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_the_seed_decides_and_only_the_seed():
    def trained(seed: int, global_seed: int):
        torch.manual_seed(global_seed)
        model, optimizer = build("plain-norm")
        scheme = scheme_for(model, optimizer, criterion="random", seed=seed)
        for _ in range(10):
            scheme.step()
        return [t.filters for t in scheme.history], model.state_dict()["3.weight"]

    (filters, weight), (same, equal) = trained(1, 0), trained(1, 99)
    assert filters == same
    assert torch.equal(weight, equal)
    assert trained(2, 0)[0] != filters


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", ["plain", "plain-norm", "residual"])
def test_stop_anywhere_and_go_on_bit_identically(net, optimizer):
    """Invariant 6, plain loop: every optimizer, with and without norms, in every phase."""
    check_resume(net, optimizer, (1, 2, 3, 4, 7), "plain", "masked")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", ["plain", "residual"])
def test_stop_anywhere_in_a_compact_phase(net, optimizer):
    check_resume(net, optimizer, (2, 3, 4), "plain", "compact")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loop", LOOPS[1:])
def test_stop_anywhere_in_every_loop(loop, mode):
    check_resume("residual", "adamw", (1, 3, 6), loop, mode)


def check_resume(net: str, optimizer: str, stops: tuple[int, ...], loop: str, mode: str) -> None:
    """From each of these states fresh objects, loaded in the order model, optimizer, scheme, end with the same bits."""
    settings = {"full": 2, "sub": 2, "reinit": tr.Reinit(consumers="random"), "subnetwork": mode}
    model, opt = build(net, optimizer)
    scheme = scheme_for(model, opt, **settings)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    called, saved = looped(model, loop), {}
    for epoch in range(10):
        if epoch in stops:
            saved[epoch] = copy.deepcopy((model.state_dict(), opt.state_dict(), scheme.state_dict()))
        train_step(called, opt, epoch, loop)
        scheme.step()

    for stop, states in saved.items():
        assert {name: tuple(value.shape) for name, value in states[0].items()} == shapes
        model2, opt2 = build(net, optimizer, seed=77)
        scheme2 = scheme_for(model2, opt2, **settings, seed=5)
        for one, state in zip((model2, opt2, scheme2), states):
            one.load_state_dict(state)
        assert scheme2.phase == ("sub" if stop in (2, 3, 6, 7) else "full")
        assert scheme2.dropped == {name: tuple(indices) for name, indices in states[2]["dropped"].items()}
        assert bool(scheme2.dropped) == (stop in (2, 3, 6, 7))
        called = looped(model2, loop)
        for epoch in range(stop, 10):
            train_step(called, opt2, epoch, loop)
            scheme2.step()
        for (name, a), b in zip(model.state_dict().items(), model2.state_dict().values(), strict=True):
            assert torch.equal(a, b), (stop, name)
        assert [t.filters for t in scheme.history] == [t.filters for t in scheme2.history]
        for key, state in opt.state_dict()["state"].items():
            for entry, value in state.items():
                other = opt2.state_dict()["state"][key][entry]
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), (stop, key, entry)


@pytest.mark.parametrize(("net", "mode"), [("u-net", "masked"), *((net, "compact") for net in OTHER_SHAPES)])
def test_other_shapes_than_classifiers_of_pictures(net, mode):
    """Invariants 2, 4 and 6; the others are asked of random shapes in test_other_shapes.py."""
    check_frozen(net, "adamw", "plain", mode)
    check_returning(net, "momentum", "plain", mode)
    check_resume(net, "adamw", (3,), "plain", mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_dict_in_a_phase_holds_the_stored_values(mode):
    model, opt = build("residual", "adam")
    scheme = scheme_for(model, opt, subnetwork=mode)
    for epoch in range(2):
        train_step(model, opt, epoch)
    before, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    scheme.step(), scheme.step()
    assert scheme.phase == "sub"
    for keep_vars in (False, True):
        for name, value in model.state_dict(keep_vars=keep_vars).items():
            assert torch.equal(value, before[name]), name
    for key, state in opt.state_dict()["state"].items():
        for entry, value in state.items():
            assert torch.equal(value, moments["state"][key][entry]), (key, entry)
    assert "mask" not in " ".join(model.state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_loading_into_a_phase_is_refused(mode):
    model, opt, scheme, _ = in_a_phase("residual", subnetwork=mode)
    saved = model.state_dict(), opt.state_dict(), scheme.state_dict()
    before = [p.detach().clone() for p in model.parameters()]
    other = build("residual", seed=9)[0]
    for part in ("", "block2", "block2.conv1"):
        with pytest.raises(tr.ReaperError, match=r"load_state_dict: .* call scheme.restore\(\)"):
            model.get_submodule(part).load_state_dict(other.get_submodule(part).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "half of it was loaded"
    with pytest.raises(tr.ReaperError, match=r"load_state_dict: .* call scheme.restore\(\)"):
        model.load_state_dict(saved[0])
    with pytest.raises(tr.ReaperError, match=r"optimizer.load_state_dict: .* call scheme.restore\(\)"):
        opt.load_state_dict(saved[1])
    with pytest.raises(tr.ReaperError, match=r"call scheme.restore\(\)"):
        scheme.load_state_dict(saved[2])
    scheme.restore()
    model.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    scheme.load_state_dict(saved[2])
    assert scheme.phase == "sub"
