from __future__ import annotations

import io
import time

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
    assert "run 1 of 2" in text
    assert "note: something [to] know" in text
    assert "repr seed 1: test accuracy 75.00 %, gap 20.00, 3 epochs, 1.5 s" in text


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_elsewhere_there_is_one_line_a_run(terminal, quiet, capsys):
    text = shown(80, terminal=terminal, quiet=quiet)
    assert text == "repr seed 1: test accuracy 75.00 %, gap 20.00, 3 epochs, 1.5 s\n"
    assert capsys.readouterr().err == "note: something [to] know\n"


def test_many_layers_are_counted_not_listed():
    filters = {f"layer{k}": tuple(range(k + 1)) for k in range(7)}
    line = screen.transition_line(20, tr.Transition("restore", 1, 20, filters, {}, 0.1, ()))
    assert line == "epoch 20: 28 filters back (layer6 7, layer5 6, layer4 5, layer3 4, 3 layers more)"
