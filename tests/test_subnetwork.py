"""The hooks and the life of a sub-network: resizing, compiling, memory, copies, followers, dropout."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import weakref

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import torchreaper as tr
from tests.families import FAMILIES
from tests.nets import Residual, build, inputs, plain, train_step
from tests.twins import Twins, routed
from tests.zoo import torchvision_importable
from torchreaper.flow.channels import Site
from torchreaper.state import resize
from torchreaper.subnetwork.leaves import widened

torch.set_num_threads(1)

MODES = ("masked", "compact")
GONE = {"block1.conv1": [3], "block2.conv1": [0, 5]}


def scattering(model: nn.Module) -> tr.FilterBank:
    """A bank of the residual network in which the layers before sums are scattered too, though they are small."""
    bank = tr.find_filters(model, inputs()[0], skip=None)
    routed(bank, {layer.name: "scatter" for layer in bank.layers if layer.route == "masked"})
    return bank


EVERYWHERE = {**GONE, "stem": [1], "block1.conv2": [0, 2], "block2.conv2": [4], "block2.shortcut.0": [1, 2]}


class Alive:
    """Trains, and keeps every loss and output, as user code does."""

    def __init__(self, called: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.called, self.optimizer, self.kept = called, optimizer, []

    def step(self, seed: int) -> None:
        images, labels = inputs(seed)
        output = self.called(images)
        loss = nn.functional.cross_entropy(output, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=seed % 2 == 0)
        self.kept += [output, loss]


def both_directions(bank, alive: Alive, rewrap=lambda called: called) -> None:
    seen: list[str] = []
    weight = bank.model.block2.conv1.weight
    weight.register_hook(lambda gradient: seen.append(str(list(gradient.shape))))
    for seed in range(3):
        alive.step(seed)
        bank.drop(EVERYWHERE, mode="compact")
        assert list(weight.shape) == [4, 4, 3, 3]
        alive.called = rewrap(alive.called)
        alive.step(seed + 10)
        bank.restore("orthogonal")
        alive.called = rewrap(alive.called)
    alive.step(20)
    whole, small = "[6, 4, 3, 3]", "[4, 4, 3, 3]"
    assert seen == [whole, small, whole, small, whole, small, whole], "the user's own tensor hook, once a step"


def test_losses_and_outputs_may_live_through_transitions():
    model, optimizer = build("residual")
    bank = scattering(model)
    bank.attach(optimizer)
    both_directions(bank, Alive(model, optimizer))


def test_without_the_detour_autograd_remembers_the_old_shape():
    """Why `resize` is what it is. Should this fail one day, the detour can go."""
    model, optimizer = build("plain")
    alive = Alive(model, optimizer)
    alive.step(0)
    for name in ("0.weight", "0.bias"):
        parameter = model.get_parameter(name)
        parameter.grad, parameter.data = None, parameter.data[:3].clone()
    model[2].weight.data = model[2].weight.data[:, :3].clone()
    with pytest.raises(RuntimeError, match="invalid gradient at index 1"):
        alive.step(1)


def test_resize_keeps_object_hooks_and_a_given_gradient():
    parameter = nn.Parameter(torch.ones(3, 2))
    seen = []
    parameter.register_hook(lambda gradient: seen.append(tuple(gradient.shape)))
    parameter.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    loss = parameter.square().sum()
    loss.backward()
    resize(parameter, torch.zeros(2, 2), torch.ones(2, 2))
    (parameter.sum() * 2).backward()
    assert torch.equal(parameter.grad, torch.full((2, 2), 3.0))
    assert seen == [(3, 2), (3, 2), (2, 2), (2, 2)]
    half = torch.zeros(2, dtype=torch.float16)
    resize(half, torch.ones(1, dtype=torch.float16))
    assert half.dtype == torch.float16
    assert half.shape == (1,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(backend):
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    twins = {}
    for called in ("plain", "compiled"):
        model, optimizer = build("residual")
        bank = scattering(model)
        bank.attach(optimizer)
        alive = Alive(torch.compile(model, backend=backend) if called == "compiled" else model, optimizer)
        both_directions(bank, alive)
        twins[called] = model.state_dict()
        assert bank._subnetwork.graphs == (2 if called == "compiled" else 0), "full, sub, and no further one"
    for name in twins["plain"]:
        torch.testing.assert_close(twins["plain"][name], twins["compiled"][name], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_wrapped_anew_by_ddp_with_the_old_wrapper_alive(one_rank):
    model, optimizer = build("residual")
    bank = scattering(model)
    bank.attach(optimizer)
    wrappers = []

    def wrap(_) -> nn.Module:
        wrappers.append(nn.parallel.DistributedDataParallel(model))
        return wrappers[-1]

    both_directions(bank, Alive(wrap(None), optimizer), wrap)
    assert bank.resolve("auto")[0] == "masked"
    assert "torch.distributed is initialised" in bank.resolve("auto")[1]


def saved_bytes(model: nn.Module) -> int:
    """What autograd keeps for the way back, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(inputs(n=8)[0])
        gc.collect()  # the storages of this pass only
        output.sum()
    return sum(storages.values())


