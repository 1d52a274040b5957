from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from tests.nets import build, inputs, plain, train_step
from torchreaper.transitions import SCORED, planned, transition_at

ROOT = Path(__file__).parents[1]


def scheme_for(model=None, optimizer=None, **settings) -> tr.RePr:
    if model is None:
        model, optimizer = build("residual")
    return tr.RePr(model, optimizer, inputs()[0], **{"full": 2, "sub": 1, "cycles": 2, **settings})


def test_the_papers_schedule():
    moves = {step: transition_at(step, 20, 10, 3) for step in range(-5, 200) if transition_at(step, 20, 10, 3)}
    assert moves == {
        **{20: ("drop", 1), 30: ("restore", 1), 50: ("drop", 2), 60: ("restore", 2)},
        **{80: ("drop", 3), 90: ("restore", 3)},
    }


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_any_schedule_alternates(full, sub, cycles):
    moves = [(s, *m) for s in range(200) if (m := transition_at(s, full, sub, cycles))]
    assert len(moves) == 2 * cycles
    assert [kind for _, kind, _ in moves] == ["drop", "restore"] * cycles
    assert [c for _, _, c in moves] == [k for k in range(1, cycles + 1) for _ in range(2)]
    steps = [0, *(s for s, _, _ in moves)]
    assert [b - a for a, b in pairwise(steps)] == [full, sub] * cycles


@pytest.mark.parametrize(
    ("epochs", "phases"),
    [
        (None, (2, 2, 8)),
        (40, (2, 2, 8)),
        (100, (5, 5, 8)),
        (400, (20, 20, 8)),
        (10, (1, 1, 4)),
        (3, (1, 1, 1)),
        (30, (2, 2, 6)),
    ],
)
def test_what_is_planned_is_what_gained_accuracy_stretched_to_the_training(epochs, phases):
    assert planned(epochs) == phases


@pytest.mark.parametrize(
    ("asked", "phases"),
    [
        ((40, None, 0), (4, 0, 8)),  # the control re-initialises as often
        ((None, None, 0), (4, 0, 8)),
        ((None, 20), (20, 2, 8)),
        ((None, None, None, 3), (2, 2, 3)),
        ((40, 20), (20, 12, 1)),
        ((40, 30), (30, 2, 1)),
        ((100, None, None, 20), (2, 2, 20)),
        ((100, None, None, 2), (5, 5, 2)),
        ((100, None, None, 0), (5, 5, 0)),
        ((90, 10, 5), (10, 5, 4)),
    ],
)
def test_what_is_not_given_is_planned_around_what_is(asked, phases):
    assert planned(*asked) == phases
    assert {type(value) for value in planned(*asked)} == {int}


def test_a_plan_for_longer_is_not_the_one_that_was_saved():
    saved = tr.RePr(*build("residual"), inputs()[0], epochs=40).state_dict()
    longer = tr.RePr(*build("residual"), inputs()[0], epochs=100)
    with pytest.raises(
        tr.ReaperError, match=r"full was 2 when saved and is 5 now; build the scheme with the settings \("
    ):
        longer.load_state_dict(saved)


def test_a_plan_ends_with_all_filters_back_and_epochs_left_for_them():
    for epochs in range(3, 5001):
        full, sub, cycles = planned(epochs)
        last = (full + sub) * cycles
        assert full == sub
        assert 0 < last < epochs
        assert epochs < 10 or 0.62 * epochs <= last <= 0.8 * epochs


@pytest.mark.parametrize("epochs", [3, 40, 4999])
def test_a_scheme_that_knows_its_epochs_goes_by_the_plan(epochs):
    scheme = tr.RePr(*build("residual"), inputs()[0], epochs=epochs)
    assert (scheme.full, scheme.sub, scheme.cycles) == planned(epochs)


