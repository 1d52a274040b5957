from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

import torchreaper as tr
from torchreaper.lab import console as screen

RESULT = {"scheme": "repr", "seed": 1, "test_accuracy": 0.75, "gap": 0.2, "epochs": 3, "seconds": 1.5}
METRICS = {"epoch": 1, "phase": "full", "test_accuracy": 0.5, "images_per_second": 1234.0}
DROP = tr.Transition("drop", 1, 1, {"conv2": (1, 3), "conv3": (0,)}, {}, 0.1, ())


def shown(width: int, *, terminal: bool, quiet: bool = False, runs: int = 1) -> str:
    """What a whole run leaves on a screen."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width, highlight=False, color_system=None)
    with screen.progress_on(console, quiet=quiet, runs=runs) as progress:
        for done in (0, 500, 1000):
            progress.loading("train", done, 1000)
            time.sleep(0.15)  # the screen is drawn ten times a second
        progress.start_run("demo / repr / seed 1", 3, 10, 0)
        progress.batch(1, 10, 2.125)
        progress.transition(1, DROP)
        progress.epoch(METRICS)
        time.sleep(0.15)
        progress.batch(2, 5, 1.5)
        time.sleep(0.15)
        progress.note("something [to] know")
        progress.end_run(RESULT)
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 130])
def test_a_terminal_shows_where_the_run_stands(width):
    text = shown(width, terminal=True, runs=2)
    assert "reading train" in text
    assert "500 of 1,000" in text
    assert "epoch 1: 3 filters dropped (conv2 2, conv3 1)" in text.replace("\n", " ")
    assert "sub" in text
    assert "loss 1.500" in text
    assert "1,234" in text
    assert "0 of 2 done" in text
    assert "note: something [to] know" in text
    assert "repr seed 1: test accuracy 75.00 %, gap 20.00, 3 epochs, 1.5 s" in text


def test_the_last_look_stays_where_not_every_epoch_is_judged():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=130, highlight=False, color_system=None)
    with screen.progress_on(console, quiet=False, runs=1) as progress:
        progress.start_run("demo / repr / seed 1", 3, 10, 0)
        for line in (METRICS, {**METRICS, "epoch": 2, "test_accuracy": None, "images_per_second": 77.0}):
            progress.epoch(line)
        progress.batch(3, 5, 1.5)
        time.sleep(0.15)
        progress.end_run(RESULT)
    assert "test 50.00 %  77 images/s" in text.getvalue()


def test_what_a_run_was_judged_on_is_told():
    there = {"judged": "validation"}
    assert "  validation 50.00 %" in screen.status_line(1, 3, "full", 0.5, {**METRICS, **there}, wide=True)
    assert screen.run_line({**RESULT, **there}).startswith("repr seed 1: validation accuracy 75.00 %, gap")


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_elsewhere_there_is_one_line_a_run(terminal, quiet, capsys):
    text = shown(80, terminal=terminal, quiet=quiet)
    assert text == "repr seed 1: test accuracy 75.00 %, gap 20.00, 3 epochs, 1.5 s\n"
    assert capsys.readouterr().err == "note: something [to] know\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_runs_side_by_side_have_a_bar_each_and_their_names_in_notes(terminal, capsys):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, highlight=False, color_system=None)
    with screen.progress_on(console, quiet=False, runs=3) as progress:
        runs = [progress.beside(f"repr, seed {seed}") for seed in range(3)]
        for seed, run in enumerate(runs[:2]):
            run.start_run(f"demo / repr / seed {seed}", 3, 10, seed)
        time.sleep(0.15)  # the screen is drawn ten times a second
        runs[0].batch(2, 5, 1.5)
        runs[1].note("something [to] know")
        runs[1].end_run(RESULT)
        runs[2].leave()  # it failed before it began
        time.sleep(0.15)
        runs[0].end_run({**RESULT, "recipe": "teacher-big-12345678", "seed": 0, "scheme": "standard"})
        time.sleep(0.15)
    shown, notes = " ".join(text.getvalue().split()), capsys.readouterr().err
    assert "note: repr, seed 1: something [to] know" in (shown if terminal else notes)
    assert shown.count("repr seed 1: test accuracy 75.00 %") == 1
    assert shown.count("teacher-big-12345678 seed 0: test accuracy 75.00 %") == 1
    for bar in ("all runs", "0 of 3 done", "2 of 3 done", "demo / repr / seed 0", "demo / repr / seed 1"):
        assert (bar in shown) == terminal


def test_many_layers_are_counted_not_listed():
    filters = {f"layer{k}": tuple(range(k + 1)) for k in range(7)}
    line = screen.transition_line(20, tr.Transition("restore", 1, 20, filters, {}, 0.1, ()))
    assert line == "epoch 20: 28 filters back (layer6 7, layer5 6, layer4 5, layer3 4, 3 layers more)"


def counted(width: int, *, terminal: bool, quiet: bool = False) -> str:
    """What an analysis leaves on a screen."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width, highlight=False, color_system=None)
    with screen.counting_on(console, quiet=quiet) as (tell, note):
        for what in ("repr [a], seed 0: filters left out", "second"):
            for done in (3, 7):
                tell(what, done, 12)
                time.sleep(0.15)  # the screen is drawn ten times a second
            note(f"{what} is [odd]")
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_counts_what_is_done_and_keeps_the_notes(width):
    text = counted(width, terminal=True)
    assert "7 of 12" in text
    assert "second" in text
    assert "note: repr [a], seed 0: filters left out is [odd]" in " ".join(text.split())


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_elsewhere_only_notes_are_left_on_stderr(terminal, quiet, capsys):
    assert counted(80, terminal=terminal, quiet=quiet) == ""
    assert capsys.readouterr().err.splitlines() == [
        "note: repr [a], seed 0: filters left out is [odd]",
        "note: second is [odd]",
    ]


def test_what_is_found_lies_beside_what_it_was_found_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scheme in ("standard", "repr"):
        Path("runs/demo", scheme, "seed-0").mkdir(parents=True)
    Path("model.v1.pt").touch()
    run, other = Path("runs/demo/repr/seed-0"), Path("runs/demo/standard/seed-0")
    assert screen.beside([run]) == run / "analysis"
    assert screen.beside([Path("runs/demo")]) == Path("runs/demo/analysis")
    assert screen.beside([Path()]) == Path("analysis")
    assert screen.beside([Path("model.v1.pt")]) == Path("model.v1-analysis")
    assert screen.beside([run, other]) == tmp_path / "runs/demo/analysis"
    assert screen.beside([run.parent, other.parent]) == tmp_path / "runs/demo/analysis"
    assert screen.beside([run, Path("model.v1.pt")]) == tmp_path / "analysis"


def test_a_recipe_called_like_a_teacher_is_none():
    assert screen.run_line({**RESULT, "recipe": "teacher-x", "scheme": "repr"}).startswith("repr seed ")
