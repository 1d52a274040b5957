"""The benchmark programs run, at their smallest; what they measure is not looked at here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.zoo import torchvision_importable

torchvision_importable()  # which Lightning imports where it is there
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PROGRAMS = ("subnetwork", "scheme", "transition", "overhead", "growth", "oracle", "throughput", "jobs", "imagenet")


@pytest.mark.parametrize(
    ("program", "arguments", "rows"),
    [
        ("subnetwork", ["--only", "c3-32-pooled"], {"subnetwork": 1}),
        pytest.param("subnetwork", ["--only", "resnet20"], {"subnetwork": 1}, marks=pytest.mark.slow),
        ("scheme", ["--only", "c8-128", "--batch", "1"], {"scheme": 1}),
        ("transition", ["--only", "c3-32"], {"transition": 2}),
        ("overhead", ["--only", "c3-32", "--batch", "3"], {"overhead": 2}),
        ("growth", [], {"transitions": 6, "exponents": 6}),
        ("scatter", [], {"scatter": 2}),
        pytest.param("oracle", ["--only", "c3-32-pooled"], {"oracle": 1}, marks=pytest.mark.slow),
        ("throughput", ["--only", "c3-32-pooled", "--readers", "1"], {"throughput": 2}),
        pytest.param("jobs", ["--only", "c3-32"], {"jobs": 2}, marks=pytest.mark.slow),
    ],
)
def test_program_runs_at_its_smallest(load, capsys, tmp_path, program, arguments, rows):
    main = load(program).main
    assert main(["--quick", "--repeats", "1", "--out", str(tmp_path), *arguments]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    assert (tmp_path / f"{program}-cpu.md").read_text() == printed
    kept = json.loads((tmp_path / f"{program}-cpu.json").read_text())
    assert {title: len(lines) for title, lines in kept["tables"].items()} == rows
    assert {"cpu", "torch", "threads", "date"} <= set(kept["environment"])
    assert kept["failed"] == []


def test_program_is_a_command_and_trials_leave_no_files():
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").glob("growth-*")}
    done = subprocess.run(
        [sys.executable, "benchmarks/growth.py", "--quick", "--repeats", "1", "--only", "layers", "--threads", "1"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| layers of 32 filters |" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (FOLDER / "results").glob("growth-*")} == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_examples(load, capsys, program):
    with pytest.raises(SystemExit) as stop:
        load(program).main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"python benchmarks/{program}.py" in text
    assert all(option in text for option in ("--device", "--quick", "--repeats", "--only", "--threads", "--out"))


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("scheme", ["--steps", "0"], "--steps: 0: must be at least 1"),
        ("growth", ["--largest", "1"], "--largest: 1: of "),
        ("overhead", ["--out", "{file}/inside"], "--out: {file}/inside: Not a directory"),
        ("overhead", ["--repeats", "-3"], "--repeats: -3: must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(load, capsys, tmp_path, program, arguments, message):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stop:
        load(program).main([argument.format(file=file) for argument in arguments])
    assert stop.value.code == 2
    assert message.format(file=file) in capsys.readouterr().err


def test_a_failing_network_does_not_end_the_others(load, capsys, monkeypatch):
    transition = load("transition")
    measure = transition.measure

    def broken(net, *rest):
        if net.key == "c3-32":
            raise ArithmeticError("diverged")
        measure(net, *rest)

    monkeypatch.setattr(transition, "measure", broken)
    assert transition.main(["--quick", "--repeats", "1", "--only", "c3-32", "--only", "c3-32-pooled"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED c3-32: ArithmeticError: diverged" in printed
    assert "| C3(32) 5x5, pooled |" in printed


@pytest.fixture
def imagenet(load, monkeypatch):
    """The program with its parts in this process, each measured once: starting processes would take a minute."""
    program, part = load("imagenet"), load("imagenet_part")
    parts, found = {"memory": part.memory, "times": part.times}, {}

    def run(task):
        key = task["part"], task["mode"]
        if key not in found:
            found[key] = json.dumps(parts[task["part"]](task))
        return json.loads(found[key])

    monkeypatch.setattr(program, "run", run)
    monkeypatch.setattr(part, "warmed", lambda: None)
    return program


@pytest.mark.slow
def test_imagenet_takes_up_what_was_measured(imagenet, capsys, monkeypatch, tmp_path):
    command = ["--quick", "--repeats", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    measured, run = [], imagenet.run
    monkeypatch.setattr(imagenet, "run", lambda task: measured.append(task["label"]) or run(task))
    assert imagenet.main(command) == 0, capsys.readouterr()
    assert measured == ["tiny memory sgd masked", "tiny memory sgd compact", "tiny times sgd"]
    first = json.loads((tmp_path / "imagenet-cpu.json").read_text())["tables"]
    assert {title: len(lines) for title, lines in first.items()} == {"memory": 2, "transitions": 2, "steps": 1}
    (tmp_path / "work" / "tiny-memory-sgd-masked.json").unlink()
    assert imagenet.main(command) == 0, capsys.readouterr()
    assert measured[3:] == ["tiny memory sgd masked"]
    assert json.loads((tmp_path / "imagenet-cpu.json").read_text())["tables"]["steps"] == first["steps"]
    assert imagenet.main([*command, "--batch", "1"]) == 0, capsys.readouterr()
    assert len(measured) == 7, "other settings are measured anew"
    assert (tmp_path / "imagenet-cpu.md").read_text() in capsys.readouterr().out


@pytest.mark.slow
def test_imagenet_says_which_row_failed(imagenet, capsys, monkeypatch, tmp_path):
    run = imagenet.run

    def broken(task):
        if task["mode"] == "compact":
            raise RuntimeError(f"{task['label']}: the process ended with -9, see above")
        return run(task)

    monkeypatch.setattr(imagenet, "run", broken)
    assert imagenet.main(["--quick", "--repeats", "1", "--work", str(tmp_path), "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED tiny: RuntimeError: tiny memory sgd compact: the process ended with -9" in printed
    kept = json.loads((tmp_path / "imagenet-cpu.json").read_text())["tables"]
    assert {title: len(lines) for title, lines in kept.items()} == {"memory": 1, "transitions": 2, "steps": 1}


def test_a_process_of_its_own_ends_with_an_answer_or_a_word(load):
    run = load("imagenet").run
    task = {"label": "mine", "net": "tiny", "optimizer": "sgd", "mode": "masked", "batch": 2, "threads": 1}
    task |= {"repeats": 1, "device": "cpu"}
    found = run({**task, "part": "memory"})
    assert found["weights"] == 4 * 469_688
    assert all(step["peak"] > 3 * found["weights"] for step in found["stages"]["plain"])
    with pytest.raises(RuntimeError, match="mine: the process ended with 1"):
        run({**task, "part": "none"})


class Mixed(nn.Module):
    """A plain stretch with BatchNorm, a sum, and a Linear that reads pixels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.back = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 5, 3)
        self.fc = nn.Linear(5 * 4 * 4, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.back(self.norm(self.inner(x)).relu())
        return self.fc(self.last(x).relu().flatten(1))


def test_narrow_is_plain_and_computes_what_masked_does(load):
    torch.manual_seed(0)
    model = Mixed().double()
    nn.init.uniform_(model.norm.bias)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    before = deepcopy(model.state_dict())
    filters = {"inner": (0, 3, 7), "back": (2,), "last": (1, 4)}
    hand = load("narrow").narrow(model, x, filters)
    assert set(hand.narrowed) == {"inner", "last"}
    assert hand.share == "2/3"
    shapes = {name: tuple(parameter.shape) for name, parameter in hand.model.named_parameters()}
    assert shapes["inner.weight"] == (5, 6, 3, 3)
    assert shapes["norm.bias"] == (5,)
    assert shapes["back.weight"] == (6, 5, 1, 1)
    assert shapes["last.weight"] == (3, 6, 3, 3)
    assert shapes["fc.weight"] == (3, 3 * 4 * 4)
    assert type(hand.model.inner) is nn.Conv2d
    assert not any(module._forward_hooks or module._state_dict_hooks for module in hand.model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    with tr.find_filters(model, x).without(filters, mode="masked"):
        torch.testing.assert_close(hand.model(x), model(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(hand.model.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)


def test_narrow_takes_depthwise_channels_along(load):
    smaller = load("narrow")._smaller
    rows = torch.tensor([True, False, True, True])
    new = smaller(nn.Conv2d(4, 4, 3, groups=4), rows, torch.ones(1, dtype=torch.bool))
    assert (new.groups, new.in_channels, new.out_channels) == (3, 3, 3)
    with pytest.raises(ValueError, match="not depthwise"):
        smaller(nn.Conv2d(4, 4, 3, groups=2), rows, torch.ones(2, dtype=torch.bool))


def test_interval_of_the_median_is_exact(load):
    estimate = load("measure").estimate
    assert (estimate([5, 1, 2, 9, 4, 3, 7]).low, estimate([5, 1, 2, 9, 4, 3, 7]).high) == (1, 9)
    assert (estimate(range(9)).low, estimate(range(9)).median, estimate(range(9)).high) == (1, 4, 7)
    assert (estimate(range(20)).low, estimate(range(20)).high) == (5, 14)
    assert str(estimate([0.5] * 7)) == "0.500 [0.500, 0.500]"


def test_ratios_are_taken_pair_by_pair(load):
    ratio = load("measure").ratio
    assert ratio({"a": [1.0, 4.0, 3.0], "b": [2.0, 2.0, 3.0]}, "a", "b").samples == (0.5, 2.0, 1.0)
    assert ratio({"a": [1.0]}, "a", "b") is None


def test_memory_is_a_count_and_falls_with_the_widths(load):
    networks, training = load("networks"), load("training")
    net = next(net for net in networks.NETS if net.key == "c3-32-pooled")
    bench = networks.Bench(net, torch.device("cpu"), batch=2)
    hand = load("narrow").narrow(bench.model, bench.example, bench.uniform())
    full = training.memory(bench.training, bench.device)
    assert full == training.memory(bench.training, bench.device)
    assert full > training.memory(lambda: bench.training(deepcopy(hand.model)), bench.device)
    weights = sum(4 * p.numel() for p in bench.model.parameters())
    # weights, gradients and momentum; and at least what each of the three convolutions gives
    assert full > 3 * weights + 4 * 2 * 32 * (32**2 + 16**2 + 8**2)


def test_exponents_of_a_power_law(load):
    sizes = (2, 4, 8)
    every, last = load("growth").exponents(sizes, [[s**1.5, 3 * s**1.5] for s in sizes])
    assert every.samples == pytest.approx((1.5, 1.5))
    assert last.samples == pytest.approx((1.5, 1.5))