@given(st.integers(1, 300), *[st.none() | st.integers(least, 30) for least in (1, 0, 0)])
def test_a_plan_leaves_what_was_asked_for_and_what_is_refused_would_not_have_ended_whole(epochs, full, sub, cycles):
    asked = full, sub, cycles
    plan = planned(epochs, *asked)
    assert all(given in (None, value) for given, value in zip(asked, plan, strict=True))
    moves = [move for step in range(1, epochs) if (move := transition_at(step, *plan))]  # the last epoch trains on
    whole = [kind for kind, _ in moves].count("restore") == plan[2]
    model, optimizer = build("residual")
    phases = "full={}, sub={}, cycles={}: need {} epochs and at least one more for the filters that return last"
    text = f"{phases.format(*plan, plan[2] * (plan[0] + plan[1]))}, epochs={epochs}; raise epochs or lower full, sub or"
    with nullcontext() if whole else pytest.raises(tr.ReaperError, match=f"^{re.escape(text)} cycles$"):
        scheme = tr.RePr(model, optimizer, inputs()[0], epochs=epochs, full=full, sub=sub, cycles=cycles)
        assert (scheme.full, scheme.sub, scheme.cycles) == plan
        scheme.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_transitions():
    model, optimizer = build("residual")
    scheme = scheme_for(model, optimizer, fraction=0.3, skip=("first", "block2.shortcut.0"))
    seen = []
    for epoch in range(8):
        train_step(model, optimizer, epoch)
        seen.append(scheme.step())
    assert [t.kind if t else None for t in seen] == [None, "drop", "restore", None, "drop", "restore", None, None]
    drop, restore = seen[1], seen[2]
    assert (drop.cycle, drop.step, restore.cycle, restore.step) == (1, 2, 1, 3)
    assert drop.filters == restore.filters
    assert sum(map(len, drop.filters.values())) == 6
    assert all(indices for indices in drop.filters.values())
    assert list(drop.scores) == [layer.name for layer in scheme.bank.ranked]
    assert restore.scores == {}
    assert drop.seconds > 0
    assert all("worst |cos|" in note for note in restore.notes)
    assert scheme.history == [t for t in seen if t]
    assert scheme.phase == "full"
    # What was dropped is what ranked worst.
    worst = min(float(drop.scores[n][i]) for n, chosen in drop.filters.items() for i in chosen)
    kept = max(float(s[i]) for n, s in drop.scores.items() for i in range(len(s)) if i not in drop.filters.get(n, ()))
    assert worst >= kept


def test_leaving_early_and_removing():
    scheme = scheme_for(sub=3)
    assert scheme.restore() is None
    scheme.step(), scheme.step()
    assert scheme.phase == "sub"
    with pytest.raises(tr.ReaperError, match=r"remove: .* call scheme.restore\(\)"):
        scheme.remove()
    assert scheme.restore().kind == "restore"
    assert scheme.phase == "full"
    assert scheme.step() is None
    scheme.remove()
    with pytest.raises(tr.ReaperError, match="step: the scheme was removed from the model; build a new one"):
        scheme.step()
    assert not any(m._forward_hooks or m._state_dict_hooks for m in scheme.model.modules())
    again = scheme_for(scheme.model, torch.optim.SGD(scheme.model.parameters(), lr=0.1))
    assert again.phase == "full"


def test_as_a_context():
    model, optimizer = build("residual")
    with scheme_for(model, optimizer) as scheme:
        scheme.step(), scheme.step()
        assert scheme.phase == "sub"
    assert scheme.phase == "full"
    assert [t.kind for t in scheme.history] == ["drop", "restore"]
    assert not any(m._forward_hooks for m in model.modules())


def test_printing():
    scheme = scheme_for()
    assert "step 0, full phase, 0 of 2 cycles begun" in str(scheme)
    scheme.step(), scheme.step()
    text = str(scheme)
    assert "sub-network phase of cycle 1" in text
    assert "of the multiply-adds" in text.replace("\n", " ")
    assert "block2.shortcut.0" in text


def test_one_log_line_a_transition(caplog):
    with caplog.at_level(logging.INFO, "torchreaper"):
        scheme = scheme_for()
        for _ in range(3):
            scheme.step()
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("step 2, cycle 1: dropped 7 filters (")


