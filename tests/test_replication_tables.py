"""The tables of the replication are what the kept records say, wherever they stand."""

from __future__ import annotations

import math
import re
from statistics import stdev

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.readers import DOCS, ROOT
from tests.tables import keep_comparison, stands_in

README = (ROOT / "README.md").read_text()
accuracies = st.floats(10, 90)


@pytest.fixture
def program(load):
    return load("replication")


@pytest.fixture
def rows(program):
    return [program.find(row) for row in program.ROWS]


def test_the_tables_of_the_page_are_those_of_the_records(program, rows):
    page = (DOCS / "replication.md").read_text().splitlines()
    for table in (program.accuracy_table(rows), program.difference_table(rows)):
        assert stands_in(page, table)


def test_the_readme_says_the_same_in_the_same_order(program, rows):
    """Its rows have names of their own, for readers who see no other table."""
    found = re.findall(r"^\| [^|]+ \| (\S+ \[[^|]+\]) \| (\S+ \[[^|]+) \| (\S+ \[[^|]+) \|$", README, re.MULTILINE)
    schemes = ("repr", "shorter")
    assert found == [
        (
            program.shown(row.accuracy("standard")),
            *(program.points(row.minus(scheme, "standard")) for scheme in schemes),
        )
        for row in rows
    ]


def test_the_picture_in_the_documents_is_of_these_numbers(program, rows):
    with Image.open(DOCS / "images" / "replication.png") as picture:
        assert picture.text["Description"].splitlines() == list(program.difference_table(rows))


def test_every_mark_of_the_picture_stands_at_its_row(program, rows):
    (axes,) = program.picture(rows).axes
    for scheme, marks in zip(program.COMPARED, axes.containers):
        there = [(index, row.minus(scheme, "standard")) for index, row in enumerate(rows)]
        drawn = [(round(y), x) for x, y in marks.lines[0].get_xydata()]
        assert drawn == [(index, difference.mean) for index, difference in there if difference is not None]


def test_it_prints_the_tables_and_draws_the_picture(program, tmp_path, capsys):
    program.main(["--picture", str(tmp_path / "new" / "picture.png")])
    printed = capsys.readouterr().out
    assert printed.count("\n| C3(32), 10,000 images |") == 2
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picture.jpg", "picture.jpg: must be a file that ends in .png"),
        ("file/picture.png", "file/picture.png: File exists; choose another place"),
    ],
)
def test_a_picture_that_cannot_be_is_refused_in_one_line(program, tmp_path, capsys, name, message):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        program.main(["--picture", str(tmp_path / name)])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"argument --picture: {tmp_path}/{message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def keep(folder, **families):
    """Families of results; ``families[name][scheme][seed]`` is a share."""
    for name, schemes in families.items():
        keep_comparison(folder / name, schemes)


def test_families_of_one_row_are_put_together(program, tmp_path):
    standard = {0: 0.25, 1: 0.5}
    keep(
        tmp_path,
        a={"standard": standard, "repr": {0: 0.5, 1: 0.75}},
        b={"standard": standard, "repr-random": {1: 1.0, 0: 0.5}},
    )
    found = program.find(program.Row("row", ("a", "b")), tmp_path)
    assert {scheme: found.accuracy(scheme).mean for scheme in found.runs} == {
        "standard": 37.5,
        "repr": 62.5,
        "random ranking": 75.0,
    }
    assert found.best() == "random ranking"
    assert found.time("repr") == 1.0
    assert found.time("shorter") is None
    assert found.minus("shorter", "standard") is None


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"standard": {0: 0.25, 1: 0.75}}, "row: standard has other numbers in b than in a family before it"),
        ({"standard": {0: 0.25, 1: 0.5}, "repr": {0: 0.5}}, r"row: repr has other seeds in b than standard: \[0\]"),
    ],
)
def test_families_that_do_not_fit_together_are_refused(program, tmp_path, second, message):
    keep(tmp_path, a={"standard": {0: 0.25, 1: 0.5}}, b=second)
    with pytest.raises(ValueError, match=message):
        program.find(program.Row("row", ("a", "b")), tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the module is the same for all examples
@given(pairs=st.dictionaries(st.integers(0, 9), st.tuples(accuracies, accuracies), min_size=1), order=st.randoms())
def test_differences_are_paired_by_seed_in_whatever_order_the_runs_stand(program, pairs, order):
    def runs(which):
        seeds = order.sample(sorted(pairs), len(pairs))
        return {seed: program.Run(pairs[seed][which], 100.0, 1.0) for seed in seeds}

    found = program.Found(program.Row("row", ()), {"standard": runs(0), "repr": runs(1)})
    difference = found.minus("repr", "standard")
    wanted = [ours - theirs for theirs, ours in pairs.values()]
    assert difference.n == len(wanted)
    assert math.isclose(difference.mean, sum(wanted) / len(wanted), abs_tol=1e-9)
    if len(wanted) > 1:
        assert math.isclose(difference.sd, stdev(wanted), abs_tol=1e-6)
    assert math.isclose(found.minus("standard", "repr").mean, -difference.mean, abs_tol=1e-9)