@pytest.mark.parametrize("net", ["residual", "plain-norm", "conv1d", "mobile", "densenet"])
def test_a_compact_phase_keeps_less_than_a_full_one(net):
    if net in ("mobile", "densenet"):
        model = FAMILIES["mobile" if net == "mobile" else "pre-activation"]()
    else:
        model = build(net)[0]
    bank = scattering(model)
    full = saved_bytes(model)
    gone = {layer.name: list(range(layer.filters // 3)) for layer in bank.layers if layer.droppable}
    sizes = {}
    for mode in MODES:
        with bank.without(gone, mode):
            sizes[mode] = saved_bytes(model)
    assert sizes["compact"] < full
    assert sizes["compact"] < sizes["masked"]


@pytest.mark.parametrize("mode", MODES)
def test_model_optimizer_and_scheme_copied_together_go_on(mode):
    """In the phase, too: the copy's own filters come back to it."""

    def run(model, optimizer, scheme, first, last):
        for epoch in range(first, last):
            train_step(model, optimizer, epoch)
            scheme.step()
        return model.state_dict()

    model, optimizer = build("residual", "adamw")
    scheme = tr.RePr(model, optimizer, inputs()[0], full=2, sub=2, cycles=2, subnetwork=mode)
    run(model, optimizer, scheme, 0, 3)
    assert scheme.bank.mode == mode
    copies = {
        "together": copy.deepcopy((model, optimizer, scheme)),
        "pickled": pickle.loads(pickle.dumps((model, optimizer, scheme))),
    }
    alone = copy.deepcopy(scheme)
    copies["alone"] = (alone.model, alone.bank._optimizers[0], alone)
    expected = run(model, optimizer, scheme, 3, 8)
    for how, (other, its_optimizer, its_scheme) in copies.items():
        assert its_scheme.model is other
        assert other is not model
        assert its_scheme.phase == "sub", "untouched by what the original did"
        found = run(other, its_optimizer, its_scheme, 3, 8)
        assert all(torch.equal(found[name], expected[name]) for name in expected), how
        its_scheme.remove()
        assert not any(m._forward_hooks or m._state_dict_hooks for m in other.modules())
        assert not any(p._backward_hooks for p in other.parameters())


def hooked(model: nn.Module) -> bool:
    return any(m._forward_hooks or m._state_dict_hooks or m._load_state_dict_pre_hooks for m in model.modules())


@pytest.mark.parametrize("mode", MODES)
def test_whole_copies_lose_their_hooks_with_the_model(mode):
    """Not those with a scheme of their own, nor those made in a phase, which would compute something else then."""
    model, optimizer = build("residual")
    scheme = tr.RePr(model, optimizer, inputs()[0], full=1, sub=1, cycles=2, subnetwork=mode)
    theirs: list[str] = []
    whole, gone = copy.deepcopy(model), copy.deepcopy(model)
    again, pickled = copy.deepcopy(whole), pickle.loads(pickle.dumps(model))
    whole.stem.register_forward_hook(lambda *_: theirs.append("called"))
    other, _, its_scheme = copy.deepcopy((model, optimizer, scheme))
    expected = model(inputs()[0])
    scheme.step()
    small = copy.deepcopy(model)
    without = small(inputs()[0])
    scheme.step()
    del gone
    gc.collect()
    assert all(hooked(one) for one in (whole, again))
    scheme.remove()
    assert [hooked(one) for one in (model, again, pickled, other, small)] == [False, False, True, True, True]
    assert len(whole.stem._forward_hooks) == 1, "the user's own"
    for one in (whole, again, pickled, other):
        assert torch.equal(one(inputs()[0]), expected)
    assert theirs == ["called"]
    assert torch.equal(small(inputs()[0]), without)
    assert not torch.equal(without, expected)
    tr.RePr(whole, torch.optim.SGD(whole.parameters(), lr=0.1), inputs()[0]).remove()
    assert [its_scheme.step().kind for _ in range(4)] == ["drop", "restore"] * 2
    its_scheme.remove()
    assert not hooked(other)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_the_model_does_not_stay_in_memory(mode):
    model, optimizer = build("residual")
    scheme = tr.RePr(model, optimizer, inputs()[0], full=1, sub=1, subnetwork=mode)
    other, _, its_scheme = copy.deepcopy((model, optimizer, scheme))
    for one, its in ((model, scheme), (other, its_scheme)):
        its.step()
        saved = [weakref.ref(tensor) for tensor in one.state_dict().values()]
        gone = {name for name, leaf in its.bank._subnetwork._whole.leaves.items() if leaf.parts}
        assert gone
        kept = {id(tensor) for tensor in (*one.parameters(), *one.buffers())}
        assert all(ref() is None or id(ref()) in kept for ref in saved)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("buffers", [False, True])
def test_a_follower_averages_what_is_there(mode, kind, buffers):
    """Kept filters: the average by hand, in float64. Returned ones: from the value they returned with, on."""
    model = build("residual")[0].double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if kind == "swa" and buffers:
        pytest.skip("torch's SWA function does not average the counters of norms")
    average = get_ema_multi_avg_fn(0.8) if kind == "ema" else get_swa_multi_avg_fn()
    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=buffers)
    scheme = tr.RePr(
        *(model, optimizer, inputs(dtype=torch.float64)[0]),
        **{"full": 2, "sub": 2, "cycles": 1, "subnetwork": mode, "followers": [ema.module], "skip": None},
        fraction=0.35,
        max_per_layer=0.6,
    )
    by_hand: dict[str, torch.Tensor] = {}
    returned = {}
    for epoch in range(6):
        images, labels = inputs(epoch, dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        ema.update_parameters(model)
        for name, value in model.state_dict().items():
            if name in dict(model.named_parameters()) or buffers:
                weight = (0.2 if kind == "ema" else 1 / (epoch + 1)) if epoch else 1.0
                before = by_hand.get(name, torch.zeros_like(value))
                by_hand[name] = before + weight * (value - before) if value.is_floating_point() else value.clone()
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        assert {name: value.shape for name, value in ema.module.state_dict().items()} == shapes
        transition = scheme.step()
        if transition and transition.kind == "restore":
            from tests.test_invariants import belongings

            for name, tensor, cut in belongings(scheme.bank, transition.filters):
                if name in by_hand:
                    returned[name] = cut.mask(tensor)
                    cut.copy(tensor, by_hand[name])
    assert returned
    averages = ema.module.state_dict()
    close = 1e-12 if kind == "ema" else 1e-8  # torch divides by its count as a float32 tensor
    for name, value in by_hand.items():
        if value.is_floating_point():
            torch.testing.assert_close(averages[name], value, rtol=1e-12, atol=close, msg=lambda m, n=name: f"{n}: {m}")
    output = ema.module.eval()(inputs(dtype=torch.float64)[0])
    whole = Residual().double()
    whole.load_state_dict(averages)
    torch.testing.assert_close(output, whole.eval()(inputs(dtype=torch.float64)[0]))


@pytest.mark.parametrize("mode", MODES)
def test_a_follower_finds_its_averages_again_where_nothing_is_re_initialised(mode):
    model, optimizer = build("residual")
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    bank = tr.find_filters(model, inputs()[0])
    bank.attach(optimizer, followers=[ema.module])
    for seed in range(2):
        train_step(model, optimizer, seed)
        ema.update_parameters(model)
    before = copy.deepcopy(ema.module.state_dict())
    with bank.without(GONE, mode):
        assert all(torch.equal(a, b) for a, b in zip(before.values(), ema.module.state_dict().values()))
        with pytest.raises(tr.ReaperError, match=r"call scheme.restore\(\)"):
            ema.module.load_state_dict(before)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), ema.module.state_dict().values()))


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_averages_over_state_dicts_need_no_mention(mode, foreach):
    """timm's ModelEmaV3: a dropped filter counts with the values it had when dropped."""
    torchvision_importable()
    from timm.utils import ModelEmaV3

    model, optimizer = build("residual")
    scheme = tr.RePr(model, optimizer, inputs()[0], full=2, sub=2, cycles=1, subnetwork=mode)
    ema = ModelEmaV3(model, decay=0.8, foreach=foreach)
    by_hand = {name: value.double() for name, value in model.state_dict().items()}
    for epoch in range(6):
        train_step(model, optimizer, epoch)
        ema.update(model)
        for name, value in model.state_dict().items():
            by_hand[name] = 0.8 * by_hand[name] + 0.2 * value.double()
        scheme.step()
    assert [t.kind for t in scheme.history] == ["drop", "restore"]
    for name, value in ema.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-5, atol=1e-6)


