"""examples/detection.py as a user runs it: on COCO's files, with the small detector, and with what is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.data.boxes.conftest import coco  # noqa: F401

EXAMPLE = Path(__file__).parents[1] / "examples" / "detection.py"


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_it_trains_with_repr_on_the_backbone_alone(coco, tmp_path):  # noqa: F811
    pytest.importorskip("pycocotools")
    files = coco()
    where = [f"--{key.replace('_', '-')}={files[key]}" for key in ("train", "train_images", "test", "test_images")]
    how = ["--model", "detector", "--size", "32", "32", "--batch", "5", "--epochs", "4", "--lr", "0.002"]
    asked = ["--repr", "--scope", "backbone", "--full", "1", "--sub", "1", "--cycles", "1"]
    done = run(*where, *how, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "10 photographs to train on, 4 to be judged by" in done.stdout
    assert re.search(r"^neck\.merge1\.conv1 +48 .* no .*outside scope$", done.stdout, re.M)
    lines = re.findall(
        r"^epoch (\d): (full|sub), loss [\d.]+, mAP ([\d.]+), AP50 [\d.]+, AP75 [\d.]+", done.stdout, re.M
    )
    assert [phase for _, phase, _ in lines] == ["full", "sub", "full", "full"]
    assert all(0 <= float(score) <= 100 for _, _, score in lines)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "detector"], "error: train: is missing; name='coco' needs it"),
        (["--hub", "x", "--test", "y", "--size", "0", "9"], "error: size"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, arguments, text):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(text)
    assert len(done.stderr.strip().splitlines()) == 1
