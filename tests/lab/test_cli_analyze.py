"""The command `reaper analyze`: what it prints, where it writes, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tests.lab.tiny import TINY
from typer.testing import CliRunner

from torchreaper.lab import cli
from torchreaper.lab.models import build_callable

pytestmark = pytest.mark.usefixtures("one_thread")
FAST = ("--criteria", "magnitude", "--images", 60, "--split", "test", "--last-only")
TABLES = ["analysis.md", "analysis.json", "filters.csv", "layers.csv", "agreement.csv", "cca.csv"]
PICTURES = ["oracle", "overlap", "cca", "first-layer", "criteria", "agreement"]


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The current folder: a copy of the trained runs, a recipe, and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/tiny")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "profiles": {"quick": {"seeds": 1}}}))
    shutil.copy("runs/tiny/repr/seed-0/last.pt", "model.pt")
    return tmp_path


def reaper(*args):
    return CliRunner().invoke(cli.app, ["analyze", *(str(arg) for arg in args)], prog_name="reaper")


def refused(done, message, folder):
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.match(rf"error: {message}", done.stderr), done.stderr
    assert not list(folder.rglob("*analysis*"))


def files(folder, *more):
    return [f"{folder}/{name}" for name in [*TABLES, *(f"{name}.png" for name in [*PICTURES, *more])]]


# --- what works


def test_help_shows_examples_options_and_defaults():
    text = " ".join(reaper("--help").output.split())
    for example in (
        "reaper analyze runs/demo/repr/seed-0",
        "reaper analyze runs/demo --images 500",
        "reaper analyze model.pt --recipe recipes/demo.yaml",
        "reaper analyze model.pt --recipe data.yaml --model mynets.small:make --option width=32",
    ):
        assert example in text.split("Examples:")[1]
    for part in ("--last-only", "[default: 1000; x>=1]", "[default: (all)]", "[default: (up to 4 of all)]"):
        assert part in text
    assert "analyze" in CliRunner().invoke(cli.app, ["--help"]).output


def test_a_run_gives_tables_figures_and_their_paths(here):
    done = reaper("runs/tiny/repr/seed-0", *FAST)
    assert (done.exit_code, done.stderr) == (0, "repr/seed-0: filters left out: 12 of 12\n"), done.output
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert re.fullmatch(r"repr/seed-0: [\d.]+ % of 60 test images right", lines.pop(0))
    assert lines[0].split()[:3] == ["criterion", "n", "filters"]
    assert lines[2].split()[:3] == ["magnitude", "1", "12"]
    assert [line.split()[0] for line in lines[5:7]] == ["conv1", "conv2"]
    expected = files("runs/tiny/repr/seed-0/analysis", "overlap-over-time")
    assert lines[7:] == expected
    assert all(Path(path).stat().st_size for path in expected)
    assert sorted(os.listdir("runs/tiny/repr/seed-0/analysis")) == sorted(Path(path).name for path in expected)


def test_quiet_prints_paths_alone(here):
    done = reaper("runs/tiny/repr/seed-0", *FAST, "--quiet", "--out", "there/new")
    assert done.output.splitlines() == files("there/new", "overlap-over-time")


@pytest.fixture
def undrawn(monkeypatch):
    """No figures: they take longest."""
    monkeypatch.setattr("torchreaper.lab.report.analysed.draw_analysis", lambda found, folder: [])


def test_the_default_folder_is_beside_what_was_named(here, undrawn):
    plain = ("--quiet", *FAST)
    one = reaper("model.pt", "--recipe", "tiny.yaml", *plain)
    assert one.stdout.splitlines() == [f"model-analysis/{name}" for name in TABLES]
    two = reaper("runs/tiny/repr/seed-0", "runs/tiny/standard/seed-0", *plain)
    assert two.stdout.splitlines()[0] == str(here / "runs/tiny/analysis/analysis.md")


def test_all_schemes_and_seeds_of_a_recipe_stand_side_by_side(here):
    done = reaper("runs/tiny", "--criteria", "magnitude,random", "--images", 60, "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        f"note: repr, seed {seed}: 2 snapshots of sub-network phases are left out" for seed in (0, 1)
    ]
    names = [Path(path).name for path in done.stdout.splitlines()]
    assert {"agreement-over-time-standard.png", "agreement-over-time-repr.png", "overlap-over-time.png"} <= set(names)
    found = json.loads(Path("runs/tiny/analysis/analysis.json").read_text())
    assert [(one["network"], one["seed"]) for one in found["networks"]] == [
        ("standard", 0), ("standard", 1), ("repr", 0), ("repr", 1)
    ]  # fmt: skip
    assert {one["split"] for one in found["networks"]} == {"validation"}


def test_a_checkpoint_gives_the_numbers_of_its_run(here, undrawn):
    reaper("runs/tiny/repr/seed-0", *FAST, "--out", "run")
    done = reaper("model.pt", "--recipe", "tiny.yaml", "--profile", "quick", "--set", "eval_batch=50", *FAST,
                  "--out", "file")  # fmt: skip
    assert done.exit_code == 0, done.output
    run, file = (json.loads(Path(out, "analysis.json").read_text())["networks"][0] for out in ("run", "file"))
    for key in ("accuracy_lost", "overlap", "scores"):
        assert run[key] == file[key]
    assert (file["network"], file["epoch"], file["times_dropped"]) == ("model", None, {})


def test_a_second_run_overwrites_the_first(here):
    command = ("runs/tiny/repr/seed-0", *FAST, "--quiet")
    reaper(*command)
    folder = Path("runs/tiny/repr/seed-0/analysis")
    for path in folder.iterdir():
        path.write_text("old")
    assert reaper(*command, "--seed", 1, "--threads", 1).exit_code == 0
    assert not [path for path in folder.iterdir() if path.read_bytes() == b"old"]
    assert json.loads((folder / "analysis.json").read_text())["settings"]["seed"] == 1


CASES = {
    "Untraceable": ([], {}),
    "make": (["--option", "width=6", "--option", "norm=false"], {"width": 6, "norm": False}),
    "narrow": ([], {}),
    "Row": ([], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_ones_own_from_beginning_to_end(here, mine, name):
    given, options = CASES[name]
    torch.save(build_callable(f"mynets.nets:{name}", options).state_dict(), "own.pt")
    criteria = ("--criteria", "magnitude,apoz,taylor", "--images", 60, "--split", "test")
    done = reaper("own.pt", "--recipe", "tiny.yaml", "--model", f"mynets.nets:{name}", *given, *criteria)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-len(files("x")) :] == files("own-analysis")
    (network,) = json.loads(Path("own-analysis/analysis.json").read_text())["networks"]
    assert set(network["scores"]) == {"magnitude", "apoz", "taylor"}


def test_without_norms_the_scale_of_norms_is_left_out_with_a_note(here, mine, undrawn):
    torch.save(build_callable("mynets.nets:narrow", {}).state_dict(), "own.pt")
    done = reaper("own.pt", "--recipe", "tiny.yaml", "--model", "mynets.nets:narrow", "--images", 60, "--split", "test")
    assert done.exit_code == 0, done.output
    assert "note: batchnorm-scale: left out (layer '2': has filters that no norm" in done.stderr
    assert "batchnorm-scale" not in done.stdout


# --- what does not


WRONG = {
    "no-target": ([], r"Missing argument"),
    "unknown-path": (["no/where"], r"no/where: no such file or folder"),
    "below-a-file": (["model.pt/x"], r"model\.pt/x: no such file or folder"),
    "no-runs": (["runs"], r"runs: holds no runs; name a run folder"),
    "no-recipe": (["model.pt"], r"model\.pt: is a checkpoint; name a recipe by --recipe"),
    "recipe-for-runs": (["runs/tiny", "--recipe", "tiny.yaml"], r"recipe: has no effect, a run folder has its own"),
    "model-for-runs": (["runs/tiny", "--model", "cnet"], r"model: has no effect, a run folder has its own"),
    "option-for-runs": (["runs/tiny", "--option", "width=3"], r"option: has no effect, a run folder has its own"),
    "profile": (["runs/tiny", "--profile", "quick"], r"profile: has no effect without --recipe"),
    "set": (["runs/tiny", "--set", "epochs=3"], r"set: has no effect without --recipe"),
    "no-yaml": (["model.pt", "--recipe", "no.yaml"], r"recipe='no\.yaml': no such file"),
    "option-alone": (
        ["model.pt", "--recipe", "tiny.yaml", "--option", "width=3"],
        r"option: has no effect without --m",
    ),
    "option-form": (
        ["model.pt", "--recipe", "tiny.yaml", "--model", "cnet", "--option", "width"],
        r"option='width': must be key=value",
    ),
    "other-network": (
        ["model.pt", "--recipe", "tiny.yaml", "--set", "model.options.width=7"],
        r"model\.pt: its weights do not fit CNet \(",
    ),
    "no-module": (
        ["model.pt", "--recipe", "tiny.yaml", "--model", "no:make"],
        r"model.name='no:make': no cannot be import",
    ),
    "no-checkpoint": (["tiny.yaml", "--recipe", "tiny.yaml"], r"tiny\.yaml: torch cannot read it as weights"),
    "twice": (["runs/tiny/repr", "runs/tiny/repr/"], r"targets: runs/tiny/repr is named twice"),
    "criterion": (["runs/tiny", "--criteria", "magic"], r"criteria='magic': unknown; choose from "),
    "oracle": (["runs/tiny", "--criteria", "random, oracle"], r"criteria='oracle': has no effect"),
    "no-criteria": (["runs/tiny", "--criteria", ","], r"criteria: none named"),
    "split": (["runs/tiny", "--split", "val"], r"split='val': unknown; choose one of validation, test, train"),
    "layers": (["runs/tiny", "--layers", "conv7"], r"layer='conv7': no such layer"),
    "images": (["runs/tiny", "--images", "0"], r"Invalid value for '?--images"),
    "few-images": (["runs/tiny", "--images", "9"], r"images=9: too few for correlations on a grid of 4 x 4"),
    "seed": (["runs/tiny", "--seed", "-1"], r"Invalid value for '?--seed"),
    "device": (["runs/tiny", "--device", "warp"], r"device='warp': unknown"),
    "out": (["runs/tiny", "--out", "model.pt"], r"out=model\.pt: .*model\.pt is a file; choose a folder"),
    "inside-a-file": (["runs/tiny", "--out", "model.pt/x"], r"out=model\.pt/x: .*model\.pt is a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(here, case):
    args, message = WRONG[case]
    refused(reaper(*args), message, here)


def test_debug_shows_the_traceback(here):
    done = reaper("no/where", "--debug")
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: no/where: no such file or folder"


def test_a_full_disk_is_one_line(here, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchreaper.lab.analyze.tables.write_whole", full)
    done = reaper("runs/tiny/repr/seed-0", *FAST)
    assert (done.exit_code, done.output) == (
        1,
        "repr/seed-0: filters left out: 12 of 12\n"
        "error: No space left on device; make room there and give the same command again\n",
    )


@pytest.mark.parametrize("place", ["torchreaper.criteria.Oracle.measured", "torchreaper.lab.files.os.fsync"])
def test_an_interrupted_analysis_leaves_no_half_of_a_file(here, monkeypatch, place):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, stopped)
    done = reaper("runs/tiny/repr/seed-0", *FAST, "--quiet")
    assert (done.exit_code, done.output) == (130, "interrupted\n")
    folder = Path("runs/tiny/repr/seed-0/analysis")
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_the_process_with_one_line(here):
    (here / "slow.py").write_text(
        "import pathlib, time\nfrom torch import nn\n"
        "def make():\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n    return nn.Conv2d(1, 2, 3)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from torchreaper.lab.cli import main; main()", "analyze", "model.pt", "--recipe",
         "tiny.yaml", "--model", "slow:make"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not Path("begun").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert not Path("model-analysis").exists()
