"""The book of the executors, on any jobs that need each other in any way."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.tiny import recipe

from torchreaper.lab.comparison import Failure
from torchreaper.lab.execution import RETRIES, Job, Plan

RECIPE = recipe()


@st.composite
def jobs(draw):
    """Up to 8 jobs; each needs some of those before it; some are given twice, as equal copies."""
    made = []
    for seed in range(draw(st.integers(1, 8))):
        after = draw(st.lists(st.sampled_from(made), max_size=3)) if made else []
        made.append(Job(RECIPE, "standard", seed, Path("out"), after=tuple(after)))
    given = draw(st.lists(st.sampled_from(made), min_size=1, max_size=10))
    return [Job(job.recipe, job.scheme, job.seed, job.out, after=job.after) for job in given]


def needed(job):
    return {job.folder}.union(*(needed(first) for first in job.after))


@given(jobs(), st.data())
def test_every_job_ends_once_after_those_it_needs_and_fails_with_them(given, data):
    plan, running, ended, deaths = Plan(given), [], {}, {}
    whole = set().union(*map(needed, given))
    while plan.open:
        if (job := plan.take()) is not None:
            assert all(ended[first.folder] == {} for first in job.after)
            running.append(job)
            continue
        job = running.pop(data.draw(st.integers(0, len(running) - 1)))
        what = data.draw(st.sampled_from(["result", "failure", "death"]))
        if what == "death":
            deaths[job.folder] = deaths.get(job.folder, 0) + 1
            notes = []
            found = plan.died(job, "killed by SIGKILL", notes.append)
            assert bool(found) == (deaths[job.folder] > RETRIES)
            assert len(notes) == (not found)
        else:
            found = plan.end(job, {} if what == "result" else job.failed("of itself"))
        assert not found or found[0][0] is job
        for other, outcome in found:
            assert other.folder not in ended
            assert other is job or any(isinstance(ended.get(first.folder), Failure) for first in other.after)
            ended[other.folder] = outcome
    assert ended.keys() == whole
    assert running == []
    assert plan.take() is None


def test_those_that_need_a_failed_run_name_it():
    teacher = Job(RECIPE, "standard", 3, Path("out/tiny"), label="teacher-big-1234, seed 3")
    pupils = [Job(RECIPE, scheme, 3, Path("out"), after=(teacher,)) for scheme in ("kd", "repr+kd")]
    plan = Plan(pupils)
    assert plan.take() is teacher
    assert plan.take() is None
    reason = "needs teacher-big-1234, seed 3, which failed: the loss is nan"
    assert plan.end(teacher, teacher.failed("the loss is nan"))[1:] == [
        (pupil, Failure(pupil.scheme, 3, reason)) for pupil in pupils
    ]
    assert not plan.open


@pytest.mark.parametrize("how", ["killed by SIGKILL", "it ended with exit code 1"])
def test_a_run_whose_process_dies_goes_before_the_others(how):
    first, second = (Job(RECIPE, "standard", seed, Path("out")) for seed in (0, 1))
    plan, notes = Plan([first, second]), []
    for time in range(1, RETRIES + 1):
        assert plan.take() is first
        assert plan.died(first, how, notes.append) == []
        assert notes.pop() == (
            f"its process died ({how}); it is taken up again from its last checkpoint, {time} of {RETRIES} times"
        )
    assert plan.take() is first
    ((job, failure),) = plan.died(first, how, notes.append)
    assert (job, notes) == (first, [])
    assert failure.reason.startswith(f"its process died {RETRIES + 1} times (the last time {how}); is there memory")
    assert plan.take() is second
