"""Learning rates over a run, and the optimizers of a recipe."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR

from torchreaper.lab.optim import build_optimizer, build_schedule, factor
from torchreaper.lab.recipe import OptimSpec, ScheduleSpec

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
