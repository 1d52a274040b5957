"""Runs on a real Ray cluster of two CPUs, on this machine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.tiny import recipe

from torchreaper.lab.execution import Here, Job
from torchreaper.lab.progress import NullProgress

pytest.importorskip("ray", reason="needs the extra `ray`")
ROOT = Path(__file__).parents[3]

#: A process of its own: Ray leaves threads and handlers behind, and warns of files of its own that are still open.
RUN = """
import json, sys
from pathlib import Path
import ray
from tests.lab.execution.watching import Killer
from tests.lab.tiny import recipe
from torchreaper.lab.errors import UserError
from torchreaper.lab.execution import Cluster, Job

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
tiny, out = recipe(epochs=60), Path(sys.argv[1])
teacher = Job(tiny, "standard", 0, out / "teacher")
jobs = [Job(tiny, "repr", 0, out, after=(teacher,)), Job(tiny, "standard", 1, out), Job(tiny, "standard", 2, out)]
jobs.append(Job(recipe(optim__lr=1e30), "standard", 3, out / "nan"))
killers = {job.folder: Killer(job.folder, times) for job, times in zip([teacher, *jobs], (0, 1, 100, 0, 0))}
cluster = Cluster()
outcomes = {job.folder: outcome for job, outcome in cluster.run(jobs, lambda job: killers[job.folder])}
told = []
try:
    list(cluster.run([Job(recipe(data__limit=9), "standard", 4, out)], lambda job: killers[teacher.folder]))
except UserError as error:
    told.append(str(error))
print(json.dumps({
    "reasons": [getattr(outcomes[job.folder], "reason", "") for job in jobs],
    "notes": [killers[job.folder].notes for job in jobs],
    "ended": [len(killers[job.folder].ended) for job in [teacher, *jobs]],
    "at_once": cluster.at_once,
    "told": told,
}))
"""


def test_tasks_give_the_same_bits_are_tried_again_when_they_die_and_fail_by_name(tmp_path, one_thread):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    # Ray tells of the task that was killed when it likes, on stdout too.
    (found,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    first, died, fine, failed = found["reasons"]
    assert (first, fine) == ("", "")
    assert died.startswith("its process died 3 times (the last time WorkerCrashedError); ")
    assert "the training loss is" in failed
    assert list(map(len, found["notes"])) == [1, 2, 0, 0]
    assert found["ended"] == [1, 1, 0, 1, 0]
    assert found["at_once"] == 2
    assert found["told"] == ["data.limit=9: fewer than the 10 classes; use limit >= 10"]

    alone = Job(recipe(epochs=60), "repr", 0, tmp_path / "alone")
    ((_, outcome),) = Here().run([alone], lambda _: NullProgress())
    folder = tmp_path / "tiny" / "repr" / "seed-0"
    assert json.loads((folder / "result.json").read_text())["fingerprint"] == outcome["fingerprint"]
    assert json.loads((folder / "environment.json").read_text())["jobs"] == 2


def test_a_cluster_that_is_not_there_is_told(tmp_path):
    (tmp_path / "tiny.yaml").write_text("name: tiny\nepochs: 1\nbatch: 25\ndata: {name: digits, limit: 60}\n")
    with (tmp_path / "tiny.yaml").open("a") as file:
        file.write("model: {name: cnet, options: {depth: 2, width: 4}}\noptim: {name: sgd, lr: 0.05}\n")
    command = [sys.executable, "-c", "from torchreaper.lab.cli import main; main()", "compare", "tiny.yaml"]
    done = subprocess.run([*command, "--ray", "127.0.0.1:9"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        r"error: ray='127.0.0.1:9': cannot be reached \(.*refused\); start it, or use local\n", done.stderr
    )
