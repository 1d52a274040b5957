"""What the documents say of weight decay is what the kept records say."""

from __future__ import annotations

import re
import tarfile
from functools import partial
from statistics import fmean

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.readers import DOCS, ROOT
from tests.tables import keep_comparison, stands_in

PAGE = (DOCS / "replication.md").read_text().splitlines()
README = (ROOT / "README.md").read_text().splitlines()


@pytest.fixture
def program(load):
    return load("weight_decay")


@pytest.fixture
def found(program):
    return [program.find(network) for network in program.NETWORKS]


def test_the_tables_of_the_page_are_those_of_the_records(program, found):
    for table in (program.tested_table(found), *(program.tried_table(each) for each in found)):
        assert stands_in(PAGE, table)


def test_the_readme_says_the_same(program, found):
    rows = [line for line in README if re.search(r"\(\S+\) \| \S+ \[[^|]+\] \(\S+\) \|", line)]
    tested = [each for each in found if each.test]
    assert len(rows) == len(tested)
    for row, each in zip(rows, tested):
        decays = [each.network.tested[scheme].shown for scheme in program.SCHEMES]
        cells = [
            f"{program.shown(program.accuracy(each.test[scheme]))} ({decay})"
            for scheme, decay in zip(program.SCHEMES, decays)
        ]
        assert row == program.line(each.network.name, *cells, program.points(each.difference()))


def test_the_picture_in_the_documents_is_of_these_numbers(program, found):
    with Image.open(DOCS / "images" / "weight-decay.png") as picture:
        said = picture.text["Description"].splitlines()
    tested = list(program.tested_table(found))
    assert said[: len(tested)] == tested
    for each in found:
        table = list(program.tried_table(each))
        start = said.index(table[0])
        assert said[start : start + len(table)] == table


def test_every_point_of_the_picture_is_a_mean(program, found):
    for axes, each in zip(program.picture(found).axes, found):
        lines = [line for line in axes.lines if line.get_label() in program.SCHEMES.values()]
        assert [line.get_label() for line in lines] == list(program.SCHEMES.values())
        for scheme, line in zip(program.SCHEMES, lines):
            tried = each.validation[scheme]
            wanted = sorted(
                (float(decay) or program.NONE, program.accuracy(seeds).mean) for decay, seeds in tried.items()
            )
            assert [tuple(point) for point in line.get_xydata()] == wanted
            low, high = axes.get_xlim()
            assert all(low < place < high for place, _ in wanted)


def decays(archive, network):
    """The scheme, the weight decay and the judge of every run, as its own recipe has it; of the two that count."""
    with tarfile.open(archive) as runs:
        members = [member for member in runs.getmembers() if member.name.endswith("recipe.yaml")]
        recipes = [(member.name.split("/")[0], yaml.safe_load(runs.extractfile(member))) for member in members]
    return {
        (network.names[name], decay_of(recipe), recipe["data"]["judge"])
        for name, recipe in recipes
        if name in network.names
    }


def decay_of(recipe):
    """The scheme may give another one than the optimizer's section."""
    scheme = recipe["scheme"]
    parts = scheme.get("parts", {scheme["name"]: scheme})
    return float(parts.get("weight-decay", {}).get("value", recipe["optim"]["weight_decay"]))


def test_the_runs_had_the_weight_decay_that_their_folders_name(program, found):
    for each in found:
        network = each.network
        tried = {(scheme, decay) for scheme, seeds in each.validation.items() for decay in seeds}
        for decay, folder in network.folders(program.RESULTS):
            runs = decays(folder / "runs.tar.xz", network)
            assert {found[1:] for found in runs} == {(float(decay), "validation")}
            tried -= {(scheme, decay) for scheme, *_ in runs}
        assert tried == {("standard", network.usual), ("repr", network.usual)}
        for scheme, tested in network.tested.items():
            runs = decays(program.RESULTS / tested.folder / "runs.tar.xz", network)
            assert {found[1:] for found in runs if found[0] == scheme} == {(float(tested.decay), "test")}
        archive = program.RESULTS / network.without / "runs.tar.xz"
        assert {found[1:] for found in decays(archive, network)} == {(float(network.usual), "test")}


