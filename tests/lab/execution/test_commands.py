"""``reaper compare --jobs`` as a command that is stopped from outside."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from tests.lab.execution.watching import holder, members, until
from tests.lab.tiny import TINY

from torchreaper.lab.locking import LOCK

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to look for processes")
SCHEMES = ("standard", "repr")
GO_ON = "; finished epochs are kept: give the same command again to go on\n"
INTERRUPTED, TERMINATED = "interrupted" + GO_ON, "terminated" + GO_ON


@pytest.fixture
def begin():
    """Starts the command, as the leader of a group of its own, as a shell would; what is left of it is ended."""
    started = []

    def start(out):
        command = [sys.executable, "-c", "from torchreaper.lab.cli import main; main()", "compare", "tiny.yaml"]
        command += ["--out", str(out), "--seeds", "2", "--jobs", "2", "--threads", "1"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, start_new_session=True, cwd=out, **pipes))
        return started[-1]

    yield start
    for process in started:
        for member in members(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def out(tmp_path, request):
    """A folder with a recipe of so many epochs; by default its runs do not end before they are stopped."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "epochs": getattr(request, "param", 100_000)}))
    return tmp_path


def training(out):
    """The folders in which a process trains that has finished an epoch."""
    return [path.parent for path in out.rglob(LOCK) if (path.parent / "metrics.jsonl").exists()]


def gone(command):
    """Nothing is left of it; Python's own tracker of resources ends a moment after the process that it served."""
    until(lambda: not members(command.pid), seconds=20)


@pytest.mark.parametrize("out", [200], indirect=True)
def test_ctrl_c_leaves_no_process_and_the_same_command_goes_on(out, begin):
    first = begin(out)
    until(lambda: len(training(out)) == 2, seconds=120)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert first.communicate(timeout=200) == ("", INTERRUPTED)
    assert first.returncode == 130
    gone(first)
    counts = {path.parent: path.read_text().count("\n") for path in out.rglob("metrics.jsonl")}
    assert 0 < min(counts.values()) < 200

    shown, errors = begin(out).communicate(timeout=200)
    assert errors == ""
    assert shown.count(": test accuracy ") == 4
    assert "4 of 4 runs were made side by side" in shown
    for folder, count in counts.items():
        # Not one epoch that stood in the log is trained again; the last checkpoint may be one ahead of it.
        assert json.loads((folder / "environment.json").read_text())["resumed"][0]["after_epoch"] in (count, count + 1)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("seed-*/*")}
    again, errors = begin(out).communicate(timeout=200)
    assert (again.count(": test accuracy "), errors) == (4, "")
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("seed-*/*")}


def test_ctrl_c_while_the_workers_are_starting(out, begin):
    command = begin(out)
    until(lambda: len(members(command.pid)) >= 3)  # they are importing torch
    os.killpg(command.pid, signal.SIGINT)
    assert command.communicate(timeout=200) == ("", INTERRUPTED)
    gone(command)


@pytest.mark.parametrize(
    ("how", "code", "said"), [(signal.SIGTERM, 143, TERMINATED), (signal.SIGKILL, -signal.SIGKILL, "")]
)
def test_workers_end_with_their_parent(out, how, code, said, begin):
    command = begin(out)
    until(lambda: len(training(out)) == 2, seconds=120)
    workers = [holder(folder) for folder in training(out)]
    assert set(workers) <= set(members(command.pid)) - {command.pid}
    command.send_signal(how)
    assert command.communicate(timeout=200) == ("", said)
    assert command.returncode == code
    gone(command)
    assert bool(list(out.rglob(LOCK))) == (how == signal.SIGKILL)  # the file; the lock itself is the system's


def test_two_commands_do_not_train_one_run(out, begin):
    first = begin(out)
    until(lambda: len(training(out)) == 2, seconds=120)
    os.killpg(first.pid, signal.SIGSTOP)  # it keeps its locks, and leaves the processors to the second
    second = begin(out)
    shown, errors = second.communicate(timeout=200)
    assert (shown, second.returncode) == ("", 2)
    assert errors.startswith(f"error: out={out}/tiny/")
    assert ": is being trained by process " in errors
    assert errors.count("\n") == 1
    logs = {folder / "metrics.jsonl": (folder / "metrics.jsonl").stat().st_size for folder in training(out)}
    os.killpg(first.pid, signal.SIGCONT)
    until(lambda: all(log.stat().st_size > size for log, size in logs.items()))  # it goes on, undisturbed
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGINT)
    assert first.communicate(timeout=200) == ("", INTERRUPTED)
