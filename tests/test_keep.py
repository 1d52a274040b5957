"""What ``benchmarks/keep.py`` keeps of a comparison."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import tiny
from torchreaper.lab.compare import compare
from torchreaper.lab.progress import NullProgress

ROOT = Path(__file__).parents[1]


def keep(*arguments) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "keep.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class NoneTrained(NullProgress):
    def epoch(self, metrics):
        pytest.fail("a run was trained again")


def test_packed_runs_are_finished_runs_again(tmp_path):
    scheme = {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "fraction": 0.4}
    recipe = tiny.recipe(scheme=scheme, epochs=3, seeds=2)
    found = compare(recipe, ("standard", "repr"), 2, tmp_path / "first")
    assert "| repr | 2 |" in keep(tmp_path / "first" / "tiny", tmp_path / "kept", "--archive")
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".md", ".json", ".csv", ".xz"}
    (tmp_path / "second" / "tiny").mkdir(parents=True)
    subprocess.run(["tar", "-xf", tmp_path / "kept" / "runs.tar.xz", "-C", tmp_path / "second" / "tiny"], check=True)
    again = compare(recipe, ("standard", "repr"), 2, tmp_path / "second", NoneTrained())
    assert again.schemes == found.schemes


def test_the_same_runs_make_the_same_archive_whatever_a_scheme_is_called(tmp_path):
    recipe = tiny.recipe(scheme={"name": "longer"}, schemes={"half-0.5": {"name": "shorter"}}, epochs=2, seeds=1)
    compare(recipe, ("half-0.5",), 1, tmp_path)
    for name in ("one", "two"):
        for path in (tmp_path / "tiny").rglob("*"):
            path.touch()
        keep(tmp_path / "tiny", tmp_path / name, "--archive")
    keep(tmp_path / "tiny", tmp_path / "plain")
    assert (tmp_path / "plain" / "half-0.5" / "seed-0" / "result.json").exists()
    assert (tmp_path / "one" / "runs.tar.xz").read_bytes() == (tmp_path / "two" / "runs.tar.xz").read_bytes()


def test_without_a_finished_run_nothing_is_written(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "comparison.json").write_text("{}")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        keep(tmp_path / "tiny", tmp_path / "kept")
    assert "tiny: no run of it has finished" in caught.value.stderr
    assert not (tmp_path / "kept").exists()
