"""A clock that jumps: libfaketime shifts it for real processes, before, in the middle of and after runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.stress.commands import Reaper, recipe_file
from tests.stress.disks import left

RUN = "tiny/repr/seed-0"
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
JUMPS = ["+0", "+10y", "-10y", "-50y", "+1h", "-1h", "+20000d"]
pytestmark = [
    pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime (apt install faketime)"),
    pytest.mark.stress,
    pytest.mark.timeout(0),
]


@pytest.fixture
def clock(tmp_path_factory):
    """A file that says how the clock is shifted; and what starts processes that believe it."""
    folder = tmp_path_factory.mktemp("clock")
    file = folder / "offset"
    file.write_text("+0\n")
    env = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as it is: a monotonic clock does not jump
    }
    with Reaper(env) as reaper:
        yield reaper, file


@pytest.mark.parametrize("times", [2], ids=["long"])
def test_no_number_depends_on_the_clock(times, clock, tmp_path, trials):
    count = trials(
        "faults",
        "the clock jumps by up to 50 years, to and fro, in the middle of `reaper train` and between a kill and its "
        "resumption: the bits of an undisturbed run, no negative "
        "seconds or images per second, and the report shows it",
        "jumps",
    )
    reaper, file = clock
    draw, recipe = random.Random(0), recipe_file(tmp_path, epochs=30)
    reaper("train", recipe, "--out", tmp_path / "whole", cwd=tmp_path).well()
    whole, dates = left(tmp_path / "whole"), set()
    for _ in range(times):
        out = tmp_path / "out"
        running = reaper.start("train", recipe, "--out", out, cwd=tmp_path)
        while not running.over():
            with count.one():
                file.write_text(draw.choice(JUMPS) + "\n")
            time.sleep(draw.uniform(0.05, 0.3))
            if draw.random() < 0.3:
                os.kill(running.pid, signal.SIGKILL)
                running.end()
                running = reaper.start("train", recipe, "--out", out, cwd=tmp_path)
        running.end().well()
        assert left(out) == whole
        for line in (out / RUN / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            assert 0 < values["seconds"] < 60
            assert 0 < values["images_per_second"] < 1e7
        result = json.loads((out / RUN / "result.json").read_text())
        assert 0 < result["seconds"] < 600
        begun = json.loads((out / RUN / "environment.json").read_text())
        dates |= {one["date"][:4] for one in (begun, *begun.get("resumed", []))}
        reaper("report", out / "tiny", cwd=tmp_path).well()
        assert reaper("train", recipe, "--out", out, cwd=tmp_path).well().err == ""
        shutil.rmtree(out)
    count.note = f"the runs believed to be in {', '.join(sorted(dates))}"
    assert len(dates) > 1
