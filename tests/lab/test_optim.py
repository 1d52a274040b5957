"""Learning rates over a run, and the optimizers of a recipe."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.lab.tiny import recipe
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, CyclicLR, MultiStepLR, StepLR

from torchreaper.lab.errors import UserError
from torchreaper.lab.optim import build_optimizer, build_schedule, factor, position, reapply
from torchreaper.lab.sections import OptimSpec, ScheduleSpec
from torchreaper.lab.settings import parse

EPOCHS, STEPS = 7, 4


def rates(scheduler, optimizer, steps, per_epoch):
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not per_epoch or (step + 1) % STEPS == 0:
            scheduler.step()
    return found


def sgd():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)


@pytest.mark.parametrize(
    ("spec", "reference", "per_epoch"),
    [
        (
            ScheduleSpec(name="step", milestones=(2, 5), gamma=0.2),
            lambda o: MultiStepLR(o, [2, 5], gamma=0.2),
            True,
        ),
        (ScheduleSpec(name="cosine"), lambda o: CosineAnnealingLR(o, EPOCHS), True),
        (ScheduleSpec(name="halving", every=5), lambda o: StepLR(o, 5, gamma=0.5), False),
        (ScheduleSpec(name="constant"), lambda o: StepLR(o, 10**6), False),
        (
            ScheduleSpec(name="cyclic", period=2, low=0.1),
            lambda o: CyclicLR(o, base_lr=0.03, max_lr=0.3, step_size_up=STEPS, cycle_momentum=False),
            False,
        ),
        (
            ScheduleSpec(name="cyclic", period=7, low=0.0),
            lambda o: CyclicLR(o, base_lr=0.0, max_lr=0.3, step_size_up=7 * STEPS // 2, cycle_momentum=False),
            False,
        ),
        (ScheduleSpec(name="restarts", period=3), lambda o: CosineAnnealingWarmRestarts(o, 3 * STEPS), False),
        (ScheduleSpec(name="restarts", period=1), lambda o: CosineAnnealingWarmRestarts(o, STEPS), False),
    ],
)
def test_schedules_are_torchs(spec, reference, per_epoch):
    ours, theirs = sgd(), sgd()
    found = rates(build_schedule(spec, ours, epochs=EPOCHS, steps_per_epoch=STEPS), ours, EPOCHS * STEPS, False)
    expected = rates(reference(theirs), theirs, EPOCHS * STEPS, per_epoch)
    assert found == pytest.approx(expected, rel=1e-6)


specs = st.sampled_from(
    [
        ScheduleSpec(warmup=3),
        ScheduleSpec(name="cosine", warmup=3),
        ScheduleSpec(name="step", milestones=(5,), warmup=3),
        ScheduleSpec(name="halving", every=1000, warmup=3),
    ]
)


@given(spec=specs, steps=st.integers(1, 50))
def test_a_warm_up_rises_in_equal_steps_to_the_full_rate(spec, steps):
    found = [factor(spec, step, epochs=20, steps_per_epoch=steps) for step in range(3 * steps + 1)]
    assert found[-1] == 1.0
    assert found[0] > 0
    rises = [later - earlier for earlier, later in pairwise(found)]
    assert rises == pytest.approx([rises[0]] * len(rises))


@given(epochs=st.integers(2, 300), warmup=st.integers(0, 20), steps=st.integers(1, 9))
def test_cosine_falls_to_nothing_by_the_end_and_trains_in_every_epoch(epochs, warmup, steps):
    spec = ScheduleSpec(name="cosine", warmup=min(warmup, epochs - 1))
    found = [factor(spec, step, epochs=epochs, steps_per_epoch=steps) for step in range(epochs * steps)]
    after = found[spec.warmup * steps :]
    assert after == sorted(after, reverse=True)
    assert min(found) > 0
    end = factor(spec, epochs * steps, epochs=epochs, steps_per_epoch=steps)
    assert math.isclose(end, 0, abs_tol=1e-12)


@given(epochs=st.integers(1, 300), fall=st.integers(1, 300), steps=st.integers(1, 9))
def test_a_trapezoid_is_flat_and_then_falls_in_a_straight_line_to_nothing(epochs, fall, steps):
    spec = ScheduleSpec(name="trapezoid", fall=min(fall, epochs))
    found = [factor(spec, step, epochs=epochs, steps_per_epoch=steps) for step in range(epochs * steps + 1)]
    flat = (epochs - spec.fall) * steps
    assert found[: flat + 1] == [1.0] * (flat + 1)
    falls = [earlier - later for earlier, later in pairwise(found[flat:])]
    assert falls == pytest.approx([1 / (spec.fall * steps)] * len(falls))
    assert found[-1] == 0
    assert min(found[:-1]) > 0


def test_a_fall_longer_than_the_training_is_refused():
    with pytest.raises(ValidationError, match=r"schedule\.fall=6: longer than the 5 epochs after warm-up; use"):
        recipe(schedule={"name": "trapezoid", "fall": 6})
    assert recipe(schedule={"name": "trapezoid", "fall": 5}).schedule.fall == 5
    with pytest.raises(ValidationError, match=r"fall=4: longer than the 3 epochs after warm-up; use fall <= 3"):
        recipe(schedule={"name": "trapezoid", "fall": 4, "warmup": 2})


@pytest.mark.parametrize(
    ("spec", "kind", "expected"),
    [
        (
            OptimSpec(name="sgd", lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01),
            torch.optim.SGD,
            {"lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        ),
        (
            OptimSpec(name="rmsprop", lr=0.3, momentum=0.5, weight_decay=0.01),
            torch.optim.RMSprop,
            {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.01},
        ),
        (OptimSpec(name="adam", lr=0.3, weight_decay=0.01), torch.optim.Adam, {"lr": 0.3, "weight_decay": 0.01}),
        (OptimSpec(name="adamw", lr=0.3, weight_decay=0.2), torch.optim.AdamW, {"lr": 0.3, "weight_decay": 0.2}),
    ],
)
def test_optimizers_get_what_the_recipe_says(spec, kind, expected):
    optimizer = build_optimizer(spec, [nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "cyclic"}, "schedule.period: is missing; how many epochs does a cycle of the learning rate take?"),
        ({"name": "restarts"}, "schedule.period: is missing; how many epochs does a cycle of the learning rate take?"),
        (
            {"name": "trapezoid"},
            "schedule.fall: is missing; over how many epochs, the last ones, does the learning rate fall to 0?",
        ),
        (
            {"name": "step", "milestones": [2], "fall": 2},
            "schedule.fall=2: has no effect with name: step; it belongs to trapezoid",
        ),
        ({"name": "cyclic", "period": 0}, "schedule.period=0: must be at least 1"),
        ({"name": "cyclic", "period": 1.5}, "schedule.period=1.5: must be a whole number"),
        ({"name": "cyclic", "period": 4, "low": 1}, "schedule.low=1: must be less than 1"),
        ({"name": "cyclic", "period": 4, "low": -0.1}, "schedule.low=-0.1: must be at least 0"),
        (
            {"name": "restarts", "period": 4, "low": 0.2},
            "schedule.low=0.2: has no effect with name: restarts; it belongs to cyclic",
        ),
        (
            {"name": "cosine", "period": 4},
            "schedule.period=4: has no effect with name: cosine; it belongs to cyclic and restarts",
        ),
    ],
)
def test_what_is_wrong_with_a_cycle_is_named(options, text):
    with pytest.raises(UserError) as error:
        parse(ScheduleSpec, options, at="schedule")
    assert str(error.value) == text


trainings = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@given(lengths=trainings, epochs=st.integers(1, 30), steps=st.integers(1, 7))
def test_each_training_passes_through_the_whole_schedule(lengths, epochs, steps):
    end = epochs * steps
    passed = 0
    for length in lengths:
        found = [
            position(passed + step, lengths, epochs=epochs, steps_per_epoch=steps) for step in range(length * steps)
        ]
        passed += length * steps
        assert found[0] == 0
        assert found == sorted(found)
        pace = max(1, -(-epochs // length))  # steps of the schedule in one step of the training, at most
        assert end - pace <= found[-1] < end
        if length >= epochs:
            assert found[-1] == end - 1
        if length == epochs:
            assert found == list(range(end))
    assert position(passed, lengths, epochs=epochs, steps_per_epoch=steps) == end


@given(lengths=trainings, epochs=st.integers(2, 30), steps=st.integers(1, 7))
def test_cosine_trains_in_every_epoch_of_every_training(lengths, epochs, steps):
    optimizer = sgd()
    schedule = build_schedule(
        ScheduleSpec(name="cosine"), optimizer, epochs=epochs, steps_per_epoch=steps, lengths=lengths
    )
    found = []
    for _ in range(sum(lengths) * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert min(found) > 0
    starts = [sum(lengths[:number]) * steps for number in range(len(lengths))]
    assert [found[start] for start in starts] == [0.3] * len(lengths)


def test_a_scale_that_changed_holds_from_the_next_step_on():
    optimizer, scale = sgd(), [1.0]
    spec = ScheduleSpec(name="halving", every=2)
    schedule = build_schedule(spec, optimizer, epochs=EPOCHS, steps_per_epoch=STEPS, scale=lambda: scale[0])
    found = []
    for step in range(6):
        if step == 3:
            scale[0] = 0.1
            reapply(schedule)
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([0.3, 0.3, 0.15, 0.015, 0.0075, 0.0075])
