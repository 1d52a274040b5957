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
COMPARE = next(command for command in COMMANDS if command.startswith("compare"))


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


@pytest.fixture
def garden(tmp_path):
    for name, text in FILES:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def results(runs):
    found = sorted((runs / "mine").glob("*/seed-*/result.json"))
    return {path.parts[-3:-1]: json.loads(path.read_text()) for path in found}


def test_it_is_compared_from_another_folder_and_goes_on_where_it_was_killed(garden):
    (garden / "elsewhere").mkdir()
    command = COMPARE.replace("mine.yaml", "../mine/mine.yaml")
    process = reaper(f"{command} --out whole", garden / "elsewhere", start_new_session=True)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert errors == ""
    whole = results(garden / "elsewhere" / "whole")
    assert set(whole) == {(scheme, f"seed-{seed}") for scheme in ("standard", "repr") for seed in (0, 1)}
    assert re.search(r"repr .*standard|standard(.|\n)*repr", out)
    assert json.loads((garden / "elsewhere" / "whole" / "mine" / "comparison.json").read_text())["contrasts"]

    process = reaper(f"{command} --out cut", garden / "elsewhere", start_new_session=True)
    run = garden / "elsewhere" / "cut" / "mine" / "standard" / "seed-0"
    end = time.monotonic() + 100
    while len(read_metrics(run)) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert results(garden / "elsewhere" / "cut") != whole
    done(f"{command} --out cut", garden / "elsewhere")
    cut = results(garden / "elsewhere" / "cut")
    assert {key: one["fingerprint"] for key, one in cut.items()} == {
        key: one["fingerprint"] for key, one in whole.items()
    }


def test_the_other_commands_find_the_package_too(garden):
    folder = garden / "mine"
    done(COMPARE.replace("--seeds 2", "--seeds 1"), folder)
    assert "features.3" in done(next(c for c in COMMANDS if c.startswith("inspect")), folder)
    out = done(next(c for c in COMMANDS if c.startswith("analyze")) + " --last-only", folder)
    assert "features.3" in out


def test_sections_in_the_page_are_valid():
    whole = yaml.safe_load(dict(FILES)["mine.yaml"])
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        Recipe.model_validate({**whole, **yaml.safe_load(block)})
