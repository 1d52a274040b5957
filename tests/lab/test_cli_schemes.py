"""`reaper schemes`: the list, and one scheme's options as they stand in a recipe."""

import pytest
import yaml
from typer.testing import CliRunner

from torchreaper.lab import cli
from torchreaper.lab.schemes import SCHEMES, parse


def reaper(*args):
    return CliRunner().invoke(cli.app, ["schemes", *args], prog_name="reaper")


def test_every_scheme_is_in_the_list_with_what_it_does():
    done = reaper()
    assert done.exit_code == 0
    for key, spec in SCHEMES.items():
        (line,) = [line for line in done.output.splitlines() if line.split()[:1] == [key]]
        assert spec.summary in line
        assert spec.source in line


@pytest.mark.parametrize("name", SCHEMES)
def test_the_options_shown_are_those_of_a_recipe(name):
    done = reaper(name)
    assert done.exit_code == 0
    assert SCHEMES[name].summary in done.output
    _, heading, options = done.output.partition("as they stand in a recipe:\n")
    assert bool(heading) == (len(SCHEMES[name].model_fields) > 1)
    assert parse({"name": name, **(yaml.safe_load(options) or {})}) == parse({"name": name})


OWN = """
from typing import Literal

from pydantic import Field

from torchreaper.lab.schemes import Attached, Spec


class PullSpec(Spec):
    \"\"\"Pulls. `strength`: how hard.\"\"\"

    name: Literal["pull"] = "pull"
    strength: float = Field(default=0.25, ge=0)

    def attach(self, setup):
        return Attached()


class NeedySpec(PullSpec):
    name: Literal["needy"] = "needy"
    layers: list[str]


class BareSpec(Spec):
    name: str
"""


def test_ones_own_is_shown_too(tmp_path, monkeypatch):
    (tmp_path / "shown_pulling.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    needy = reaper("shown_pulling:NeedySpec")
    assert needy.output.endswith("below options:\nlayers:  # must be given\nstrength: 0.25\n")
    done = reaper("shown_pulling:PullSpec")
    assert done.exit_code == 0, done.stderr
    assert "Pulls. `strength`: how hard." in done.output
    assert done.output.endswith("as they stand in a recipe, below options:\nstrength: 0.25\n")
    assert reaper("shown_pulling:BareSpec").exit_code == 0

    done = reaper("shown_pulling:Field")
    assert done.exit_code == 2
    assert done.stderr == "error: scheme='shown_pulling:Field': must be a subclass of torchreaper.lab.schemes.Spec\n"


def test_a_misspelt_one_is_guessed():
    done = reaper("graftin")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: scheme='graftin': unknown scheme; did you mean 'grafting'?")
