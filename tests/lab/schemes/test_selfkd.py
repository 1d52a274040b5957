"""Learning from oneself: who teaches when, by the formula, and with RePr from the network that was whole."""

import copy

import pytest
import torch
from tests.lab.schemes.setups import hooks_on, network, same, setup, train_epoch, train_step, weights_of

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import parse
from torchreaper.lab.schemes.distillation import divergence
from torchreaper.lab.schemes.selfkd import SelfKDSpec


def test_the_teacher_is_the_network_of_the_last_due_epoch():
    model = network()
    on = setup(model, lengths=(9,))
    scheme = SelfKDSpec(start=2, every=3, temperature=3.0, weight=0.7).attach(on)
    images, targets = next(on.drawn(0, 1))
    teacher = None
    for epoch in range(1, 10):
        said = None if teacher is None else teacher(images)
        batch, loss = train_step(scheme, on, images, targets)
        outputs = batch.outputs.detach()
        expected = on.loss(outputs, targets)
        if said is not None:
            expected = 0.3 * expected + 0.7 * divergence(outputs, said, 3.0)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        scheme.step()
        if epoch in (2, 5, 8):
            teacher = network(seed=5).eval().requires_grad_(False)
            teacher.load_state_dict(weights_of(model))
    assert hooks_on(model) == 0


def test_before_its_start_it_is_standard_training():
    found = []
    for key in ("standard", "self-kd"):
        on = setup(network())
        scheme = parse({"name": key}).attach(on)
        train_epoch(scheme, on)
        scheme.step()
        found.append(weights_of(on.model))
    assert same(*found)


@pytest.mark.parametrize("name", ["self-kd+repr", "repr+self-kd"])
def test_with_repr_the_whole_network_teaches_the_smaller_one(name):
    """The copy is of the filters as they are right before they go, and does not change while they are away."""
    model = network()
    on = setup(model, lengths=(6,))
    parts = {"repr": {"full": 2, "sub": 2, "cycles": 1, "fraction": 0.4}, "self-kd": {"start": 2, "every": 4}}
    scheme = parse({"name": name, "parts": parts}).attach(on)
    for epoch in range(1, 5):
        train_epoch(scheme, on)
        if epoch == 2:
            whole = {key: value.clone() for key, value in model.state_dict().items()}
        scheme.step()
        if epoch in (2, 3):
            assert scheme.phase == "sub"
            (teacher,) = [part["teacher"] for part in scheme.state_dict()["parts"] if "teacher" in part]
            assert same(teacher, whole)
    assert scheme.phase == "full"
    assert not same(weights_of(model), whole)
    scheme.close()


@pytest.mark.parametrize("name", ["self-kd+repr", "repr+self-kd"])
def test_a_copy_due_when_filters_return_is_taken_in_the_order_of_the_names(name):
    on = setup(network(), lengths=(6,))
    parts = {"repr": {"full": 1, "sub": 1, "cycles": 1, "fraction": 0.4}, "self-kd": {"start": 2, "every": 9}}
    scheme = parse({"name": name, "parts": parts}).attach(on)
    for _ in range(2):
        train_epoch(scheme, on)
        returning = {key: value.clone() for key, value in on.model.state_dict().items()}
        scheme.step()
    (teacher,) = [part["teacher"] for part in scheme.state_dict()["parts"] if "teacher" in part]
    assert same(teacher, returning) is (name == "self-kd+repr")
    assert same(teacher, weights_of(on.model)) is (name == "repr+self-kd")
    scheme.close()


def test_a_start_after_the_end_is_refused():
    with pytest.raises(UserError, match=r"^scheme\.start=20: must be below the 20 epochs; lower it or raise epochs$"):
        SelfKDSpec().check(20)
    SelfKDSpec().check(21)


@pytest.mark.parametrize("other", ["kd", "ban"])
def test_two_teachers_are_refused(other):
    part = {"teacher": {"model": {"name": "resnet20"}}} if other == "kd" else {}
    spec = parse({"name": f"self-kd+{other}", "parts": {other: part, "self-kd": {"start": 1}}})
    with pytest.raises(UserError, match=r"both change .*the teacher"):
        spec.check(20)


def test_it_goes_on_with_its_teacher():
    model, twin = network(), network(seed=3)
    on, other = setup(model, lengths=(5,)), setup(twin, lengths=(5,))
    scheme, fresh = (SelfKDSpec(start=1, every=2).attach(one) for one in (on, other))
    for _ in range(2):
        train_epoch(scheme, on)
        scheme.step()
    twin.load_state_dict(model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(on.optimizer.state_dict()))
    fresh.load_state_dict(scheme.state_dict())
    for part, of in ((scheme, on), (fresh, other)):
        for _ in range(2):
            train_epoch(part, of)
            part.step()
    assert same(weights_of(model), weights_of(twin))
    assert torch.equal(*(next(iter(part.state_dict()["teacher"].values())) for part in (scheme, fresh)))