def test_wrong_followers_are_named():
    model, optimizer = build("residual")
    bank = tr.find_filters(model, inputs()[0])
    for follower, message in [
        (AveragedModel(model), r"followers\[0\]=AveragedModel: has other parameters .* pass ema.module"),
        (model, r"followers\[0\]=Residual: must be a copy of the model"),
        (plain(), r"followers\[0\]=Sequential: has other parameters"),
    ]:
        with pytest.raises(tr.ReaperError, match=message):
            bank.attach(optimizer, followers=[follower])
    twin = copy.deepcopy(model)
    with pytest.raises(tr.ReaperError, match=r"followers\[1\]=Residual: is named twice; name each copy once"):
        bank.attach(optimizer, followers=[twin, twin])
    with pytest.raises(tr.ReaperError, match="followers=Residual: must be a list of copies of the model"):
        bank.attach(optimizer, followers=copy.deepcopy(model))
    bank.attach(optimizer)
    bank.drop(GONE)
    late = copy.deepcopy(model)
    bank.restore()
    bank.detach()
    with pytest.raises(tr.ReaperError, match=r"followers\[0\]=Residual: was copied in a sub-network phase"):
        bank.attach(optimizer, followers=[late])
    assert not any(m._forward_hooks or m._state_dict_hooks for m in model.modules())
    assert bank._subnetwork is None


