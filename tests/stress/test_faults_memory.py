"""Workers without memory: killed as the system does it, or refused it; the other runs of a comparison end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tests.stress.commands import LONG, recipe_file, served
from tests.stress.disks import left

from torchreaper.lab.errors import LESS_MEMORY

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]
NETS = """
import os
import torch
from torch import nn

EPOCH_OF_IMAGES = 60


class Hungry(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(24, 10)
        self.seen = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.seen += len(x)
        if os.path.exists("hungry") and self.seen > 2 * EPOCH_OF_IMAGES:
            {greed}
        return self.head(self.layers(x).flatten(1))
"""
GREED = {
    "python": "bytearray(1 << 60)",
    "torch": "torch.empty(1 << 58)",
    "killed": "os.kill(os.getpid(), 9)",
}


def command(folder, *more):
    """`reaper compare --jobs 2` as a process of its own, which may start others."""
    call = [sys.executable, "-c", "from torchreaper.lab.cli import main; main()", "compare", "tiny.yaml", "--quiet"]
    return subprocess.Popen(
        [*call, "--out", "out", "--threads", "1", *more], cwd=folder, text=True, stdout=-1, stderr=-1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )  # fmt: skip


def hungry_recipe(folder, greed):
    (folder / f"greedy_{greed}.py").write_text(NETS.replace("{greed}", GREED[greed]))
    (folder / "hungry").touch()
    return recipe_file(folder, model={"name": f"greedy_{greed}:Hungry"}, snapshots=None, seeds=2)


@pytest.mark.parametrize("greed", ["python", pytest.param("torch", marks=LONG)])
def test_memory_that_is_refused_is_told_with_what_needs_less(greed, tmp_path):
    recipe = hungry_recipe(tmp_path, greed)
    env = {"PYTHONPATH": str(tmp_path)}
    stopped = served()("train", recipe, "--out", tmp_path / "out", cwd=tmp_path, env=env)
    line = stopped.refused(1)
    assert line.startswith("error: memory ran out (")
    assert f"{LESS_MEMORY}; the traceback is in" in line
    assert line.endswith("error.txt; finished epochs are kept")
    (tmp_path / "hungry").unlink()
    served()("train", recipe, "--out", tmp_path / "out", cwd=tmp_path, env=env).well()
    served()("train", recipe, "--out", tmp_path / "whole", cwd=tmp_path, env=env).well()
    assert left(tmp_path / "out") == left(tmp_path / "whole")


@pytest.mark.stress
@pytest.mark.timeout(0)
@pytest.mark.parametrize("greed", GREED)
def test_workers_that_run_out_of_memory(greed, tmp_path, trials):
    how = {
        "python": "whose network gets a MemoryError",
        "torch": "whose network gets torch's error of allocation",
        "killed": "that die by SIGKILL in every attempt, as the system does it",
    }[greed]
    count = trials(
        "faults",
        f"`reaper compare --jobs 2` with workers {how}: these runs fail by one line each, exit code 1; the command "
        "given again goes on, and ends with the bits of an undisturbed run",
        "runs",
    )
    hungry_recipe(tmp_path, greed)
    out, err = command(tmp_path, "--jobs", "2").communicate(timeout=500)
    failed = [line for line in err.splitlines() if line.startswith("note: failed: ")]
    assert len(failed) == 4, err
    for line in failed:
        with count.one():
            assert "fewer jobs at once" in line.lower()
            assert "finished epochs are kept" in line
    assert "Traceback" not in out + err
    (tmp_path / "hungry").unlink()
    again = command(tmp_path, "--jobs", "2")
    assert again.communicate(timeout=500)[1] == ""
    assert again.returncode == 0
    alone = command(tmp_path, "--out", "whole")
    assert alone.communicate(timeout=500)[1] == ""
    assert left(tmp_path / "out") == left(tmp_path / "whole")


@pytest.mark.stress  # tests/lab/execution/test_workers.py has a short form
@pytest.mark.timeout(0)
@pytest.mark.parametrize("times", [4], ids=["long"])
def test_workers_that_are_killed_at_any_moment(times, tmp_path, trials):
    count = trials(
        "faults",
        "`reaper compare --jobs 2` whose workers are killed by SIGKILL at random moments, as the system does without "
        "memory: taken up again (twice a run), the bits of an undisturbed comparison",
        "kills",
    )
    recipe = recipe_file(tmp_path, epochs=200, seeds=2)
    assert yaml.safe_load(recipe.read_text())["seeds"] == 2
    alone = command(tmp_path, "--out", "whole")
    assert alone.communicate(timeout=900)[1] == ""
    while count.tried < times:
        running = command(tmp_path, "--jobs", "2")
        while running.poll() is None and count.tried < times:
            time.sleep(1.5)
            for path in (tmp_path / "out").rglob(".lock"):
                try:
                    holder = int(path.read_text().split()[1])
                    os.kill(holder, signal.SIGKILL)
                except (OSError, IndexError):
                    continue
                count.add(True)
                break
        _, err = running.communicate(timeout=900)
        assert "Traceback" not in err, err
        assert "killed by SIGKILL" in err, err
    last = command(tmp_path, "--jobs", "2")
    assert last.communicate(timeout=900)[1] == ""
    assert last.returncode == 0
    assert left(tmp_path / "out") == left(tmp_path / "whole")
