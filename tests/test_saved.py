"""A scheme's state that is wrong in one place is refused by name, and the scheme is as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import torchreaper as tr
from torchreaper.saved import plain


def made(**changes):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = {"full": 2, "sub": 2, "cycles": 2, "max_per_layer": 0.5, **changes}
    return tr.RePr(model, optimizer, torch.zeros(2, 1, 8, 8), **settings)


@pytest.fixture(scope="module")
def dropped():
    """The state of a scheme in its first sub-network phase."""
    scheme = made()
    for _ in range(3):
        scheme.step()
    return scheme.state_dict()


def put(state, path, value):
    *parents, last = path
    for key in parents:
        state = state[key]
    state[last] = value


LAYER = "3"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (["steps"], "3", "steps='3': must be a whole number"),
        (["steps"], True, "steps=True: must be a whole number"),
        (["steps"], -1, "steps=-1: must be a whole number of at least 0"),
        (["steps"], 5, r"dropped=.*: after 5 steps the network is whole"),
        (["cycle"], 2, "cycle=2: 3 steps begin 1 cycles"),
        (["dropped"], None, "dropped=None: must name the filters"),
        (["dropped"], {"0": [1]}, "dropped='0': is no layer that is ranked"),
        (["dropped", LAYER], [5], r"dropped=\[5\]: must be indices of the 5 filters"),
        (["dropped", LAYER], [0, 1, 2, 3, 4], "must be indices of the 5 filters of '3', and leave one"),
        (["dropped", LAYER], [1.0], r"dropped=\[1\.0\]: must be indices"),
        (["generator"], torch.zeros(3), r"generator=tensor.*: must be the state of a torch\.Generator"),
        (["generator"], 3, "generator=3: must be the state"),
        (["history"], {}, r"history=\{\}: must be a list of transitions"),
        (["history", 0], {"kind": "drop"}, "a transition has kind, cycle"),
        (["history", 0, "kind"], "lost", "history kind='lost': must be drop or restore"),
        (["history", 0, "filters"], {"3": "1"}, "history filters=.*: must be indices by layer"),
        (["history", 0, "scores"], {"3": [1.0]}, "history scores=.*: must be tensors by layer"),
        (["config"], 3, "config=3: must be the settings of a scheme"),
        (["config", "full"], torch.ones(2), r"full was tensor\(\[1\., 1\.\]\) when saved and is 2 now"),
        (["version"], torch.ones(2), "not the state of a RePr scheme of this version"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_state_is_refused_by_name_and_changes_nothing(dropped, path, value, problem):
    scheme, state = made(), copy.deepcopy(dropped)
    assert LAYER in state["dropped"]
    put(state, path, value)
    before, weights = scheme.state_dict(), copy.deepcopy(scheme.model.state_dict())
    with pytest.raises(tr.ReaperError, match=rf"^load_state_dict: .*{problem}") as caught:
        scheme.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert scheme.phase == "full"
    assert repr(scheme.state_dict()) == repr(before)
    assert all(torch.equal(value, weights[name]) for name, value in scheme.model.state_dict().items())
    scheme.load_state_dict(dropped)  # and it takes a right one
    assert scheme.dropped == {name: tuple(filters) for name, filters in dropped["dropped"].items()}


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_settings_may_be_numbers_of_numpy(tmp_path, steps):
    gain = tr.Reinit(gain=np.float64(1.0))
    scheme = made(fraction=np.float64(0.3), max_per_layer=np.float64(0.5), reinit=gain)
    for _ in range(steps):
        scheme.step()
    torch.save(scheme.state_dict(), tmp_path / "scheme.pt")
    same = made(reinit=tr.Reinit(gain=1.0))
    same.load_state_dict(torch.load(tmp_path / "scheme.pt", weights_only=True))
    assert (same.steps, same.dropped) == (steps, scheme.dropped)


def test_numbers_become_pythons_own():
    given = {"whole": np.uint8(2), "real": np.float32(0.5), "in": {"it": np.int64(3)}, "flag": True, "text": "a"}
    found = plain({**given, "none": None})
    assert found == {"whole": 2, "real": 0.5, "in": {"it": 3}, "flag": True, "text": "a", "none": None}
    assert [type(value) for value in (found["whole"], found["real"], found["in"]["it"], found["flag"])] == [
        *(int, float, int, bool)
    ]
