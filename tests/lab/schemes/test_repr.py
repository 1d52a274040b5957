"""RePr in a recipe: its schedule against the epochs, its options, its state."""

import copy
import io
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes import setups
from tests.lab.schemes.setups import pictures
from tests.lab.tiny import recipe
from torch import nn
from torch.nn.functional import cross_entropy

import torchreaper as tr
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_events, read_metrics
from torchreaper.lab.schemes import RePrSpec, parse

counts = st.integers(1, 30)


def network(width=8):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16 * width, 10))


def attach(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    spec = RePrSpec(**{"full": 1, "sub": 2, "cycles": 2, "fraction": 0.5, **options})
    return setups.attach(spec, model, optimizer), optimizer


@given(epochs=st.integers(1, 400))
def test_phases_that_nobody_gave_fit_the_epochs(epochs):
    if epochs > 2:
        RePrSpec().check(epochs)
    else:
        with pytest.raises(UserError, match=r"^scheme: full=1, sub=1, cycles=1 need 2 epochs"):
            RePrSpec().check(epochs)


def test_phases_that_nobody_gave_are_planned_by_the_epochs_of_the_run():
    for epochs, steps in ((10, [1, 3, 5, 7]), (40, [2, 6, 10, 14, 18, 22, 26, 30])):
        scheme = RePrSpec(fraction=0.5).attach(setups.setup(network(), lengths=(epochs,)))
        happened = [(epoch, made.kind) for epoch in range(1, epochs + 1) if (made := scheme.step())]
        assert [epoch for epoch, kind in happened if kind == "drop"] == steps
        scheme.close()


@given(full=counts, sub=counts, cycles=st.integers(0, 5), epochs=st.integers(1, 400))
def test_a_schedule_is_accepted_exactly_when_the_last_epoch_trains_the_whole_network(full, sub, cycles, epochs):
    spec = RePrSpec(full=full, sub=sub, cycles=cycles)
    need = cycles * (full + sub)
    if cycles == 0 or epochs > need:
        spec.check(epochs)
        return
    with pytest.raises(UserError) as error:
        spec.check(epochs)
    text = str(error.value)
    assert text.startswith(f"scheme: full={full}, sub={sub}, cycles={cycles} need {need} epochs")
    assert f"the recipe has {epochs}" in text
    assert text.endswith("raise epochs or lower cycles")
    inside = need - sub < epochs < need
    assert ("inside the sub-network phase" in text) == inside


@pytest.mark.parametrize(
    ("epochs", "text"),
    [
        (
            80,
            "scheme: full=20, sub=10, cycles=3 need 90 epochs, the recipe has 80; raise epochs or lower cycles",
        ),
        (
            85,
            "scheme: full=20, sub=10, cycles=3 need 90 epochs, the recipe has 85, which end inside the "
            "sub-network phase of epochs 81 to 90; raise epochs or lower cycles",
        ),
        (
            90,
            "scheme: full=20, sub=10, cycles=3 need 90 epochs and at least one more for the filters that return "
            "after epoch 90, the recipe has 90; raise epochs or lower cycles",
        ),
    ],
)
def test_the_arithmetic_stands_in_the_message(epochs, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}$"):
        RePrSpec(full=20, sub=10, cycles=3).check(epochs)


def test_the_remedy_names_what_was_given():
    with pytest.raises(UserError, match=r"^scheme: full=40, sub=1, cycles=1 need 41 .* raise epochs or lower full$"):
        RePrSpec(full=40).check(40)


def test_an_unknown_criterion_is_found_before_anything_is_built():
    RePrSpec(criterion="magnitude").check(100)
    with pytest.raises(
        UserError, match=r"^scheme\.criterion='orthogonalty': unknown criterion; did you mean 'orthogonality'"
    ):
        RePrSpec(criterion="orthogonalty").check(100)


def test_images_for_a_criterion_that_reads_none_are_refused(seeing):
    RePrSpec(criterion="seeing", images=40).check(100)
    text = "scheme.images=40: has no effect with criterion 'magnitude', which reads none; leave it out"
    with pytest.raises(UserError, match=f"^{re.escape(text)}$"):
        RePrSpec(criterion="magnitude", images=40).check(100)


def test_a_criterion_that_reads_images_gets_as_many_as_asked_for_of_each_class(seeing):
    reading = RePrSpec(criterion="seeing", images=20).ranking(pictures(), seed=1).batches
    shapes = [(tuple(images.shape), labels.tolist()) for images, labels in reading]
    assert [shape for shape, _ in shapes] == [(16, 1, 8, 8), (4, 1, 8, 8)]
    labels = [label for _, labels in shapes for label in labels]
    assert sorted(labels) == [number // 2 for number in range(20)]
    assert labels != sorted(labels)
    # All of them, as there are fewer than 5,000; the same for one seed, others for another.
    assert RePrSpec(criterion="seeing").ranking(pictures(), seed=1).batches.images == 40
    assert RePrSpec(criterion="seeing").ranking(pictures(6000), seed=1).batches.images == 5000
    again, other = (RePrSpec(criterion="seeing", images=20).ranking(pictures(), seed=seed).batches for seed in (1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(reading, again))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(reading, other))


def test_more_images_than_there_are_is_refused_when_it_is_built(seeing):
    text = "scheme.images=41: only 40 validation images are there; use images <= 40"
    with pytest.raises(UserError, match=f"^{re.escape(text)}$"):
        attach(network(), criterion="seeing", images=41)


def test_the_images_decide_what_goes(seeing):
    first = attach(network(), criterion="seeing", images=10)[0].step()
    again = attach(network(), criterion="seeing", images=10)[0].step()
    other = attach(network(), criterion="seeing", images=11)[0].step()
    assert torch.equal(first.scores["2"], again.scores["2"])
    assert not torch.equal(first.scores["2"], other.scores["2"])


def test_a_criterion_that_fails_says_why(seeing):
    with pytest.raises(tr.ReaperError, match="switch on the light"):
        attach(network(), criterion="failing")[0].step()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"images": 0}, "scheme.images=0: must be at least 1"),
        ({"fraction": 1.3}, "scheme.fraction=1.3: must be in (0, 1)"),
        ({"fraction": 0}, "scheme.fraction=0: must be in (0, 1)"),
        ({"fraction": "a third"}, "scheme.fraction='a third': must be a number"),
        ({"full": 0}, "scheme.full=0: must be at least 1"),
        ({"full": True}, "scheme.full=True: must be a whole number"),
        ({"sub": 1.5}, "scheme.sub=1.5: must be a whole number"),
        ({"cycles": -1}, "scheme.cycles=-1: must be at least 0"),
        ({"reinit": "orthogonaly"}, "scheme.reinit.method='orthogonaly': must be one of orthogonal, random"),
        ({"reinit": 3}, "scheme.reinit=3: must be a mapping"),
        ({"reinit": {"gian": 1}}, "scheme.reinit.gian: unknown key; did you mean scheme.reinit.gain?"),
        ({"reinit": {"gain": [1]}}, "scheme.reinit.gain="),
        ({"reinit": {"gain": -1}}, "scheme.reinit.gain=-1.0: must be"),
        ({"reinit": {"bias": "kept"}}, "scheme.reinit.bias='kept': must be one of zero, keep"),
        ({"reinit": {"method": "zero", "gain": 2}}, "scheme.reinit.gain=2.0: has no effect"),
        ({"reinit": {"candidates": 1}}, "scheme.reinit.candidates=1: must be at least 2"),
        (
            {"reinit": {"method": "released", "candidates": 3}},
            "scheme.reinit.candidates=3 times: has no effect with method 'released', whose directions are not random",
        ),
        ({"subnetwork": "small"}, "scheme.subnetwork='small': must be 'auto', 'masked' or 'compact'"),
        ({"skip": 3}, "scheme.skip=3: must be the name of a layer or a list of names"),
        ({"include": [3]}, "scheme.include=[3]: must be"),
        ({"max_per_layer": 2}, "scheme.max_per_layer=2: must be at most 1"),
        ({"min_filters": 0}, "scheme.min_filters=0: must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(options, text):
    with pytest.raises(UserError) as error:
        parse({"name": "repr", **options})
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_reinit_stands_in_the_recipe_with_the_methods_own_defaults():
    assert RePrSpec(reinit="released").reinit == RePrSpec(reinit={"method": "released", "gain": 1.0}).reinit
    assert RePrSpec().model_dump()["reinit"]["gain"] == "kept"
    assert RePrSpec(reinit="released").reinit.build().bias == "keep"


def test_directions_are_chosen_on_training_images():
    spec = RePrSpec(full=1, sub=1, cycles=1, fraction=0.25, reinit={"candidates": 3})
    assert RePrSpec(**spec.model_dump()) == spec
    read, losses = [], []
    training = replace(pictures(1200), what="training", arguments=None)
    on = setups.setup(network(), training=training, loss=lambda *given: losses.append(given) or cross_entropy(*given))
    on.batches = replace(on.batches, arguments=lambda images, labels: read.append(images) or (images,))
    scheme = spec.attach(on)
    assert (scheme.step().kind, read) == ("drop", [])
    (note,) = scheme.step().notes
    assert "2: 2 back, room 64 of 72, chosen of 6 by gradient" in note
    assert sum(map(len, read)) == 1000  # once, whatever the number of candidates
    assert len(losses) == 3 * len(read)


def test_options_reach_the_method():
    scheme, _ = attach(network(), skip=None, fraction=0.25)
    assert {layer.name for layer in scheme.bank.layers if layer.ranked} == {"0", "2"}
    transition = scheme.step()
    assert transition.kind == "drop"
    assert sum(map(len, scheme.dropped.values())) == 4
    assert scheme.phase == "sub"


def test_what_the_method_refuses_is_a_user_error():
    with pytest.raises(UserError, match=r"^scheme: .*nothing|^scheme: .*rank"):
        attach(network(), skip=["0", "2"])


def test_at_once_a_run_has_no_sub_network_phase_and_its_events_say_what_returned_and_why(tmp_path):
    what = recipe(scheme={"name": "repr", "full": 1, "sub": 0, "cycles": 3, "fraction": 0.4, "skip": None})
    train(what, scheme="repr", seed=0, out=tmp_path)
    folder = folder_of(tmp_path, "tiny", "repr", 0)
    assert [line["phase"] for line in read_metrics(folder)] == ["full"] * 5
    events = read_events(folder)
    assert [(one["epoch"], one["kind"]) for one in events] == [(1, "restore"), (2, "restore"), (3, "restore")]
    for one in events:
        worst = sorted((score, name, k) for name, scores in one["scores"].items() for k, score in enumerate(scores))
        gone = {(name, k) for name, some in one["filters"].items() for k in some}
        assert gone == {(name, k) for _, name, k in worst[-4:]}


def test_that_all_filters_come_from_one_layer_is_in_the_notes_and_no_warning():
    model = network()
    with torch.no_grad():
        model[2].weight[1:] = model[2].weight[0]
    scheme, _ = attach(model, skip=None, fraction=0.4)
    assert any("sit in '2'" in note for note in scheme.step().notes)


@pytest.mark.parametrize("steps", range(8))
def test_a_copy_that_loads_the_state_goes_on_the_same(steps):
    model = network()
    scheme, optimizer = attach(model)
    for _ in range(steps):
        scheme.step()
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), scheme.state_dict()), buffer)
    buffer.seek(0)
    other = network()
    other_scheme, other_optimizer = attach(other)
    saved = torch.load(buffer, weights_only=True)
    for target, state in zip((other, other_optimizer, other_scheme), saved):
        target.load_state_dict(state)
    assert (other_scheme.phase, other_scheme.dropped) == (scheme.phase, scheme.dropped)
    for _ in range(8 - steps):
        scheme.step()
        other_scheme.step()
    assert scheme.phase == "full"
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    scheme.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_cycles_nothing_happens():
    model = network()
    before = copy.deepcopy(model.state_dict())
    scheme, _ = attach(model, cycles=0)
    assert [scheme.step() for _ in range(20)] == [None] * 20
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


