"""`reaper compare`, killed as a whole or in part: no process is left, the next command ends with the same files."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.lab.execution.watching import members
from tests.stress.killing import (
    SIGNALS,
    Command,
    check_death,
    check_left,
    left,
    moments,
    nobody_left,
    recipe,
    the_launcher,
    trapped,
    write_recipe,
)
from tests.stress.recording import lengths
from tests.stress.trap import OF_A_COMPARISON, OF_A_WORKER, OF_JOBS

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs fork, SIGKILL and /proc")

#: Runs that take longer than their workers need to begin.
LONGER = {"epochs": 60, "snapshots": 20, "scheme": {**recipe()["scheme"], "full": 10, "sub": 5}}
RECIPES = {1: recipe(), 2: recipe(**LONGER)}


def compare(jobs):
    return ["compare", "tiny.yaml", "--seeds", "1", "--threads", "1", "--jobs", str(jobs), "--out", "runs"]


@pytest.fixture(scope="module")
def launcher():
    return the_launcher()


@pytest.fixture(scope="module")
def undisturbed(launcher, tmp_path_factory):
    """What a comparison with so many jobs leaves that nobody disturbs, and the seconds that it takes; each once."""
    known = {}

    def of(jobs):
        if jobs not in known:
            folder = write_recipe(tmp_path_factory.mktemp("undisturbed"), RECIPES[jobs])
            begun = time.monotonic()
            ended = Command(compare(jobs), folder, launcher).wait()
            seconds = time.monotonic() - begun
            assert (ended.code, ended.errors) == (0, "")
            known[jobs] = left(folder / "runs"), seconds
            assert {"tiny/comparison.json", "tiny/filters.png"} <= known[jobs][0].keys()
        return known[jobs]

    return of


def finish(folder, launcher, whole, jobs):
    """The same command again ends well, and leaves what an undisturbed one does."""
    ended = Command(compare(jobs), folder, launcher).wait()
    assert (ended.code, ended.errors) == (0, "")
    assert left(folder / "runs") == whole


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_at_random_moments(trials, launcher, undisturbed, tmp_path):
    count = trials(
        "killed",
        "`reaper compare` killed at random moments by SIGKILL, SIGTERM, SIGINT; then given again: files readable, at "
        "last all files of the runs and of the comparison the same, the figures too",
        "kills",
    )
    times = 30
    whole, seconds = undisturbed(1)
    signals = itertools.cycle(SIGNALS)
    at = moments(3 * times, seconds, seed=2)
    for number in itertools.count():
        if count.tried >= times:
            break
        folder = write_recipe(tmp_path / str(number), RECIPES[1])
        how, command = next(signals), Command(compare(1), folder, launcher)
        if command.ended(next(at)) is None:
            command.kill(how)
        ended = command.wait()
        if ended.code != 0:
            count.tried += 1
            check_death(ended, how, folder / "runs")
            check_left(folder / "runs")
            finish(folder, launcher, whole, 1)
            count.held += 1
    assert count.held == count.tried >= times


def at_points(count, jobs, points, launcher, whole, tmp_path):
    """Each point with each signal; what went wrong."""
    wrong = []
    for number, (point, how) in enumerate(points):
        folder = write_recipe(tmp_path / str(number), RECIPES[jobs])
        mark = tmp_path / f"{number}.mark"
        count.tried += 1
        try:
            command = Command(compare(jobs), folder, launcher, trapped(point, how, mark))
            ended = command.wait()
            assert mark.exists(), "never came there"
            if point.startswith("worker: "):
                check_survived(ended, how)
                assert left(folder / "runs") == whole
            else:
                check_death(ended, how, folder / "runs", workers=jobs > 1)
                nobody_left(command.pid)
                check_left(folder / "runs")
                finish(folder, launcher, whole, jobs)
            count.held += 1
        except Exception as error:
            wrong.append(f"{point}, {how.name}: {type(error).__name__}: {error}")
            print(wrong[-1])
    return wrong


def check_survived(ended, how):
    """The command went on without the worker that was sent the signal, and told of it; Ctrl-C is not the workers'."""
    notes = ended.errors.splitlines()
    assert ended.code == 0, ended
    assert len(notes) == (how != signal.SIGINT), ended
    assert all(f"its process died (killed by {how.name}); it is taken up again" in note for note in notes), ended


@lengths(None, 10**6)
def test_at_named_points(times, trials, launcher, undisturbed, tmp_path):
    count = trials(
        "killed",
        "`reaper compare` that signals itself at named points: between runs, in and between the files and figures of "
        "the comparison; then given again: the same files",
        "kills",
    )
    whole, _ = undisturbed(1)
    points = [(f"compare: {point}", how) for point in OF_A_COMPARISON for how in SIGNALS]
    if times == 1:
        points = [("compare: between two figures", signal.SIGTERM)]
    count.note = f"{len({point for point, _ in points})} points"
    wrong = at_points(count, 1, points, launcher, whole, tmp_path)
    assert not wrong, "\n".join(wrong)


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_workers_at_named_points(trials, launcher, undisturbed, tmp_path):
    count = trials(
        "killed",
        "`reaper compare --jobs 2` or one of its workers that signals itself at named points: while a worker is "
        "started, begins, trains, tells its result: no process left, the same files",
        "kills",
    )
    whole, _ = undisturbed(2)
    points = [(f"jobs: {point}", how) for point in OF_JOBS for how in SIGNALS]
    points += [(f"worker: {point}", signal.SIGKILL) for point in OF_A_WORKER]
    points += [("worker: while a worker trains", how) for how in (signal.SIGTERM, signal.SIGINT)]
    count.note = f"{len({point for point, _ in points})} points"
    wrong = at_points(count, 2, points, launcher, whole, tmp_path)
    assert not wrong, "\n".join(wrong)


def workers(group):
    """The worker processes of a command."""
    found = []
    for pid in members(group):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in line:
            found.append(pid)
    return found


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_workers_at_random_moments(trials, launcher, undisturbed, tmp_path):
    count = trials(
        "killed",
        "`reaper compare --jobs 2` at random moments: the command alone, its whole group (as a terminal and Slurm do) "
        "or one worker is sent each signal: no process left, no run trained twice, at last the same files",
        "kills",
    )
    whole, seconds = undisturbed(2)
    draw = random.Random(4)
    whom = ["command", "group", "worker"]
    cases = [(one, how) for one in whom for how in SIGNALS]
    for number, (moment, (one, how)) in enumerate(zip(moments(len(cases), seconds, seed=5), cases)):
        folder = write_recipe(tmp_path / str(number), RECIPES[2])
        command = Command(compare(2), folder, launcher)
        count.tried += 1
        if command.ended(moment) is None:
            if one != "worker":
                command.kill(how, group=one == "group")
            elif there := workers(command.pid):
                os.kill(draw.choice(there), how)
        ended = command.wait()
        if ended.code == 0:  # a worker's death, or none: the signal came too late
            assert all(f"killed by {how.name}" in line for line in ended.errors.splitlines()), ended
            nobody_left(command.pid)
            assert left(folder / "runs") == whole
        else:
            assert one != "worker", ended
            check_death(ended, how, folder / "runs", workers=True)
            if number % 2:  # the next command may come at once, while workers without their parent are ending
                nobody_left(command.pid)
                check_left(folder / "runs")
            finish(folder, launcher, whole, 2)
            nobody_left(command.pid)
        count.held += 1
    assert count.held == count.tried
