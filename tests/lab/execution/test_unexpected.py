"""What a user's own code raises in the middle of a run fails that run, and no other."""

import re

import pytest
from tests.lab.test_compare import Listener
from tests.lab.tiny import recipe

from torchreaper.lab.compare import compare, run
from torchreaper.lab.execution import Here, Workers
from torchreaper.lab.runs import ERROR, RunFailed, read_metrics, write_error

CODE = """
from pathlib import Path
from typing import Literal

from torchreaper.lab.schemes import Attached, Spec


class Faulty(Attached):
    def __init__(self, broken):
        self.broken = broken

    def trained(self):
        if self.epoch == 2 and self.broken.exists():
            raise {error}


class FaultySpec(Spec):
    name: Literal["faulty"] = "faulty"

    def attach(self, setup):
        return Faulty(Path(__file__).with_name("broken"))
"""


@pytest.fixture
def tiny(tmp_path, request):
    package = f"faulty_{request.node.name.translate(str.maketrans('[]', '__'))}"
    error = 'ValueError("odd\\nthing " + "x" * 1000)'
    (tmp_path / f"{package}.py").write_text(CODE.replace("{error}", error))
    (tmp_path / "broken").touch()
    return recipe(schemes={"mine": {"name": f"{package}:FaultySpec"}}).at(tmp_path)


@pytest.mark.parametrize(
    "executor",
    [
        pytest.param(Here(threads=1), id="here"),
        # In `make test` test_workers.py has a run that fails in a worker.
        pytest.param(Workers(2, threads=1), id="workers", marks=pytest.mark.slow),
    ],
)
def test_the_other_runs_go_on_and_the_same_command_takes_it_up(tmp_path, tiny, executor):
    schemes, listener = ["standard", "mine"], Listener()
    found = compare(tiny, schemes, 2, tmp_path / "out", listener, executor=executor)
    assert [(failure.scheme, failure.seed) for failure in found.failures] == [("mine", 0), ("mine", 1)]
    assert [summary.seeds for summary in found.schemes] == [(0, 1)]
    folder = tmp_path / "out" / "tiny" / "mine" / "seed-0"
    kept = "; finished epochs are kept"
    pattern = rf"ValueError: odd thing x+ \(.*/faulty_\w+\.py, line 14\); the traceback is in {folder / ERROR}{kept}"
    assert re.fullmatch(pattern, found.failures[0].reason)
    assert len(found.failures[0].reason) < 1000
    assert sum(note.startswith("failed: mine, seed ") for note in listener.notes) == 2
    text = (folder / ERROR).read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "\nthing xxx" in text
    assert [line["epoch"] for line in read_metrics(folder)] == [1, 2]

    (tmp_path / "broken").unlink()
    again = compare(tiny, schemes, 2, tmp_path / "out", executor=executor)
    assert again.failures == ()
    assert not (folder / ERROR).exists()
    alone = compare(tiny, schemes, 2, tmp_path / "alone", executor=Here(threads=1))
    assert [summary.accuracy for summary in again.schemes] == [summary.accuracy for summary in alone.schemes]


def test_one_run_alone_tells_it_in_a_line_too(tmp_path, tiny):
    with pytest.raises(RunFailed, match=r"^ValueError: odd thing x+ \(.*the traceback is in .*/error\.txt; finished"):
        run(tiny, "mine", 0, tmp_path / "out")


def test_a_traceback_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    (tmp_path / "file").touch()
    assert write_error(tmp_path / "file" / "seed-0", "Traceback") == ""


def test_who_is_told_and_is_gone_ends_the_command_and_no_run_is_blamed(tmp_path):
    class Gone(Listener):
        def epoch(self, metrics):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        compare(recipe(), ["standard", "repr"], 1, tmp_path / "out", Gone())
    assert not list((tmp_path / "out").rglob(ERROR))
