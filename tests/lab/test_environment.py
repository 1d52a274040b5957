"""The machine, and the random numbers of a run."""

import io
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from torchreaper.lab.environment import environment, make_fabric, own_random_numbers, rng_state, set_rng_state
from torchreaper.lab.errors import UserError


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_every_generator_goes_on_from_a_saved_state():
    draw()
    buffer = io.BytesIO()
    torch.save(rng_state(), buffer)
    expected = draw(), draw()
    buffer.seek(0)
    set_rng_state(torch.load(buffer, weights_only=True))
    assert (draw(), draw()) == expected


def test_a_run_has_its_own_random_numbers_and_leaves_the_callers_alone():
    threads = torch.get_num_threads()
    state = rng_state()
    expected = draw()
    set_rng_state(state)
    found = []
    for seed in (3, 3, 4):
        with own_random_numbers(seed):
            found.append(draw())
            torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads
    assert draw() == expected
    assert found[0] == found[1]
    assert not set(map(str, found[0])) & set(map(str, found[2]))


def test_they_are_left_alone_after_an_error_too():
    state = rng_state()
    expected = draw()
    set_rng_state(state)

    def fail():
        with own_random_numbers(0):
            draw()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert draw() == expected


def test_the_environment_is_plain_and_complete():
    found = environment(device=torch.device("cpu"), precision="32-true", base=Path("there"))
    assert found["base"] == str(Path.cwd() / "there")
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]
    assert {"python", "torchreaper", "platform", "device", "gpu", "command", "date", "commit"} <= found.keys()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_fabric_is_quiet(precision, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fabric = make_fabric("cpu", precision)
    assert fabric.device == torch.device("cpu")
    assert capfd.readouterr() == ("", "")


def test_unknown_and_missing_devices_are_named():
    with pytest.raises(UserError, match=r"^device='gpu0': unknown; choose one of auto, cpu, cuda, mps$"):
        make_fabric("gpu0", "32-true")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"^device='cuda': cannot be used here .*; use auto or cpu$"):
            make_fabric("cuda", "32-true")
