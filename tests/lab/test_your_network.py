"""A small package of the user's own, as docs/your-network.md makes it, through the real command line."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import read_metrics

PAGE = (Path(__file__).parents[2] / "docs" / "your-network.md").read_text()
FILES = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ reaper (.*)$", PAGE, re.MULTILINE)
COMPARE = next(command for command in COMMANDS if command.startswith("compare")).replace(
    "mine.yaml", "../mine/mine.yaml"
)


def reaper(command, folder, **how):
    script = "from torchreaper.lab.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *shlex.split(command)], cwd=folder, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
    )  # fmt: skip


def done(command, folder):
    process = reaper(command, folder)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder beside the recipe's; the comparison has been run from there, into `whole`."""
    root = tmp_path_factory.mktemp("garden")
    for name, text in FILES:
        path = root / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "elsewhere").mkdir()
    assert "standard" in done(f"{COMPARE} --out whole", root / "elsewhere")
    return root / "elsewhere"


def results(runs):
    found = sorted((runs / "mine").glob("*/seed-*/result.json"))
    return {path.parts[-3:-1]: json.loads(path.read_text())["fingerprint"] for path in found}


def test_it_is_compared(elsewhere):
    whole = results(elsewhere / "whole")
    assert set(whole) == {(scheme, f"seed-{seed}") for scheme in ("standard", "repr") for seed in (0, 1)}
    assert len(set(whole.values())) == 4
    comparison = json.loads((elsewhere / "whole" / "mine" / "comparison.json").read_text())
    assert [one["scheme"] for one in comparison["contrasts"]] == ["repr"]


@pytest.mark.slow  # tests/stress/test_killed_train.py kills runs in `make test`
def test_it_goes_on_where_it_was_killed_to_the_same_bits(elsewhere):
    process = reaper(f"{COMPARE} --out cut", elsewhere, start_new_session=True)
    run = elsewhere / "cut" / "mine" / "standard" / "seed-0"
    end = time.monotonic() + 100
    while len(read_metrics(run)) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(results(elsewhere / "cut")) < 4
    done(f"{COMPARE} --out cut", elsewhere)
    assert results(elsewhere / "cut") == results(elsewhere / "whole")


@pytest.mark.slow  # `make test` finds it by compare
def test_the_other_commands_find_the_package_too(elsewhere):
    commands = {command.split()[0]: command for command in COMMANDS}
    assert "features.3" in done(commands["inspect"].replace("mine.yaml", "../mine/mine.yaml"), elsewhere)
    assert "features.3" in done(commands["analyze"].replace("runs/mine", "whole/mine --last-only"), elsewhere)


def test_sections_in_the_page_are_valid():
    whole = yaml.safe_load(dict(FILES)["mine.yaml"])
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        Recipe.model_validate({**whole, **yaml.safe_load(block)})
