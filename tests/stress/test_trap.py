"""Every named point is a place that commands really come to: a renamed file or function must not disarm one."""

from __future__ import annotations

import os

import pytest
from tests.stress.killing import Command, missed, recipe, the_launcher, write_recipe
from tests.stress.trap import OF_A_COMPARISON, OF_A_RUN, OF_A_WORKER, OF_COMPACT, OF_JOBS

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs fork and /proc")

COMPARE = ["compare", "tiny.yaml", "--seeds", "1"]
COMMANDS = {
    "train, compact": (["train", "tiny.yaml"], "compact", {"train": OF_A_RUN | OF_COMPACT}),
    "train, masked": (["train", "tiny.yaml"], "masked", {"train": OF_A_RUN}),
    "compare": (COMPARE, "compact", {"compare": OF_A_COMPARISON}),
    "compare, two jobs": ([*COMPARE, "--jobs", "2"], "compact", {"jobs": OF_JOBS, "worker": OF_A_WORKER}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.stress] if "jobs" in name else []) for name in COMMANDS]
)
def test_commands_come_to_every_named_point(name, tmp_path):
    arguments, subnetwork, points = COMMANDS[name]
    folder = write_recipe(tmp_path / "work", recipe(subnetwork=subnetwork))
    full = [*arguments, "--threads", "1", "--out", "runs"]
    keys = [f"{command}: {point}" for command, of in points.items() for point in of]
    assert missed(lambda traps: Command(full, folder, the_launcher(), traps), keys, tmp_path) == set()
