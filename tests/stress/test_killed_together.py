"""`reaper train --devices 2`: two processes that train one network, one of them or both sent a signal."""

from __future__ import annotations

import os
import signal

import pytest
from tests.lab.execution.watching import members, until
from tests.stress.killing import SIGNALS, Command, check_death, check_left, left, nobody_left, recipe, write_recipe

from torchreaper.lab.runs import ERROR, METRICS

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to look for processes")

TRAIN = ["train", "tiny.yaml", "--threads", "1", "--out", "runs", "--devices", "2"]
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
#: Long enough to be met while it trains; 24 images are shared evenly.
RECIPE = recipe(
    batch=24, epochs=120, snapshots=40, scheme={**recipe(subnetwork="masked")["scheme"], "full": 20, "sub": 10}
)


def begin(folder):
    write_recipe(folder, RECIPE)
    (folder / "reaper.py").write_text("from torchreaper.lab.cli import main; main()")
    return Command(TRAIN, folder, environment=LOOPBACK, script="reaper.py")  # Fabric starts the same script again


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_processes_that_train_together_end_together(trials, tmp_path):
    count = trials(
        "killed",
        "`reaper train --devices 2`, both processes or the first alone sent each signal while they train: none goes "
        "on, one line, no error told; then given again: bit-identical",
        "kills",
    )
    assert begin(tmp_path / "undisturbed").wait().code == 0
    whole = left(tmp_path / "undisturbed" / "runs")
    for number, (how, group) in enumerate((how, group) for how in SIGNALS for group in (False, True)):
        folder = tmp_path / str(number)
        command = begin(folder)
        with count.one():
            metrics = folder / "runs" / "tiny" / "repr" / "seed-0" / METRICS
            until(lambda there=metrics: there.exists() and there.read_bytes().count(b"\n") > 5, seconds=200)
            assert len(members(command.pid)) == 2
            command.kill(how, group=group)
            ended = command.wait()
            nobody_left(command.pid)
            if how == signal.SIGKILL and not group:  # the second can only say that it has lost the first
                assert ended.code == -how
                assert ended.errors.startswith("rank 1: error: ")
                assert ended.errors.count("\n") == 1
            else:
                check_death(ended, how, folder / "runs")
                assert not metrics.with_name(ERROR).exists()
            check_left(folder / "runs")
            ended = begin(folder).wait()
            assert (ended.code, ended.errors) == (0, "")
            assert left(folder / "runs") == whole
