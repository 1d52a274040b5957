"""Several processes that train one network: the same as one, stopped, killed, started by torchrun, Slurm or Fabric."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab.execution.watching import members, until
from tests.lab.tiny import TINY, recipe
from tests.lab.together import SCENARIOS, STOPPED, known

from torchreaper.lab import processes
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_metrics

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
REAPER = "from torchreaper.lab.cli import main; main()"
#: A process of several that Python tears down may abort, as its group's threads still run: here it always does.
ABORTS = f"import atexit, os; atexit.register(os.abort); {REAPER}"
#: torchrun's processes would meet at its own store, which a restart finds full of the addresses of the dead ones
#: (https://github.com/pytorch/pytorch/issues/135712).
SHARED = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SECONDS = 150  # two processes that wait for each other wait longer

#: A network that, once, kills the process of rank 1 in the third epoch, in a sub-network phase.
DYING = """
import os, signal
from pathlib import Path
from torch import nn


class Dying(nn.Module):
    def __init__(self, kill=False):
        super().__init__()
        layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Dropout(0.2), nn.Flatten(), nn.Linear(96, 10))
        self.steps, self.kill = 0, kill

    def forward(self, x):
        self.steps += self.training and x.shape[0] > 2
        mark = Path(os.environ["KILLED"])
        if self.kill and os.environ["RANK"] == "1" and self.steps == 6 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x)
"""

#: A network that hears no order to stop, and that no other process waits for.
DEAF = """
import os, time
from pathlib import Path
from torch import nn


