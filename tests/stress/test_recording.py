"""The table of docs/reliability.md says what was counted, by tests that are there."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from tests.stress import recording
from tests.stress.recording import PAGE, ROOT, Trials, kept, page, table

COUNTING = """
import pytest
from tests.stress.recording import lengths

@lengths(2, 5)
def test_that_counts(times, trials):
    first = trials("faults", "one | two", "faults")
    second = trials("numbers", "every second one holds", "numbers", "why")
    for number in range(times):
        with first.one():
            pass
        second.add(number % 2 == 0)

@lengths(1, 1)
def test_that_fails_at_last(times, trials):
    trials("killed", "held and then not", "kills").add(True)
    assert times > 1

@lengths(1, 1)
def test_that_tries_nothing(times, trials):
    trials("killed", "nothing", "kills")
"""


def test_the_page_has_the_table_of_what_was_kept():
    text = PAGE.read_text()
    assert page(text, kept()) == text, "run: python -m tests.stress.recording"


@pytest.mark.parametrize("row", kept(), ids=lambda row: row["test"])
def test_what_was_counted_is_still_tested(row):
    path, _, name = row["test"].partition("::")
    assert re.search(rf"^def {name.partition('[')[0]}\(", (ROOT / path).read_text(), re.MULTILINE)
    assert row["tried"] > 0


def counted(tmp_path, *options):
    """Run the counting test in a process of its own, its rows kept below `tmp_path`."""
    (tmp_path / "tests" / "stress").mkdir(parents=True)
    test = tmp_path / "tests" / "stress" / "test_counting.py"
    test.write_text(COUNTING)
    rows = f"Path({str(tmp_path / 'rows')!r})"
    own = f"from pathlib import Path\nfrom tests.stress import recording\nrecording.RESULTS = {rows}"
    (test.parent / "conftest.py").write_text(
        f"{own}\nfrom tests.stress.conftest import pytest_runtest_makereport, trials\n\n"
        "def pytest_addoption(parser):\n    parser.addoption('--keep-counts', action='store_true')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(test)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=120)
    # Each test twice: one fails at last, one has tried nothing, which is told when it is left.
    assert all(part in done.stdout for part in ("2 failed", "2 errors", "4 passed")), done.stdout + done.stderr
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "rows").glob("*"))]


def test_only_the_long_form_keeps_its_counts(tmp_path):
    rows = counted(tmp_path, "--keep-counts")
    assert [(row["tried"], row["held"], row["passed"]) for row in rows] == [(5, 5, True), (5, 3, True), (1, 1, False)]
    assert [recording.held_all(row) for row in rows] == [True, False, False]
    assert {row["test"] for row in rows[:2]} == {"tests/stress/test_counting.py::test_that_counts[long]"}


def test_a_row_that_did_not_hold_is_seen_in_the_table_and_ends_make_stress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording, "RESULTS", tmp_path / "rows")
    monkeypatch.setattr(recording, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(
        "before\n<!-- made by make stress: begin --><!-- made by make stress: end -->\nafter\n"
    )
    good, bad = Trials("numbers", "a", "steps"), Trials("killed", "b", "kills", "one did not")
    for one in (good, bad):
        one.add(True)
        recording.keep(one, f"tests/stress/test_x.py::test_{one.what}[long]", 1, passed=True)
    assert recording.main() == 0
    bad.add(False)
    recording.keep(bad, "tests/stress/test_x.py::test_b[long]", 1, passed=True)
    assert recording.main() == 1
    assert "did not hold: b (tests/stress/test_x.py::test_b[long])" in capsys.readouterr().out
    text = (tmp_path / "page.md").read_text()
    assert (
        "| killed | b | 2 kills | **1**, not all that it had to | one did not |\n| numbers | a | 1 steps | all |  |\n"
        in text
    )
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")


def test_an_area_is_one_of_those_named():
    with pytest.raises(AssertionError, match="elsewhere"):
        Trials("elsewhere", "what", "unit")


def test_cells_cannot_break_the_table():
    rows = [Trials("faults", "one | two\nthree", "faults").row("test", passed=True) | {"tried": 1, "held": 1}]
    assert r"one \| two three" in table(rows)