def test_the_known_trap_is_warned_of():
    """With the first layer ranked, its few dimensions per filter decide."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = plain(widths=(32, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = tr.Reinit(consumers="keep")  # zeros in the next layer, before it has trained, would be a trap of their own
    scheme = scheme_for(model, optimizer, full=1, skip=None, fraction=0.3, reinit=kept)
    with pytest.warns(tr.OneLayerWarning, match=r"28 of 28 dropped filters sit in '0'.*orthogonality-corrected"):
        transition = scheme.step()
    assert any("sit in '0'" in note for note in transition.notes)
    scheme.restore(), scheme.remove()
    for row in range(1, 20):  # redundant for a reason of its own, at as many dimensions as the others
        model[3].weight.data[row] = model[3].weight.data[0]
    scheme = scheme_for(model, optimizer, full=1, fraction=0.2, reinit=kept)
    with pytest.warns(tr.OneLayerWarning, match=r"12 of 12 dropped filters sit in '3'; max_per_layer spreads them"):
        scheme.step()
    scheme.restore(), scheme.remove()
    corrected = scheme_for(model, optimizer, full=1, skip=None, fraction=0.3, criterion="orthogonality-corrected")
    assert len(corrected.step().filters["0"]) < 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.3}, "fraction=1.3: must be in (0, 1)"),
        ({"fraction": 0.0}, "fraction=0.0: must be in (0, 1)"),
        ({"fraction": float("nan")}, "fraction=nan: must be in (0, 1)"),
        ({"fraction": 0.01}, "fraction=0.01: of 26 ranked filters that is none; use at least 0.0385"),
        ({"epochs": 0}, "epochs=0: must be a whole number of at least 1"),
        ({"epochs": 6}, "full=2, sub=1, cycles=2: need 6 epochs and at least one more for the filters"),
        ({"full": 0}, "full=0: must be a whole number of at least 1"),
        ({"sub": -1}, "sub=-1: must be a whole number of at least 0"),
        ({"cycles": -1}, "cycles=-1: must be a whole number of at least 0"),
        ({"min_filters": 0}, "min_filters=0: must be a whole number of at least 1"),
        ({"max_per_layer": 0.0}, "max_per_layer=0.0: must be in (0, 1]"),
        ({"criterion": "ortho"}, "criterion='ortho': must be one of"),
        ({"reinit": "ortho"}, "reinit='ortho': must be one of"),
        ({"subnetwork": "small"}, "subnetwork='small': must be"),
        ({"skip": "*"}, "no convolution to rank"),
        ({"min_filters": 99}, "min_filters=99, max_per_layer=1.0: no layer may lose a filter (the widest has 6)"),
        ({"seed": -1}, "seed=-1: must be a whole number of at least 0"),
        ({"seed": 2**63}, "seed=9223372036854775808: must be below 9223372036854775808"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_attached(settings, message):
    model, optimizer = build("residual")
    with pytest.raises(tr.ReaperError) as caught:
        scheme_for(model, optimizer, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(m._forward_hooks or m._state_dict_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_an_optimizer_of_another_model_is_refused():
    model, _ = build("residual")
    other = torch.optim.SGD(build("residual")[0].parameters(), lr=0.1)
    with pytest.raises(tr.ReaperError, match=r"optimizer: does not hold block1.conv1.weight, .* and others; build it"):
        scheme_for(model, other)
    with pytest.raises(tr.ReaperError, match="optimizer=None: must be the optimizer that trains"):
        scheme_for(model, None)


@pytest.mark.parametrize(
    ("net", "reinit", "message"),
    [
        ("residual", tr.Reinit(bias="keep"), "reinit.bias='keep': has no effect (no ranked convolution has a bias)"),
        ("plain", tr.Reinit(norms="keep"), "reinit.norms='keep': has no effect (no BatchNorm follows"),
        ("plain", tr.Reinit(optimizer_state="layer-mean"), "has no effect (SGD keeps no second moments)"),
    ],
)
def test_choices_without_effect_are_warned_of(net, reinit, message):
    model, optimizer = build(net, "momentum")
    with pytest.warns(tr.NoEffectWarning) as caught:
        scheme_for(model, optimizer, reinit=reinit)
    assert message in str(caught[0].message)


def test_several_optimizers():
    model, _ = build("residual")
    groups = list(model.block1.parameters()), [p for n, p in model.named_parameters() if not n.startswith("block1")]
    optimizers = [torch.optim.Adam(groups[0], lr=0.01), torch.optim.SGD(groups[1], lr=0.1, momentum=0.9)]
    scheme = scheme_for(model, optimizers, full=1)
    for seed in range(4):
        nn.functional.cross_entropy(model(inputs(seed)[0]), inputs(seed)[1]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        scheme.step()
    assert [t.kind for t in scheme.history] == ["drop", "restore", "drop", "restore"]


def test_nan_weights_are_an_error_that_names_the_layer_and_drops_nothing():
    scheme = scheme_for(full=1)
    scheme.model.block2.conv1.weight.data[2] = float("nan")
    with pytest.raises(tr.ReaperError, match=r"scores of layer 'block2.conv1': NaN"):
        scheme.step()
    assert (scheme.phase, scheme.steps) == ("full", 0)
    scheme.model.block2.conv1.weight.data[2] = 0.1
    assert scheme.step().kind == "drop", "the step can be tried again"


@pytest.mark.parametrize("sub", [0, 1])
@pytest.mark.parametrize(
    ("gamma", "said"),
    [(1.0, ""), (0.7, ""), (0.3, "down to 0.015, 30 % of the first"), (0.0, "down to 0, 0 % of the first")],
)
def test_a_return_under_a_rate_that_has_fallen_is_told(sub, gamma, said):
    model, optimizer = build("residual")
    scheme = scheme_for(model, optimizer, full=1, sub=sub, cycles=1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], gamma=gamma)
    for epoch in range(1 + sub):
        train_step(model, optimizer, epoch)
        if epoch == 0:
            schedule.step()
        done = scheme.step()
    assert done.kind == "restore"
    told = [note for note in done.notes if "learning rate" in note]
    assert len(told) == bool(said)
    assert all(said in note and note.endswith("before the rate falls") for note in told)


def test_without_a_schedule_nothing_is_known_of_the_rate():
    model, optimizer = build("residual")
    scheme = scheme_for(model, optimizer, full=1, cycles=1)
    train_step(model, optimizer, 0)
    scheme.step()
    optimizer.param_groups[0]["lr"] *= 0.01
    assert not any("learning rate" in note for note in scheme.step().notes)


class Given:
    """A criterion that does what it is told."""

    def __init__(self, score):
        self.score = score

    def scores(self, bank):
        return {layer.name: self.score(layer, bank) for layer in bank.ranked}


def broken(layer, bank):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("score", "error"),
    [
        (lambda layer, bank: torch.rand(layer.filters, generator=bank.generator) * torch.nan, tr.ReaperError),
        (lambda layer, bank: torch.rand(layer.filters + 1, generator=bank.generator), tr.ReaperError),
        (broken, ZeroDivisionError),
    ],
    ids=["nan", "shape", "raises"],
)
def test_a_criterion_that_fails_changes_nothing_and_the_step_can_be_tried_again(score, error):
    scheme = scheme_for(full=1, criterion=Given(score))
    before = scheme.bank.generator.get_state()
    for _ in range(2):
        with pytest.raises(error):
            scheme.step()
        assert (scheme.phase, scheme.steps, scheme._cycle, scheme.history) == ("full", 0, 0, [])
        assert torch.equal(scheme.bank.generator.get_state(), before)
    scheme.criterion = Given(lambda layer, bank: torch.arange(float(layer.filters)))
    assert scheme.step().kind == "drop"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("criterion", ["random", "magnitude", "batchnorm-scale"])
def test_filters_that_could_not_return_do_not_go(criterion, value):
    scheme = scheme_for(full=1, criterion=criterion)
    scheme.model.block2.conv1.weight.data[2, 0, 0, 0] = value
    with pytest.raises(tr.ReaperError, match=r"layer 'block2.conv1'.*(NaN|are not finite, training has diverged)"):
        scheme.step()
    assert (scheme.phase, scheme.steps) == ("full", 0)


def test_the_record_of_a_drop_does_not_change_with_what_the_criterion_does_later():
    held = {}
    running = Given(lambda layer, bank: held.setdefault(layer.name, torch.zeros(layer.filters)).add_(1))
    scheme = scheme_for(full=1, criterion=running)
    for _ in range(4):
        scheme.step()
    assert [sorted({float(s) for x in t.scores.values() for s in x}) for t in scheme.history] == [[1.0], [], [2.0], []]


def test_a_history_keeps_the_scores_of_the_last_drops_only():
    scheme = scheme_for(full=1, cycles=SCORED + 3)
    sizes = []
    for number in range(2 * (SCORED + 3)):
        transition = scheme.step()
        assert bool(transition.scores) == (number % 2 == 0), "the transition itself has them"
        sizes.append(sum(bool(t.scores) for t in scheme.history))
    assert max(sizes) == sizes[-1] == SCORED
    assert [bool(t.scores) for t in scheme.history[::2]] == [False] * 3 + [True] * SCORED
    assert len(scheme.history) == 2 * (SCORED + 3)
    assert all(t.filters for t in scheme.history)


def test_every_layer_at_its_limit():
    scheme = scheme_for(full=1, fraction=0.9, min_filters=4)
    transition = scheme.step()
    assert all(scheme.bank[n].filters - len(i) >= 4 for n, i in transition.filters.items())
    assert any("every layer is at its limit" in note for note in transition.notes)


def test_state_of_other_settings_or_another_model_is_refused():
    state = scheme_for().state_dict()
    with pytest.raises(tr.ReaperError, match="load_state_dict: full was 2 when saved and is 3 now"):
        scheme_for(full=3).load_state_dict(state)
    with pytest.raises(
        tr.ReaperError, match="load_state_dict: reinit consumers was 'zero' when saved and is 'keep' now"
    ):
        scheme_for(reinit=tr.Reinit(consumers="keep")).load_state_dict(state)
    model = plain()
    other = scheme_for(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(tr.ReaperError, match="load_state_dict: layers 0 was None when saved and is 4 now"):
        other.load_state_dict(state)
    with pytest.raises(tr.ReaperError, match="not the state of a RePr scheme"):
        other.load_state_dict({"step": 3})


def test_a_criterion_is_known_by_its_settings():
    def state(criterion):
        return scheme_for(criterion=criterion).state_dict()

    scheme_for(criterion="orthogonality").load_state_dict(state(tr.criteria.Orthogonality()))
    with pytest.raises(tr.ReaperError, match=r"criterion was 'Magnitude\(p=1\)' when saved and is 'Magnitude\(p=2\)'"):
        scheme_for(criterion=tr.criteria.Magnitude(2)).load_state_dict(state(tr.criteria.Magnitude(1)))


def test_state_survives_a_safe_load():
    scheme = scheme_for()
    scheme.step(), scheme.step()
    buffer = io.BytesIO()
    torch.save(scheme.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    model, optimizer = build("residual")
    model.load_state_dict(scheme.model.state_dict())
    fresh = scheme_for(model, optimizer)
    fresh.load_state_dict(state)
    assert fresh.dropped == scheme.dropped
    assert [t.filters for t in fresh.history] == [t.filters for t in scheme.history]


RESUME = """
import sys, torch
import torchreaper as tr
from tests.nets import build, inputs, train_step
torch.set_num_threads(1)
first, last, source, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
model, optimizer = build("residual", "adamw", seed=first)
scheme = tr.RePr(model, optimizer, inputs()[0], full=2, sub=2, cycles=2, reinit=tr.Reinit(consumers="random"))
if source != "-":
    saved = torch.load(source, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheme.load_state_dict(saved["scheme"])
for epoch in range(first, last):
    train_step(model, optimizer, epoch)
    scheme.step()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheme": scheme.state_dict()}, target)
"""


def test_resume_in_a_fresh_process(tmp_path):
    def run(first, last, source, target):
        args = [sys.executable, "-c", RESUME, str(first), str(last), str(source), str(tmp_path / target)]
        subprocess.run(args, check=True, cwd=ROOT)
        return torch.load(tmp_path / target, weights_only=True)

    undisturbed = run(0, 9, "-", "whole.pt")
    for stop in (3, 4):
        run(0, stop, "-", "half.pt")
        resumed = run(stop, 9, tmp_path / "half.pt", "resumed.pt")
        for name, value in undisturbed["model"].items():
            assert torch.equal(value, resumed["model"][name]), name
        assert torch.equal(undisturbed["scheme"]["generator"], resumed["scheme"]["generator"])
