"""The fixture that counts."""

import pytest
from tests.stress.recording import Trials, keep


@pytest.fixture
def trials(request):
    """Make a row of the table: ``count = trials("killed", "what was done, and what has to hold", "kills")``."""
    made: list[Trials] = []

    def row(area, what, unit, note=""):
        made.append(Trials(area, what, unit, note))
        return made[-1]

    yield row
    long = request.node.get_closest_marker("stress") is not None
    if long and request.config.getoption("--keep-counts"):
        for number, one in enumerate(made, 1):
            keep(one, request.node.nodeid, number)