class Deaf(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        if self.training and x.shape[0] > 2:
            Path(os.environ["DEAF"], "heard-" + os.environ.get("LOCAL_RANK", "0")).touch()
            while True:
                try:
                    time.sleep(200)
                except KeyboardInterrupt:
                    pass
        return super().forward(x)
"""


def environment(**more: str) -> dict[str, str]:
    """On loopback, one thread each, and nothing left of a job that these tests may be part of."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    return {**ours, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **SHARED, **more}


def started(command: list[str], folder: Path = ROOT, **more: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["start_new_session"] = True
    return subprocess.Popen(command, cwd=folder, env=environment(**more), **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        out, errors = process.communicate(timeout=SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # torchrun's processes too, where they wait for each other
    assert process.returncode == 0, errors
    return out, errors


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("together")
    ended(started([*TORCHRUN, "-m", "tests.lab.together", str(out)]))
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def close(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(close(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list):
        return len(mine) == len(theirs) and all(map(close, mine, theirs))
    return mine == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_come_to_what_one_comes_to(ranks, scenario, tmp_path):
    scheme, changes = SCENARIOS[scenario]
    what = recipe(**changes)
    result = train(what, scheme=scheme, seed=0, out=tmp_path)
    alone = known(result, folder_of(tmp_path, what.name, scheme, 0))
    assert any(line["dropped"] for line in alone["epochs"]) == (scheme == "repr")
    for found in ranks:
        assert found[scenario]["test_accuracy"] == alone["test_accuracy"]
        assert close(found[scenario]["epochs"], alone["epochs"])
    assert ranks[0][scenario]["fingerprint"] == ranks[1][scenario]["fingerprint"]


@pytest.mark.parametrize("scheme", STOPPED)
def test_every_scheme_goes_on_to_the_same_bits_and_all_processes_have_them(ranks, scheme):
    refused, whole, again = ranks[0][f"{scheme}, stopped"]
    assert refused == "RunFailed: stopped"
    assert whole == again
    assert ranks[1][f"{scheme}, stopped"] == [refused, whole, again]


def test_what_the_first_refuses_all_refuse_in_the_same_words(ranks):
    assert ranks[0]["uneven"] == "UserError: batch=25: 2 processes cannot share it evenly; use a multiple of that"
    assert "holds a run of another recipe: " in ranks[0]["another"]
    assert re.match(r"RunFailed: epoch 1, step 2: the training loss is (nan|inf); lower", ranks[0]["diverged"])
    for name in ("uneven", "another", "diverged"):
        assert ranks[1][name] == ranks[0][name]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a recipe, and the numbers of its run by two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "dying.py").write_text(DYING)
    what = {
        **TINY,
        "batch": 24,
        "model": {"name": "dying:Dying"},
        "scheme": {**TINY["scheme"], "subnetwork": "compact"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(what))
    what["model"]["options"] = {"kill": True}
    (folder / "kill.yaml").write_text(yaml.safe_dump(what))
    return folder


def numbers(out: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder_of(out, "tiny", "repr", 0))
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


@pytest.mark.slow  # `make test` has two processes by torchrun above and by --devices below
def test_devices_slurm_and_torchrun_come_to_the_same_and_a_rank_that_dies_changes_nothing(job):
    """Fabric's own launcher, two processes as srun starts them, and an elastic restart after a SIGKILL."""
    reaper = ["-c", ABORTS, "train", "tiny.yaml", "--threads", "1"]
    script = job / "reaper.py"
    script.write_text(ABORTS)
    mark = str(job / "killed")
    out, errors = ended(
        started([sys.executable, str(script), *reaper[2:], "--out", "devices", "--devices", "2"], job, KILLED=mark)
    )
    assert errors == ""
    assert out.splitlines()[1:] == ["devices/tiny/repr/seed-0"]
    assert out.count("test accuracy") == 1

    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_JOB_ID": f"{os.getpid() % 9000 + 1000}", "MASTER_ADDR": "127.0.0.1", "KILLED": mark}
    both = [
        started(
            [sys.executable, *reaper, "--out", "slurm"], job, SLURM_PROCID=f"{rank}", SLURM_LOCALID=f"{rank}", **slurm
        )
        for rank in (0, 1)
    ]
    said = [ended(process)[0] for process in both]
    assert "test accuracy" in said[0]
    assert said[1] == ""

    restarts = [
        *TORCHRUN,
        "--max-restarts",
        "2",
        str(script),
        "train",
        "kill.yaml",
        "--threads",
        "1",
        "--out",
        "torchrun",
    ]
    ended(started(restarts, job, KILLED=mark))
    assert Path(mark).exists()
    about = json.loads((folder_of(job / "torchrun", "tiny", "repr", 0) / "environment.json").read_text())
    assert [one["after_epoch"] for one in about["resumed"]] == [2]
    assert numbers(job / "devices")[2]["phase"] == "sub"
    assert numbers(job / "devices") == numbers(job / "slurm") == numbers(job / "torchrun")


def test_ctrl_c_ends_both_with_one_line(job):
    script = job / "reaper.py"
    script.write_text(REAPER)
    command = [sys.executable, str(script), "train", "tiny.yaml", "--devices", "2", "--set", "epochs=9999"]
    process = started([*command, "--out", "stopped"], job, KILLED="")
    lines = folder_of(job / "stopped", "tiny", "repr", 0) / "metrics.jsonl"
    end = time.monotonic() + SECONDS
    while not lines.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, errors
    assert out == ""
    assert errors == "interrupted; finished epochs are kept: give the same command again to go on\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to look for processes")
@pytest.mark.parametrize(
    "meets",
    [pytest.param(False, id="before they have met"), pytest.param(True, id="swallowed", marks=pytest.mark.slow)],
)
def test_one_that_is_told_to_stop_takes_the_others_along(job, meets):
    """Before they have met, where the others would wait; and where it has to be ended because it swallows the order."""
    (job / "deaf.py").write_text(DEAF)
    (job / "deaf.yaml").write_text(yaml.safe_dump({**TINY, "batch": 24, "model": {"name": "deaf:Deaf"}}))
    (job / "reaper.py").write_text(REAPER)
    marks = [job / "heard-0", job / "heard-1"]
    command = [sys.executable, str(job / "reaper.py"), "train", "deaf.yaml", "--devices", "2", "--out", "deaf"]
    process = started(command, job, DEAF=str(job))
    try:
        until(lambda: len(members(process.pid)) == 2 if not meets else all(mark.exists() for mark in marks), SECONDS)
        time.sleep(0.5)  # a process that is just being born is not known to the first one yet
        process.send_signal(signal.SIGTERM)
        until(lambda: process.poll() is not None, seconds=SECONDS)
        until(lambda: not members(process.pid), seconds=3)  # not only when they notice by themselves
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (143, "")
    assert errors == "terminated; finished epochs are kept: give the same command again to go on\n"


def test_numbers_that_are_not_those_of_the_job_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"^devices=3: torchrun or Slurm has started 2; leave --devices out, or ask for"
    ):
        processes.begin("cpu", "32-true", 3, None)
    with pytest.raises(UserError, match=r"^nodes=1: torchrun or Slurm has started 2; leave --nodes out"):
        processes.begin("cpu", "32-true", 2, 1)


def test_a_slurm_job_of_one_task_or_an_interactive_one_is_a_single_process(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert processes.begin("cpu", "32-true", None, None) is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert processes.begin("cpu", "32-true", None, None) is None
