"""Directions chosen by gradient: the best of the candidates, measured without a trace, or refused without one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from tests.criteria.bruteforce import BATCHES, built, mean_loss
from tests.nets import build, inputs
from tests.test_reinit import generator, layers
from tests.twins import assert_all_close, flat_state, full_gradients
from torchreaper.candidates import Contest, no_choice, strongest
from torchreaper.filters import cuts, dropped_ids
from torchreaper.geometry import unit_rows
from torchreaper.reinit import candidate_rows, span

RETURNING = {
    "plain-norm": {"0": (1,), "3": (0, 4), "6": (2, 3)},
    "residual": {"stem": (2,), "block1.conv1": (0, 3), "block1.conv2": (1,), "block2.conv1": (2,)},
    "conv1d": {"conv1": (0, 3), "conv2": (5,)},
    "groups": {"0": (1,), "2": (0, 4, 5)},
}


def network(net: str, seed: int = 0) -> tuple[nn.Module, tr.FilterBank]:
    if net != "groups":
        return built(net, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
        model = nn.Sequential(*parts).double()
    return model, tr.find_filters(model, BATCHES[0][0], skip=None)


def contests_of(bank: tr.FilterBank, returning, times: int = 3) -> list[Contest]:
    """Random directions for every layer that leaves a choice, group by group."""
    found = []
    for name, indices in returning.items():
        layer = bank[name]
        if no_choice(bank.model, bank.flow, layer):
            continue
        size = layer.filters // layer.groups
        for group in range(layer.groups):
            places = torch.tensor([i for i in indices if i // size == group], dtype=torch.int64)
            if len(places):
                rows = torch.randn(times * len(places) - 1, layer.dims, generator=generator(len(found)))
                found.append(Contest(layer, places, rows.double()))
    return found


def one_by_one(model, bank, ids, contest) -> list[float]:
    """The gradient of every candidate alone: all other returning filters are gone, by what they own and what reads
    them."""
    lengths = []
    for row in contest.rows:
        alone = copy.deepcopy(model).eval()
        for name, entries in cuts(bank.flow, ids).items():
            for tensor, cut in entries.items():
                cut.fill(getattr(alone.get_submodule(name), tensor).detach(), 0.0)
        place = int(contest.places[0])
        module = alone.get_submodule(contest.layer.name)
        mine = cuts(bank.flow, torch.tensor([contest.layer.start + place]))
        original = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, entries in mine.items():
            for tensor, cut in entries.items():
                if not len(cut.columns):  # its own norm entries and bias
                    cut.copy(original[f"{name}.{tensor}"], getattr(alone.get_submodule(name), tensor))
        with torch.no_grad():
            module.weight[place] = row.view_as(module.weight[place])
        mean_loss(alone).backward()
        squares = [
            getattr(alone.get_submodule(name), tensor).grad.index_select(1, cut.columns).square().sum()
            for name, entries in mine.items()
            for tensor, cut in entries.items()
            if len(cut.columns)
        ]
        lengths.append(float(sum(squares)))
    return lengths


@pytest.mark.parametrize("net", list(RETURNING))
def test_those_that_the_loss_wants_most_are_taken(net):
    model, bank = network(net)
    ids = dropped_ids(bank.layers, RETURNING[net])
    fresh = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}  # so that all places are alike
    for name, entries in cuts(bank.flow, ids, {"filter", "norm"}).items():
        for tensor in entries.keys() - ({"weight"} if name in RETURNING[net] else set()):
            entries[tensor].fill(getattr(model.get_submodule(name), tensor).detach(), fresh[tensor])
    contests = contests_of(bank, RETURNING[net])
    assert len(contests) == {"plain-norm": 3, "residual": 2, "conv1d": 2, "groups": 2}[net]
    found = strongest(model, bank.flow, contests, ids, tr.Candidates(BATCHES))
    for contest, best in zip(contests, found):
        lengths = torch.tensor(one_by_one(model, bank, ids, contest))
        assert best == sorted(lengths.argsort(descending=True)[: len(contest.places)].tolist())
        assert lengths.min() < 0.99 * lengths.max()


@pytest.mark.parametrize("net", ["plain-norm", "residual"])
def test_measuring_leaves_no_trace_and_does_not_change_what_the_network_says(net):
    model, bank = network(net)
    mean_loss(model).backward()
    model.train()
    before = copy.deepcopy((model.state_dict(), [p.grad for p in model.parameters()]))
    random, losses = torch.get_rng_state(), []

    def noted(outputs, targets):
        torch.rand(1)
        losses.append(F.cross_entropy(outputs, targets))
        return losses[-1]

    ids = dropped_ids(bank.layers, RETURNING[net])
    strongest(model, bank.flow, contests_of(bank, RETURNING[net]), ids, tr.Candidates(BATCHES, noted, max_batches=1))
    after = model.state_dict(), [p.grad for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values()))
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1]))
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    with bank.without(RETURNING[net], mode="masked"), torch.no_grad():
        expected = F.cross_entropy(model.eval()(BATCHES[0][0]), BATCHES[0][1])
    assert len(losses) == 3
    for loss in losses:
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-13, atol=0)


def test_a_batch_counts_by_its_size():
    model, bank = network("plain")
    contests = contests_of(bank, {"2": (0, 1, 2, 3, 4)}, times=8)
    parts = [inputs(1, 9, torch.float64), inputs(2, 1, torch.float64)]
    whole = [tuple(torch.cat(both) for both in zip(*parts))]
    found = [
        strongest(model, bank.flow, contests, bank["2"].start + contests[0].places, tr.Candidates(batches))
        for batches in (parts, whole, parts[:1])
    ]
    assert found[0] == found[1] != found[2]


def test_the_order_of_the_candidates_does_not_count_under_autocast_either():
    """Autocast keeps the weights that it has cast; those of the round before must not be used."""
    model, bank = network("plain-norm")
    model.float()
    one = contests_of(bank, {"3": (4,)}, times=9)[0]
    turned = Contest(one.layer, one.places, one.rows.flip(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            strongest(model, bank.flow, [x], bank["3"].start + x.places, tr.Candidates(BATCHES))[0][0]
            for x in (one, turned)
        ]
    assert found[0] == 7 - found[1]


@given(layers(), st.integers(0, 1000), st.integers(2, 5))
@settings(max_examples=30)
def test_any_of_the_candidates_could_return_together(layer, seed, times):
    """Invariant 4."""
    rows, count = layer
    room = rows.shape[1] - span(rows).shape[1]
    reinit = tr.Reinit(gain=2, candidates=tr.Candidates([], times=times))
    made = candidate_rows(rows, torch.arange(count), reinit, generator(seed))
    assert (made is None) == (room <= count)
    if made is not None:
        assert len(made.rows) == min(times * count, room) > count
        assert (made.rows @ unit_rows(rows).T).abs().max() < 1e-5
        torch.testing.assert_close(made.rows @ made.rows.T, 4 * torch.eye(len(made.rows), dtype=torch.float64))


def test_random_directions_have_room_for_any_number():
    rows = torch.randn(6, 4, dtype=torch.float64, generator=generator())
    made = candidate_rows(rows, torch.arange(3), tr.Reinit("random", candidates=tr.Candidates([])), generator(1))
    assert made.rows.shape == (24, 4)


def test_what_no_filter_sees_and_the_label_tells_comes_back():
    """The kept filters are blind for the one pattern that the label depends on; five directions are free."""
    hits = []
    for seed in range(12):
        draws = torch.randn(200, 9, dtype=torch.float64, generator=generator(seed))
        basis = torch.linalg.qr(draws[:9])[0]
        pattern, images = basis[8], draws[9:]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).double()
        model[0].weight.data = basis[:4].reshape(4, 1, 3, 3).clone()
        batch = images.view(-1, 1, 3, 3), (images @ pattern > 0).long()
        bank = tr.find_filters(model, batch[0], skip=None, seed=seed)
        bank.drop({"0": (3,)})
        note = bank.restore(tr.Reinit(gain=1, candidates=tr.Candidates([batch])))[0]
        assert "room 5 of 9, chosen of 5 by gradient" in note
        hits.append(float(model[0].weight[3].detach().flatten() @ pattern) ** 2)
    assert sum(hits) / len(hits) > 0.35  # by chance 0.2


class Loader:
    """Fails behind its first batch when it is told to."""

    works = True

    def __iter__(self):
        yield BATCHES[0]
        if not self.works:
            raise OSError("the disk is gone")
        yield BATCHES[1]


def begun(net: str, mode: str, reader=BATCHES, sub: int = 1, **how):
    """Before a return that is due, with an average that follows: in a sub-network phase, or with none."""
    model, _ = build(net)
    model.double()
    follower = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    reinit = tr.Reinit(consumers="random", candidates=tr.Candidates(reader, **how))
    places = {"skip": None, "max_per_layer": 0.6, "followers": [follower], "subnetwork": mode}
    scheme = tr.RePr(
        model, optimizer, BATCHES[0][0], full=1 if sub else 2, sub=sub, cycles=2, fraction=0.35, reinit=reinit, **places
    )
    for epoch in range(2):
        images, labels = inputs(epoch, dtype=torch.float64)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if not epoch:
            scheme.step()
    assert scheme.bank.mode == (mode if sub else None)
    return model, optimizer, scheme, follower


def everything(model, optimizer, scheme, follower) -> dict[str, torch.Tensor]:
    gradients = {f"gradient of {name}": value for name, value in full_gradients(scheme.bank).items()}
    weights = {
        f"{name} {n}": v for n, one in (("own", model), ("average", follower)) for name, v in one.state_dict().items()
    }
    weights |= {f"as it is {name}": value.detach() for name, value in model.named_parameters()}
    return copy.deepcopy({**weights, **gradients, **flat_state(optimizer), "random": scheme.bank.generator.get_state()})


def test_without_a_phase_too():
    reader = Loader()
    whole, failing = begun("plain", "auto", sub=0), begun("plain", "auto", reader, sub=0)
    failing[0].zero_grad()  # that of dropped filters goes with them
    before = everything(*failing)
    reader.works = False
    with pytest.raises(tr.ReaperError, match="the disk is gone"):
        failing[2].step()
    assert (failing[2].phase, failing[2].steps) == ("full", 1)
    assert_all_close(everything(*failing), before, "after a failure", rtol=0, atol=0)
    reader.works = True
    whole[0].zero_grad()
    assert failing[2].step().notes == whole[2].step().notes
    assert_all_close(everything(*failing), everything(*whole), "after all", rtol=0, atol=0)


def test_leaving_the_block_leaves_a_whole_model_where_measuring_fails():
    reader = Loader()
    model, _, scheme, _ = begun("plain", "compact", reader)
    whole = copy.deepcopy(model.state_dict())
    reader.works = False
    with pytest.raises(tr.ReaperError, match="the disk is gone"), scheme:
        pass
    assert all(torch.equal(value, whole[name]) for name, value in model.named_parameters())
    tr.find_filters(model, BATCHES[0][0]).attach()  # nothing of the scheme is left on it


def nothing_finite(outputs, targets):
    return F.cross_entropy(outputs, targets) * float("nan")


class Overflow(torch.autograd.Function):
    """A finite loss whose gradient is not."""

    @staticmethod
    def forward(ctx, outputs):
        return outputs.sum()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full((6, 3), float("inf"), dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("net", "mode"), [("residual", "masked"), ("plain-norm", "compact")])
def test_where_measuring_fails_the_step_can_be_tried_again(net, mode, momentum):
    reader = Loader()
    whole, failing = begun(net, mode), begun(net, mode, reader)
    for model in (whole[0], failing[0]):
        for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
            norm.momentum = momentum
    scheme = failing[2]
    before = everything(*failing)
    reader.works = False
    with pytest.raises(tr.ReaperError, match=r"^reinit\.candidates: cannot be measured \(OSError: the disk is gone\)"):
        (scheme.step if mode == "masked" else scheme.restore)()
    assert (scheme.phase, scheme.steps, scheme.bank.mode) == ("sub", 1, mode)
    assert_all_close(everything(*failing), before, "after a failure", rtol=0, atol=0)
    reader.works = True
    assert scheme.step().notes == whole[2].step().notes
    assert any("by gradient" in note for note in scheme.history[-1].notes)
    assert_all_close(everything(*failing), everything(*whole), "after all", rtol=0, atol=0)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"loss_fn": nothing_finite}, "loss_fn: gives nan on batch 0"),
        (
            {"loss_fn": lambda outputs, targets: Overflow.apply(outputs), "max_batches": 1},
            "layer '0': the gradient of what reads its candidates is not finite; look for",
        ),
    ],
)
def test_a_gradient_that_is_not_finite_is_refused(how, text):
    scheme = begun("plain-norm", "compact", **how)[2]
    with pytest.raises(tr.ReaperError) as caught:
        scheme.step()
    assert str(caught.value).startswith(text)
    assert scheme.phase == "sub"


@pytest.mark.parametrize("net", ["plain-norm", "residual"])
def test_compact_chooses_what_masked_does(net):
    """Invariant 3; and the average takes over what was chosen."""
    masked, compact = begun(net, "masked"), begun(net, "compact")
    assert masked[2].step().filters == compact[2].step().filters
    assert_all_close(everything(*masked), everything(*compact), "chosen")
    for model, _, scheme, follower in (masked, compact):
        for name, indices in scheme.history[-1].filters.items():
            one, other = (part.get_submodule(name).weight[list(indices)] for part in (model, follower))
            assert torch.equal(one, other)
        chance = [note for note in scheme.history[-1].notes if "left to chance (full width at add)" in note]
        assert bool(chance) == (net == "residual")


def test_without_room_chance_decides_and_the_note_says_so():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3)).double()
    bank = tr.find_filters(model, BATCHES[0][0], skip=None)
    bank.drop({"0": (2, 3)})
    (note,) = bank.restore(tr.Reinit(candidates=tr.Candidates(BATCHES)))
    assert note.startswith(
        "0: 2 back, room 0 of 3, 2 orthogonal to the 1 most overlapping only, left to chance (no room"
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tr.Candidates(BATCHES, times=1), "times=1: must be a whole number of at least 2"),
        (lambda: tr.Candidates(iter(BATCHES)), "batches=list_iterator: can be read only once"),
        (lambda: tr.Reinit(candidates=8), "reinit.candidates=8: must be a tr.Candidates(batches, loss_fn), or None"),
        (
            lambda: tr.Reinit("zero", candidates=tr.Candidates(BATCHES)),
            "reinit.candidates=8 times: has no effect with method 'zero', whose directions are not random",
        ),
    ],
)
def test_wrong_choices_are_named(make, text):
    with pytest.raises(tr.ReaperError) as caught:
        make()
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_where_no_layer_leaves_a_choice_a_warning_says_so():
    model, optimizer = build("residual")
    reinit = tr.Reinit(candidates=tr.Candidates(BATCHES))
    with pytest.warns(tr.NoEffectWarning, match=r"^reinit\.candidates=Candidates\(.*no ranked filter is read by later"):
        tr.RePr(model, optimizer, inputs()[0], skip=["stem", "*.conv1"], reinit=reinit)


def test_a_checkpoint_of_other_candidates_is_refused():
    state = begun("plain", "masked")[2].state_dict()
    whole = begun("plain", "masked", times=4)[2]
    whole.restore()
    with pytest.raises(tr.ReaperError, match="reinit candidates times was 8 when saved and is 4 now"):
        whole.load_state_dict(state)
