"""Distillation: its loss by the formula, and a teacher that never changes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import hooks_on, network, same, setup, train_epoch, train_step, weights_of

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import parse
from torchreaper.lab.schemes.distillation import CHANGES, KDSpec, divergence

TEACHER = {"model": {"name": "resnet20"}}
logits = st.lists(st.floats(-8, 8), min_size=3, max_size=3)


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def brute_force(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(softmax(theirs, temperature), softmax(ours, temperature), strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs)
    return total / len(student) * temperature**2


@given(rows=st.lists(st.tuples(logits, logits), min_size=1, max_size=4), temperature=st.floats(0.7, 20))
def test_the_divergence_is_the_formulas(rows, temperature):
    student, teacher = zip(*rows, strict=True)
    found = divergence(*(torch.tensor(side, dtype=torch.float64) for side in (student, teacher)), temperature)
    assert found.item() == pytest.approx(brute_force(student, teacher, temperature), abs=1e-9)


def test_a_teacher_in_half_precision_is_compared_in_the_students():
    student, teacher = torch.randn(5, 10), torch.randn(5, 10).bfloat16()
    assert torch.equal(divergence(student, teacher, 4.0), divergence(student, teacher.float(), 4.0))


def test_the_loss_is_the_weighted_sum_on_the_same_images():
    model, teacher = network(), network(seed=1).eval().requires_grad_(False)
    on = setup(model, teacher=teacher)
    scheme = KDSpec(teacher=TEACHER, temperature=3.0, weight=0.7).attach(on)
    images, targets = next(on.drawn(0, 1))
    batch, loss = train_step(scheme, on, images, targets)
    outputs, said = batch.outputs.detach(), teacher(images)
    crossed = -sum(math.log(softmax(row, 1)[target]) for row, target in zip(outputs.tolist(), targets.tolist()))
    expected = 0.3 * crossed / len(targets) + 0.7 * brute_force(outputs.tolist(), said.tolist(), 3.0)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_teacher_never_changes():
    model, teacher = network(), network(seed=1).eval().requires_grad_(False)
    on = setup(model, teacher=teacher)
    scheme = KDSpec(teacher=TEACHER).attach(on)
    before, student = weights_of(teacher), weights_of(model)
    for _ in range(3):
        train_epoch(scheme, on)
        scheme.step()
    assert same(weights_of(teacher), before)
    assert not same(weights_of(model), student)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    scheme.close()
    assert hooks_on(model) == hooks_on(teacher) == 0


def test_the_teacher_sees_mixed_images():
    model, teacher = network(), network(seed=1).eval().requires_grad_(False)
    seen = []
    teacher.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    on = setup(model, teacher=teacher)
    scheme = parse({"name": "kd+mixup", "parts": {"kd": {"teacher": TEACHER}}}).attach(on)
    images, targets = next(on.drawn(0, 1))
    batch, _ = train_step(scheme, on, images, targets)
    assert torch.equal(seen[0], batch.inputs[0])
    assert not torch.equal(seen[0], images)


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        ("resnet20", "scheme.teacher='resnet20': must be a mapping (key: value)"),
        ({}, "scheme.teacher.model: is missing; name a larger network, such as {name: resnet20}"),
        ({**TEACHER, "seeds": 3}, f"scheme.teacher.seeds: unknown key; known: {', '.join(CHANGES)}"),
    ],
)
def test_what_is_wrong_with_a_teacher_is_named(teacher, text):
    with pytest.raises(UserError) as error:
        parse({"name": "kd", "teacher": teacher})
    assert str(error.value) == text


def test_to_learn_from_nobody_is_refused_when_it_is_run():
    with pytest.raises(UserError, match=r"^scheme\.teacher: is missing; name a larger network.*under schemes\.kd$"):
        KDSpec().check(10)
    KDSpec(teacher=TEACHER).check(1)