@pytest.fixture
def made(program, tmp_path):
    """A network of which 1e-2 was best for standard training, and nothing for RePr; and its folder."""
    without = {"standard": {0: 0.5, 1: 0.5, 2: 0.5}, "repr": {0: 0.75, 1: 0.75, 2: 0.75}}
    keep_comparison(tmp_path / "without", without, ("test", "validation"))
    first = {"standard": {0: 0.5}, "repr": {0: 0.625}}
    keep_comparison(tmp_path / "step" / "x-1e-3", first, ("validation",))
    keep_comparison(tmp_path / "step" / "x-1e-2", {"standard": {0: 0.75}}, ("validation",))
    keep_comparison(tmp_path / "tested", {"standard": {1: 0.5, 0: 0.625, 2: 0.75}})
    tested = {"standard": program.Tested("1e-2", "tested"), "repr": program.Tested("0", "without")}
    return program.Network("net", "without", "step/x-", tested), tmp_path


def test_what_was_tried_and_tested_is_put_together(program, made):
    network, folder = made
    found = program.find(network, folder)
    assert found.validation == {
        "standard": {"0": {0: (50.0, 100.0, 2.0)}, "1e-3": {0: (50.0, 100.0, 2.0)}, "1e-2": {0: (75.0, 100.0, 2.0)}},
        "repr": {"0": {0: (75.0, 100.0, 2.0)}, "1e-3": {0: (62.5, 100.0, 2.0)}},
    }
    assert found.difference().mean == 12.5
    assert list(program.tried_table(found))[2:] == [
        "| 0 | 50.0, knows 100.0 % | **75.0**, knows 100.0 % |",
        "| 1e-3 | 50.0, knows 100.0 % | 62.5, knows 100.0 % |",
        "| 1e-2 | **75.0**, knows 100.0 % |  |",
    ]
    assert list(program.tested_table([found]))[2].startswith(
        "| net | 3 | 50.00 | 62.50 [31.45, 93.55] (1e-2) | 75.00 (none) | +12.50 ["
    )
    assert list(program.tested_table([found]))[2].endswith("] | +12.50 [-18.55, +43.55] |  |")


def test_of_equal_decays_the_smaller_one_is_the_best_whatever_the_rounding(program, load):
    tried = {"2.5e-2": (0.6054, 0.5960), "2e-2": (0.5992, 0.6022)}  # as many right ones of 10,000
    run = partial(load("replication").Run, train=100.0, seconds=1.0)
    runs = {decay: {seed: run(100 * share) for seed, share in enumerate(shares)} for decay, shares in tried.items()}
    assert program.Found(program.NETWORKS[0], {"standard": runs}, {}, {}).best("standard") == "2e-2"


def test_a_test_of_another_decay_than_the_best_is_refused(program, made):
    network, folder = made
    worse = {**network.tested, "standard": program.Tested("1e-3", "tested")}
    with pytest.raises(ValueError, match=r"^net: tested is of 1e-3; best for standard was 1e-2$"):
        program.find(program.Network(network.name, network.without, network.tried, worse), folder)


def test_a_test_with_other_seeds_is_refused(program, made):
    network, folder = made
    keep_comparison(folder / "few", {"standard": {1: 0.5}})
    fewer = {**network.tested, "standard": program.Tested("1e-2", "few")}
    with pytest.raises(ValueError, match=r"^net: few has other seeds than without: \[1\]$"):
        program.find(program.Network(network.name, network.without, network.tried, fewer), folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the module is the same for all examples
@given(values=st.lists(st.tuples(st.floats(10, 90), st.floats(10, 90)), min_size=2, max_size=6), order=st.randoms())
def test_differences_are_paired_by_seed(load, values, order):
    replication = load("replication")

    def shuffled(which):
        runs = [(seed, replication.Run(pair[which], 100.0, 1.0)) for seed, pair in enumerate(values)]
        return dict(order.sample(runs, len(runs)))

    found = replication.paired(shuffled(0), shuffled(1))
    assert found.mean == pytest.approx(fmean(ours - theirs for ours, theirs in values), abs=1e-9)