OWN = """
import torch

class Widest:
    def scores(self, bank):
        return {layer.name: torch.arange(layer.filters, dtype=torch.float64) for layer in bank.ranked}

class Reading:
    def __init__(self, batches, loss_fn):
        self.seen = sum(len(labels) for _, labels in batches)
        assert float(loss_fn(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))) > 0

    def scores(self, bank):
        return {layer.name: torch.full((layer.filters,), float(self.seen)) for layer in bank.ranked}

ready = Widest()
number = 3
def nothing():
    return None
def broken():
    raise RuntimeError("no filters today")
"""


@pytest.fixture
def own(tmp_path):
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    return name, tmp_path


@pytest.mark.parametrize("which", ["Widest", "ready"])
def test_a_criterion_of_the_users_own_ranks_the_filters(own, which):
    name, base = own
    spec = RePrSpec(full=1, sub=1, cycles=1, fraction=0.25, criterion=f"{name}:{which}")
    spec.check(10)
    scheme = setups.attach(spec, network(), base=base)
    assert scheme.step().filters == {"2": (6, 7)}


def test_a_criterion_of_the_users_own_may_read_images(own):
    name, base = own
    spec = RePrSpec(full=1, sub=1, cycles=1, criterion=f"{name}:Reading", images=20)
    assert set(setups.attach(spec, network(), base=base).step().scores["2"].tolist()) == {20.0}


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("missing", "has no missing"),
        ("number", "number is a int; must be a callable"),
        ("nothing", r"must be an object with scores\(bank\)"),
        ("broken", r"broken\(\) fails \(RuntimeError: no filters today\)"),
    ],
)
def test_a_criterion_of_the_users_own_that_is_none_is_refused(own, which, text):
    name, base = own
    with pytest.raises(UserError, match=rf"^scheme.criterion='{name}:{which}': .*{text}"):
        setups.attach(RePrSpec(criterion=f"{name}:{which}"), network(), base=base)


def test_the_form_of_a_criterions_name_is_checked_before_anything_is_imported():
    with pytest.raises(UserError, match=r"^scheme.criterion='own:': must be package.module:callable, such as mycri"):
        RePrSpec(criterion="own:").check(100)
