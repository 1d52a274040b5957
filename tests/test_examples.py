from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_plain_loop():
    """The three lines in an ordinary loop: it learns, and it goes through two sub-network phases."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/plain.py", "--epochs", "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    epochs = re.findall(r"epoch +(\d+)  (full|sub ) +test accuracy ([\d.]+) %", done.stdout)
    assert [int(epoch) for epoch, _, _ in epochs] == list(range(1, 21))
    assert [int(epoch) for epoch, phase, _ in epochs if phase == "sub "] == [5, 6, 11, 12]
    assert float(epochs[-1][2]) > 80
    source = (ROOT / "examples" / "plain.py").read_text().splitlines()
    assert len(source) < 60


def test_the_plain_loop_has_an_epoch_after_its_cycles():
    done = subprocess.run(
        [sys.executable, "examples/plain.py", "--epochs", "6"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "argument --epochs: 6: two cycles take 6, and training goes on after them; give 7 or more" in done.stderr


@pytest.mark.parametrize("name", ["timeseries", "segmentation"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--scope", "body"], "argument --scope: has no effect without --repr; give both"),
        (["--repr", "--width", "0"], "argument --width: 0: must be 1 or more"),
    ],
)
def test_the_other_examples_say_what_is_wrong(name, options, text):
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert text in done.stderr
