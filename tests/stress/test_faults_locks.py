"""Several processes on one run folder: one trains, the others say who does; whoever looks on is not in the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time

import pytest
from tests.stress.commands import LONG, cases, recipe_file, served
from tests.stress.disks import left, litter

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
RUN = "tiny/repr/seed-0"


@pytest.fixture
def reaper():
    return served()


def refusals(ended, pids):
    """How many were refused: each names a process that was there; the others ended well."""
    refused = 0
    for one in ended:
        if one.code:
            line = one.refused(2)
            assert ": is being trained by process " in line, line
            assert "; wait until that is done, or choose another out" in line
            holder = line.partition("by process ")[2].split()
            assert int(holder[0]) in pids, line
            assert holder[2].rstrip(";") == os.uname().nodename
            refused += 1
    return refused


@cases("several", 2, 5, short=1, long=6)
def test_commands_on_one_run(several, times, reaper, tmp_path, trials):
    count = trials(
        "faults",
        f"{several} `reaper train` and `reaper compare` on one run folder, at one moment or one after the other, every "
        "other time the one that trains is killed: one trains, the others name its process and exit with 2; no file "
        "is damaged, the next command ends with the bits of an undisturbed run",
        "races",
    )
    draw, recipe = random.Random(several), recipe_file(tmp_path, epochs=30 if times < 9 else 60)
    reaper("compare", recipe, "--quiet", "--out", tmp_path / "whole", cwd=tmp_path).well()
    whole, refused = left(tmp_path / "whole"), 0
    for number in range(times):
        out = tmp_path / str(number)
        with count.one():
            running = []
            for _ in range(several):
                command = ("compare", recipe, "--schemes", "repr,standard", "--quiet")
                command = draw.choice([("train", recipe), ("train", recipe), command])
                running.append(reaper.start(*command, "--out", out, cwd=tmp_path))
                time.sleep(draw.choice([0, 0, 0.05, 0.2]))
            pids = [one.pid for one in running]
            killed = None
            if number % 2 == 0:
                killed = _kill_holder(out, pids)
            ended = [one.end() for one in running]
            if killed is not None:
                assert ended.pop(pids.index(killed)).code == -signal.SIGKILL
            refused += refusals(ended, pids)
            reaper("compare", recipe, "--quiet", "--out", out, cwd=tmp_path).well()
            assert left(out) == whole
            assert litter(out) == []
            assert not list(out.rglob(".lock"))
        shutil.rmtree(out)
    count.note = f"{refused} were refused"


def _kill_holder(out, pids):
    """Kill the process that holds the lock, if there is one; its number."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            pid = int((out / RUN / ".lock").read_text().split()[1])
        except (OSError, IndexError):
            time.sleep(0.005)
            continue
        if pid in pids:
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            return pid
    return None


@pytest.mark.parametrize("times", [pytest.param(8, id="long", marks=LONG)])
def test_two_comparisons_write_into_one_folder(times, reaper, tmp_path, trials):
    count = trials(
        "faults",
        "two `reaper compare` of different schemes whose runs are finished, at one moment in one folder: both end "
        "well, every file is wholly one's or the other's",
        "races",
    )
    recipe = recipe_file(tmp_path)
    schemes = ["standard,repr", "repr,standard"]
    contents = {}
    for names in schemes:
        reaper("compare", recipe, "--schemes", names, "--quiet", "--out", tmp_path / "out", cwd=tmp_path).well()
        for path in (tmp_path / "out" / "tiny").glob("comparison*"):
            contents.setdefault(path.name, set()).add(path.read_bytes())
    for _ in range(times):
        with count.one():
            running = [
                reaper.start("compare", recipe, "--schemes", names, "--quiet", "--out", tmp_path / "out", cwd=tmp_path)
                for names in schemes
            ]
            for one in running:
                one.end().well()
            for name, known in contents.items():
                assert (tmp_path / "out" / "tiny" / name).read_bytes() in known
            assert litter(tmp_path / "out") == []


@pytest.mark.parametrize("times", [pytest.param(8, id="long", marks=LONG)])
def test_looking_on_while_a_run_goes_on(times, reaper, tmp_path, trials):
    count = trials(
        "faults",
        "`reaper report` and `reaper analyze` while `reaper train` writes into the folder: a page or a table, or one "
        "line; the run is not disturbed",
        "looks",
    )
    recipe = recipe_file(tmp_path, epochs=300, snapshots=10)
    reaper("train", recipe, "--out", tmp_path / "whole", cwd=tmp_path).well()
    whole, pages = left(tmp_path / "whole"), 0
    number = 0
    while number < times:
        out = tmp_path / "out"
        running = reaper.start("train", recipe, "--out", out, cwd=tmp_path)
        while number < times and not running.over():
            look = (
                ("report", out / "tiny", "--out", tmp_path / "page.html")
                if number % 4
                else ("analyze", out / RUN, "--images", 30, "--last-only", "--criteria", "magnitude", "--quiet")
            )
            with count.one():
                seen = reaper(*look, cwd=tmp_path)
                assert seen.code == 0 or seen.refused()
                pages += seen.code == 0
            number += 1
        running.end().well()
        assert left(out) == whole
        shutil.rmtree(out)
    count.note = f"{pages} were shown something"
