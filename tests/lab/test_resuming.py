"""A checkpoint that a run cannot go on from says why."""

import copy

import pytest
import torch
from tests.lab.tiny import recipe

from torchreaper.lab.resuming import amiss_in_optimizer, problem
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(recipe(epochs=2, scheme={"name": "standard"}), scheme="standard", seed=0, out=out)
    return torch.load(folder_of(out, "tiny", "standard", 0) / "last.pt", weights_only=True)


def test_a_right_one_has_no_problem(state):
    assert problem(state, {key: state[key] for key in state if key not in ("epoch", "lines", "run")}) == ""


def test_those_of_versions_that_counted_no_seconds_have_none_either(state):
    now = {key: state[key] for key in state if key not in ("epoch", "lines", "run")}
    assert problem({key: state[key] for key in state if key != "seconds"}, now) == ""
    assert problem({**state, "seconds": None}, now) == ""
    assert problem({**state, "chosen": CHOSEN}, now) == ""
    assert problem({**state, "chosen": {**CHOSEN, "parts": {"AP of RBC": 0.5}}}, now) == "", "a detector's"


CHOSEN = {"epoch": 1, "test_accuracy": 0.5, "validation_accuracy": 0.5, "train_accuracy": 1.0}
WRONG = {
    "a key": (lambda state: state.pop("schedule"), "schedule is missing"),
    "a tensor": (lambda state: state["model"].pop("conv1.weight"), "model lacks conv1.weight"),
    "a tensor more": (lambda state: state["model"].update(more=torch.ones(1)), "model has 'more' beside its own"),
    "a shape": (
        lambda state: put(state["model"], "conv1.weight", torch.ones(2)),
        "model.conv1.weight is of torch.float32",
    ),
    "a type": (lambda state: put(state["model"], "conv1.weight", 3), "model.conv1.weight is 3, no tensor"),
    "a moment": (lambda state: put(moments(state), "momentum_buffer", torch.ones(7)), "which no parameter has"),
    "a moment's type": (lambda state: put(moments(state), "momentum_buffer", 0.5), "momentum_buffer is 0.5"),
    "moments": (lambda state: moments(state).clear(), "has other keys for some parameters than for others"),
    "a rate": (lambda state: put(state["optimizer"]["param_groups"][0], "lr", "0.1"), "param_groups.0.lr is '0.1'"),
    "an epoch": (lambda state: put(state["scheme"], "epoch", 1), "scheme.epoch is 1 in epoch 2"),
    "threads": (lambda state: put(state["machine"], "threads", 0), "machine.threads is 0"),
    "seconds": (lambda state: put(state, "seconds", float("nan")), "seconds is nan"),
    "a choice": (lambda state: put(state, "chosen", {"epoch": 1}), "chosen is {'epoch': 1}"),
    "a choice's number": (lambda state: put(state, "chosen", {**CHOSEN, "epoch": "1"}), "chosen is {'epoch': '1'"),
    "a choice's parts": (lambda state: put(state, "chosen", {**CHOSEN, "parts": [0.5]}), "chosen is {'epoch': 1"),
    "a choice's part": (lambda state: put(state, "chosen", {**CHOSEN, "parts": {"a": "b"}}), "chosen is {'epoch': 1"),
}


def put(holder, key, value):
    holder[key] = value


def moments(state):
    return state["optimizer"]["state"][0]


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(state, what):
    now = {key: state[key] for key in state if key not in ("epoch", "lines", "run")}
    changed = copy.deepcopy(state)
    change, text = WRONG[what]
    change(changed)
    assert text in problem(changed, now)


def test_moments_of_another_parameter_are_seen_when_they_are_loaded():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.state[parameter]["momentum_buffer"] = torch.ones(2, 3)
    assert amiss_in_optimizer(optimizer) == ""
    optimizer.state[parameter]["momentum_buffer"] = torch.ones(3, 2)
    assert amiss_in_optimizer(optimizer) == "optimizer: momentum_buffer of shape [3, 2] for a parameter of [2, 3]"
    del optimizer.param_groups[0]["weight_decay"]
    assert amiss_in_optimizer(optimizer) == "optimizer: weight_decay is missing"
