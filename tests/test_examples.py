from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
