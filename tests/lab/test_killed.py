"""A run killed by SIGKILL, anywhere and as often as one likes, ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.lab.dying import JOBS, left, tiny

from torchreaper.lab.run import train

ROOT = Path(__file__).parents[2]
ALL = [1, 2, 3]

pytestmark = [
    pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork and SIGKILL"),
    pytest.mark.slow,  # in `make test` test_runs.py stops at each step of a save, tests/stress kills real commands
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The fingerprints of a run that was left alone, in this process, by scheme and optimizer."""
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for scheme in ("standard", "repr"):
        for optimizer in ("sgd", "adamw"):
            out = tmp_path_factory.mktemp("undisturbed")
            train(tiny(optimizer), scheme=scheme, seed=0, out=out)
            found[scheme, optimizer] = left(out, scheme)
    torch.set_num_threads(threads)
    assert len(set(map(tuple, found.values()))) == 4
    assert {len(fingerprints) for fingerprints in found.values()} == {3}
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What the killed runs came to, by job."""
    command = [sys.executable, "-m", "tests.lab.dying", str(tmp_path_factory.mktemp("killed"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_killed_runs_end_with_the_same_bits_and_each_epoch_once(job, killed, undisturbed):
    for run in killed[" ".join(job)]:
        assert run["left"] == undisturbed[job[:2]]
        assert run["epochs"] == ALL
        assert all(epochs == ALL[: len(epochs)] for epochs in run["died"])


def test_they_died_everywhere(killed):
    runs = killed["repr sgd every"]
    # In every epoch, that of the sub-network (2) among them, and at many places in each.
    assert {len(epochs) for run in runs for epochs in run["died"]} == {0, 1, 2, 3}
    assert len(runs) > 25
    chains = [killed[" ".join(job)][0]["died"] for job in JOBS if job[2] == "chain"]
    assert min(map(len, chains)) > 1
    assert any(1 in map(len, died) for died in chains[2:])