class Named(nn.Dropout):
    """Its input comes by name."""

    def __call__(self, x):
        return super().__call__(input=x)


def dropping_out(kind: str) -> tuple[nn.Module, str]:
    kinds = {"Dropout": nn.Dropout, "Dropout2d": nn.Dropout2d, "RReLU": nn.RReLU, "named": Named}
    drop = kinds[kind](0.2)  # of RReLU, the least slope; it draws where values are negative
    relu = 6 - (kind == "RReLU")
    before, behind = build("plain-norm")[0][:relu], build("plain-norm", seed=1)[0][6:]
    return nn.Sequential(*before, drop, *behind).double(), str(relu)


@pytest.mark.parametrize("kind", ["Dropout", "Dropout2d", "RReLU", "named"])
@pytest.mark.parametrize("exact", [False, True])
def test_dropout_at_full_width(kind, exact):
    """Masked draws random numbers for dropped channels as well; with exact_dropout, compact does too."""
    model, name = dropping_out(kind)

    def prepare(bank):
        if kind == "named":  # the flow looks into it
            bank.flow.dropouts[name] = Site(bank.flow.sites["4"].origin, -3)
        assert name in bank.flow.dropouts

    twins = Twins(
        *(model, inputs(dtype=torch.float64)[0], lambda p: torch.optim.SGD(p, lr=0.1)),
        prepare=prepare,
    )

    def step(model, optimizer):
        output = model(inputs(1, dtype=torch.float64)[0])
        optimizer.zero_grad()
        nn.functional.cross_entropy(output, inputs(1)[1]).backward()
        optimizer.step()
        return output.detach()

    torch.manual_seed(1)
    twins.each(step)
    twins.drop({"3": [0, 4]}, exact_dropout=exact)
    if exact:
        twins.each(step)
        twins.each(step)
        twins.restore("orthogonal")
        twins.each(step)
    else:
        with pytest.raises(AssertionError):
            twins.each(step)


def test_exact_dropout_is_an_option_of_the_scheme():
    model, _ = dropping_out("Dropout")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheme = tr.RePr(
        model, optimizer, inputs(dtype=torch.float64)[0], full=1, sub=1, exact_dropout=True, max_per_layer=0.4
    )
    scheme.step()
    dropouts = scheme.bank._subnetwork._whole._dropouts.values()
    assert any(dropout.kept is not None for dropout in dropouts) == ("3" in scheme.dropped)
    scheme.restore()
    assert all(dropout.kept is None for dropout in dropouts)


def test_exact_dropout_that_can_do_nothing_is_told():
    with_dropout, optimizer = build("dropout")
    with pytest.raises(tr.ReaperError, match="exact_dropout=1: must be True or False"):
        tr.RePr(with_dropout, optimizer, inputs()[0], exact_dropout=1)
    with pytest.warns(tr.NoEffectWarning, match="exact_dropout=True: has no effect .masked draws at full width"):
        tr.RePr(with_dropout, optimizer, inputs()[0], exact_dropout=True, subnetwork="masked").remove()
    model, optimizer = build("plain")
    with pytest.warns(tr.NoEffectWarning, match="exact_dropout=True: has no effect .no filter passes an nn.Dropout"):
        tr.RePr(model, optimizer, inputs()[0], exact_dropout=True)


@pytest.mark.parametrize("last", [False, True])
def test_putting_an_output_back_to_full_width(last):
    narrow = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    if last:
        narrow = narrow.to(memory_format=torch.channels_last)
    narrow.requires_grad_()
    kept = torch.tensor([0, 2, 5])
    wide = widened(narrow, -3, kept, 6)
    assert torch.equal(wide[:, kept], narrow)
    assert not wide[:, [1, 3, 4]].any()
    assert wide.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert torch.autograd.gradcheck(lambda x: widened(x, -3, kept, 6), narrow)
