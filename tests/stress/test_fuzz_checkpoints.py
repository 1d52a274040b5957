"""Checkpoints with something wrong inside, whole by their checksum: refused in one line, or gone on with."""

from __future__ import annotations

import copy
import hashlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.tiny import recipe
from tests.stress.mutating import damaged, fuzzing, mutated, odd, one_line, quickly
from tests.stress.recording import lengths
from torch import nn

import torchreaper as tr
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of

EPOCHS = 3
RECIPE = recipe(epochs=EPOCHS, scheme={"name": "repr", "full": 1, "sub": 1, "cycles": 1}, **{"data__limit": 50})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that stopped in its sub-network phase; not to be written to."""
    out, before = tmp_path_factory.mktemp("stopped"), torch.get_num_threads()
    torch.set_num_threads(1)
    train(RECIPE, scheme="repr", seed=0, out=out)
    folder = folder_of(out, "tiny", "repr", 0)
    shutil.copy(folder / "previous.pt", folder / "last.pt")
    shutil.copy(folder / "previous.pt.sha256", folder / "last.pt.sha256")
    for name in ("result.json", "previous.pt", "previous.pt.sha256"):
        (folder / name).unlink()
    yield out
    torch.set_num_threads(before)


def odd_tensors() -> st.SearchStrategy[Any]:
    """What may stand where a tensor or a plain value was."""
    tensors = st.sampled_from([torch.zeros(0), torch.zeros(()), torch.ones(3, 2), torch.full((6,), float("nan"))])
    others = st.sampled_from([torch.zeros(4, dtype=torch.int64), torch.zeros(5056, dtype=torch.uint8)])
    return odd() | tensors.map(torch.clone) | others.map(torch.clone)


def put(folder: Path, data: bytes) -> None:
    (folder / "last.pt").write_bytes(data)
    (folder / "last.pt.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  last.pt\n")


class Packed(bytes):
    """A checkpoint: too long to be shown where a test fails."""

    def __repr__(self) -> str:
        return f"<checkpoint of {len(self)} bytes, {hashlib.sha256(self).hexdigest()[:8]}>"


def packed(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return Packed(buffer.getvalue())


def same(one: Any, other: Any) -> bool:
    """Whether two states say the same; NaN is NaN."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@lengths(8, 250)
def test_a_checkpoint_with_wrong_content_is_refused_in_one_line_or_gone_on_with(times, trials, stopped, tmp_path):
    count = trials(
        "bad input",
        "checkpoints that agree with their checksum, with keys missing, values of wrong types, tensors of wrong "
        "shapes, bytes changed: refused in one line, or the run goes on to its end",
        "checkpoints",
    )
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    folder = folder_of(out, "tiny", "repr", 0)
    good = (folder / "last.pt").read_bytes()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    state = torch.load(io.BytesIO(good), weights_only=True)
    refused = 0

    @fuzzing(times)
    @given(st.one_of(*[mutated(state, odds=odd_tensors(), most=2).map(packed)] * 4, damaged(good).map(Packed)))
    def holds(data):
        nonlocal refused
        put(folder, data)
        kept = (folder / "last.pt").read_bytes()
        with count.one(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with quickly(30):
                    train(RECIPE, scheme="repr", seed=0, out=out)
            except UserError as error:
                refused += 1
                one_line(error)
                assert not (folder / "result.json").exists()
                # What was refused is left as it was: nothing is half done.
                assert (folder / "last.pt").read_bytes() == kept
            finally:
                for path in folder.iterdir():
                    path.unlink()
                for name, content in before.items():
                    (folder / name).write_bytes(content)

    holds()
    count.note = f"{refused} refused"
    assert refused


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3),
            nn.ReLU(),
            nn.Conv2d(5, 5, 3),
            nn.ReLU(),
        ),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )


def made() -> tuple[nn.Module, torch.optim.Optimizer, tr.RePr]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return (
        model,
        optimizer,
        tr.RePr(model, optimizer, torch.zeros(2, 1, 8, 8), full=2, sub=2, cycles=2, max_per_layer=0.5),
    )


@lengths(50, 3_000)
def test_a_wrong_state_of_a_scheme_is_refused_and_changes_nothing(times, trials):
    count = trials(
        "bad input",
        "`scheme.load_state_dict` of states with keys missing and values of wrong types and ranges: refused by name, "
        "and the scheme as it was before, or loaded and given back by `state_dict`",
        "states",
    )
    _, _, other = made()
    states = [other.state_dict()]
    for _ in range(3):
        other.step()
        states.append(other.state_dict())
    model, _, scheme = made()
    fresh, weights = scheme.state_dict(), copy.deepcopy(model.state_dict())
    refused = 0

    @fuzzing(times)
    @given(st.sampled_from(range(len(states))).flatmap(lambda n: mutated(states[n], odds=odd_tensors(), most=2)))
    def holds(state):
        nonlocal refused
        with count.one(), quickly():
            try:
                scheme.load_state_dict(state)
                problem = None
            except tr.ReaperError as error:
                problem = one_line(error)
            if problem is None:  # it says the same of itself, and goes on from there
                now = scheme.state_dict()
                assert now["steps"] == state["steps"]
                assert now["cycle"] == state["cycle"]
                dropped = {name: sorted(set(filters)) for name, filters in state["dropped"].items()}
                assert {name: list(filters) for name, filters in now["dropped"].items()} == dropped
                scheme.bank.restore()
                scheme.load_state_dict(fresh)
            else:
                refused += 1
                assert problem.startswith("load_state_dict: ")
            assert same(scheme.state_dict(), fresh)
            assert scheme.phase == "full"
            assert same(model.state_dict(), weights)

    holds()
    count.note = f"{refused} refused"
    assert 0 < refused < times
