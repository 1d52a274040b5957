"""The fixture that counts."""

import pytest
from tests.stress.recording import Trials, keep

PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture
def trials(request):
    """Make a row of the table: ``count = trials("killed", "what was done, and what has to hold", "kills")``."""
    made: list[Trials] = []

    def row(area, what, unit, note=""):
        made.append(Trials(area, what, unit, note))
        return made[-1]

    yield row
    passed = request.node.stash.get(PASSED, False)
    assert not passed or all(one.tried for one in made), "a test that tried nothing has nothing to say"
    long = request.node.get_closest_marker("stress") is not None
    if long and request.config.getoption("--keep-counts"):
        for number, one in enumerate(made, 1):
            if one.tried:
                keep(one, request.node.nodeid, number, passed=passed)
