"""Runs in real processes, which are really killed."""

import json
import multiprocessing
import re
from multiprocessing import connection

import pytest
import torch
from tests.lab.execution.watching import Killer, until
from tests.lab.test_compare import Listener
from tests.lab.tiny import recipe

from torchreaper.errors import ReaperError
from torchreaper.lab.compare import compare
from torchreaper.lab.comparison import Failure
from torchreaper.lab.errors import UserError
from torchreaper.lab.execution import RETRIES, Here, Job, Workers, choose
from torchreaper.lab.execution.telling import Raised, attempt
from torchreaper.lab.execution.workers import cores, gpus
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.runs import read_metrics

TEACHER = {"teacher": {"model": {"name": "cnet", "options": {"depth": 2, "width": 8}}}}


def prints(out):
    """The fingerprints of all finished runs, by folder."""
    found = {str(path.parent.relative_to(out)): json.loads(path.read_text()) for path in out.rglob("result.json")}
    return {folder: result["fingerprint"] for folder, result in found.items()}


def test_side_by_side_gives_the_bits_of_one_after_the_other(tmp_path):
    tiny = recipe(schemes={"kd": TEACHER, "cooler": {"name": "kd", "temperature": 2.0, **TEACHER}})
    schemes, listener = ["standard", "kd", "cooler"], Listener()
    alone = compare(tiny, schemes, 2, tmp_path / "alone", executor=Here(threads=1))
    beside = compare(tiny, schemes, 2, tmp_path / "beside", listener, executor=Workers(2, threads=1))
    assert prints(tmp_path / "alone") == prints(tmp_path / "beside")
    assert len(prints(tmp_path / "beside")) == 2 * 4  # one teacher a seed, whichever scheme asks for it
    assert sorted(title.split(" / ")[1:] for title in listener.started) == sorted(
        [scheme, f"seed {seed}"] for seed in (0, 1) for scheme in (*schemes, "standard")
    )
    assert [summary.accuracy for summary in alone.schemes] == [summary.accuracy for summary in beside.schemes]
    assert alone.remarks == ()
    assert re.match("6 of 6 runs were made side by side, up to 2 at once", beside.remarks[0])
    assert beside.remarks[0] in (tmp_path / "beside" / "tiny" / "comparison.md").read_text()
    assert multiprocessing.active_children() == []


@pytest.mark.slow  # `make test` has the remark of two runs at once above
def test_runs_share_the_machine_with_those_there_are_not_with_those_there_could_be(tmp_path):
    assert compare(recipe(), ["standard"], 1, tmp_path, executor=Workers(4, threads=1)).remarks == ()
    beside = compare(recipe(), ["standard"], 3, tmp_path, executor=Workers(4, threads=1))
    assert beside.remarks[0].startswith("2 of 3 runs were made side by side, up to 2 at once")


def test_a_killed_worker_is_replaced_and_one_that_dies_again_and_again_is_given_up(tmp_path):
    tiny = recipe(epochs=60)
    jobs = [Job(tiny, "standard", seed, tmp_path / "killed") for seed in (0, 1, 2)]
    killers = {job.folder: Killer(job.folder, times) for job, times in zip(jobs, (RETRIES, 100, 0))}
    outcomes = dict(Workers(2, threads=1).run(jobs, lambda job: killers[job.folder]))

    assert isinstance(outcomes[jobs[1]], Failure)
    assert outcomes[jobs[1]].reason.startswith("its process died 3 times (the last time killed by SIGKILL); ")
    assert dict(Here(1).run([jobs[2]], lambda _: NullProgress()))[jobs[2]] == outcomes[jobs[2]]
    first = killers[jobs[0].folder]
    assert first.notes == [
        f"its process died (killed by SIGKILL); it is taken up again from its last checkpoint, {time} of 2 times"
        for time in (1, 2)
    ]
    assert first.started[0] == 0 < first.started[1] < first.started[2]
    assert [line["epoch"] for line in read_metrics(jobs[0].folder)] == list(range(1, 61))
    undisturbed = Job(tiny, "standard", 0, tmp_path / "alone")
    ((_, whole),) = Here(1).run([undisturbed], lambda _: NullProgress())
    assert outcomes[jobs[0]]["fingerprint"] == whole["fingerprint"]
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_death_and_news_of_another_run_at_once(tmp_path, monkeypatch):
    wait = connection.wait

    def of_all(pipes, timeout=None):
        if timeout is None:  # as it is asked for what the workers say, not for their end
            until(lambda: len(wait(pipes, 0)) == len(pipes), seconds=200)
        return wait(pipes, timeout)

    monkeypatch.setattr(connection, "wait", of_all)
    jobs = [Job(recipe(epochs=60), "standard", seed, tmp_path) for seed in (0, 1)]
    killers = {job.folder: Killer(job.folder, times) for job, times in zip(jobs, (1, 0))}
    outcomes = dict(Workers(2, threads=1).run(jobs, lambda job: killers[job.folder]))
    assert [outcomes[job]["seed"] for job in jobs] == [0, 1]
    assert len(killers[jobs[0].folder].notes) == 1


def test_a_run_that_fails_is_not_tried_again_and_an_error_of_the_user_ends_all(tmp_path):
    jobs = [
        Job(recipe(optim__lr=1e30), "standard", 0, tmp_path / "a"),
        Job(recipe(data__limit=9), "standard", 0, tmp_path / "b"),
        Job(recipe(epochs=10_000), "standard", 0, tmp_path / "c"),
    ]
    found, listener = [], Listener()
    told = "data.limit=9: fewer than the 10 classes; use limit >= 10"
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        found.extend(Workers(2, threads=1).run([jobs[0], jobs[2], jobs[1]], lambda _: listener))
    assert "Traceback" in str(caught.value.__cause__)
    assert [job for job, _ in found] == [jobs[0]]
    assert "the training loss is" in found[0][1].reason
    assert listener.notes == []
    assert not (tmp_path / "b").exists()
    assert multiprocessing.active_children() == []


def test_an_error_that_cannot_travel_becomes_one_that_can(tmp_path, monkeypatch):
    class OddError(ReaperError):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    def broken(*args, **options):
        raise OddError("so", "odd")

    monkeypatch.setattr("torchreaper.lab.execution.jobs.train", broken)
    job, threads = Job(recipe(), "standard", 0, tmp_path), torch.get_num_threads()
    raised = attempt(job, lambda _: None, threads=1, at_once=1)
    assert isinstance(raised, Raised)
    assert (type(raised.error), str(raised.error)) == (UserError, "so odd")
    assert "in broken" in str(raised.cause)
    assert torch.get_num_threads() == threads


def test_workers_take_turns_on_the_gpus_there_are(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    assert gpus() == ["3", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus() == [str(number) for number in range(torch.cuda.device_count())]


def test_choose_takes_what_the_command_line_says(monkeypatch):
    assert choose() == Here(None)
    assert choose(jobs=3, threads=2) == Workers(3, 2)
    with pytest.raises(UserError, match="jobs=0: must be 1 or more"):
        choose(jobs=0)
    with pytest.raises(UserError, match="jobs=2: has no effect with ray='auto'"):
        choose(jobs=2, ray="auto")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=re.escape("ray: is not installed; pip install 'torchreaper[ray]'")):
        choose(ray="local")
    assert cores() >= 1
