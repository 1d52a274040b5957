"""What ``benchmarks/keep.py`` keeps of a comparison."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import tiny
from torchreaper.lab.compare import compare
from torchreaper.lab.recipe import load_recipe

ROOT = Path(__file__).parents[1]


def test_an_investigations_step_is_kept_as_its_curves(tmp_path):
    scheme = {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "fraction": 0.4}
    found = compare(tiny.recipe(scheme=scheme, epochs=3, seeds=2), ("standard", "repr"), 2, tmp_path)
    command = [sys.executable, ROOT / "benchmarks" / "keep.py", tmp_path / "tiny", tmp_path / "kept", "--curves"]
    printed = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    assert "| repr | 2 |" in printed
    kept = tmp_path / "kept"
    with (kept / "curves.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(one["scheme"], one["seed"], one["epoch"]) for one in lines] == [
        (scheme, seed, epoch) for scheme in ("repr", "standard") for seed in "01" for epoch in "123"
    ]
    assert {one["phase"] for one in lines if one["scheme"] == "repr" and one["epoch"] == "2"} == {"sub"}
    last = [float(one["test_accuracy"]) for one in lines if one["scheme"] == "repr" and one["epoch"] == "3"]
    assert 100 * sum(last) / 2 == pytest.approx(found.schemes[1].accuracy.mean, abs=1e-3)
    with (kept / "drops.csv").open() as file:
        assert [(one["layer"], one["filters"], one["dropped"]) for one in csv.DictReader(file)] == 2 * [
            ("conv2", "6", "2")
        ]
    assert load_recipe(kept / "recipe.yaml").seeds == 2
    assert not list(kept.rglob("*.pt"))
