"""The tables of the replication are what the kept records say, wherever they stand."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.readers import DOCS, ROOT

accuracies = st.dictionaries(st.integers(0, 5), st.floats(10, 90))


@pytest.fixture
def program(load):
    return load("replication")


def test_the_tables_of_the_page_are_those_of_the_records(program):
    page = (DOCS / "replication.md").read_text().splitlines()
    rows = [program.find(row) for row in program.ROWS]
    for table in (list(program.reached(rows)), list(program.worth(rows))):
        start = page.index(table[0])
        assert page[start : start + len(table) + 1] == [*table, ""]


def test_the_readme_says_the_same(program):
    readme = (ROOT / "README.md").read_text()
    for row in program.ROWS:
        found = program.find(row)
        differences = [found.minus(scheme, "standard") for scheme in ("repr", "shorter")]
        cells = (program.number(found.accuracy("standard")), *map(program.points, differences))
        assert f" | {' | '.join(cells)} |\n" in readme, row.name


def test_it_prints_the_tables_and_draws_the_picture(program, tmp_path, capsys):
    program.main(["--picture", str(tmp_path / "new" / "picture.png")])
    printed = capsys.readouterr().out
    assert printed.count("\n| C3(32), 10,000 images |") == 2
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_scheme_in_several_families_the_first_counts(program, tmp_path):
    for name, schemes in {"first": {"repr": 0.5}, "second": {"repr": 0.6, "repr-random": 0.7}}.items():
        (tmp_path / name).mkdir()
        lines = [f"{scheme},3,{share},1.0,2.0" for scheme, share in schemes.items()]
        heads = "scheme,seed,test_accuracy,train_accuracy,seconds"
        (tmp_path / name / "comparison.csv").write_text("\n".join([heads, *lines]))
    found = program.find(program.Row("row", ("first", "second")), tmp_path)
    assert {scheme: runs[3].test for scheme, runs in found.runs.items()} == {"repr": 50.0, "random ranking": 70.0}
    assert found.best() == "random ranking"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the module is the same for all examples
@given(ours=accuracies, theirs=accuracies)
def test_differences_are_paired_by_the_seeds_that_both_have(program, ours, theirs):
    schemes = {"repr": ours, "standard": theirs}
    runs = {name: {seed: program.Run(test, 100.0, 1.0) for seed, test in of.items()} for name, of in schemes.items()}
    found = program.Found(program.Row("row", ()), runs)
    both = ours.keys() & theirs.keys()
    difference = found.minus("repr", "standard")
    assert (difference is None) == (not both)
    assert (program.points(difference) == "") == (not both)
    if both:
        assert difference.n == len(both)
        assert math.isclose(difference.mean, sum(ours[s] - theirs[s] for s in both) / len(both), abs_tol=1e-9)
        assert math.isclose(found.minus("standard", "repr").mean, -difference.mean, abs_tol=1e-9)
