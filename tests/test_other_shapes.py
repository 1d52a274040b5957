"""U-Nets and sequence networks: what the method promises holds there, and two short programs show it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from torch import Tensor, nn

import torchreaper as tr
from tests import zoo
from tests.shapes import Shape, shapes

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


def check_promises(shape: Shape) -> None:
    """Invariants 1, 2, 3 and 6, by the check of the published architectures; nothing gives up compact needlessly."""
    row = zoo.check(shape)
    assert row.result == "ok" or (row.result == "ok (masked only)" and row.masked == row.ranked)
    if shape.groups != 2 and (shape.skip != "sum" or shape.kind == "sequence"):
        assert (row.narrow, row.result) == (row.ranked, "ok")


@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@given(shapes)
@example(Shape())
@example(Shape(dims=1, up="depthwise", padding="causal", dilated=True, head="max"))
@example(Shape(dims=3, depth=1, up="overlapping", down="stride"))
@example(Shape("sequence", dims=1, depth=3, padding="chomp", dilated=True, head="spread"))
def test_every_promise_holds_whatever_the_shape(shape: Shape):
    check_promises(shape)


@pytest.mark.slow
@settings(max_examples=100)
@given(shapes)
def test_every_promise_holds_whatever_the_shape_many_times(shape: Shape):
    check_promises(shape)


class Between(nn.Module):
    """A convolution, what is asked about, a convolution that reads it, a mean over positions, a Linear layer."""

    def __init__(self, dims: int, between: Callable[[nn.Module, Tensor], Tensor], width: int, **modules: nn.Module):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.conv, self.last, self.fc = conv(3, 6, 3, padding=1), conv(width, 5, 1), nn.Linear(5, 3)
        self.between = between
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.between(self, self.conv(x))).flatten(2).mean(-1))


INPUTS = {1: (2, 3, 15), 2: (2, 3, 9, 9), 3: (2, 3, 4, 4, 4)}
LSTM = {"l": nn.LSTM(6, 6, batch_first=True)}


def cropped(s: nn.Module, x: Tensor) -> Tensor:
    """The first U-Net: convolutions without padding, the skip cropped to their size."""
    y = s.c(x)
    d = (x.size(2) - y.size(2)) // 2
    return torch.cat([x[:, :, d : d + y.size(2), d : d + y.size(3)], y], 1)


def padded(s: nn.Module, x: Tensor) -> Tensor:
    """The usual U-Net of odd sizes: what comes up is padded to the size of the skip."""
    y = s.c(F.max_pool2d(x, 2))
    down, right = x.size(2) - y.size(2), x.size(3) - y.size(3)
    return torch.cat([x, F.pad(y, [right // 2, right - right // 2, down // 2, down - down // 2])], 1)


def both(s: nn.Module, x: Tensor) -> Tensor:
    values, _ = x.max(-1, keepdim=True)
    return values


def where(s: nn.Module, x: Tensor) -> Tensor:
    values, places = x.min(-1, keepdim=True)
    return values + places


NARROW = {
    "max": (1, lambda s, x: x.max(dim=-1)[0].unsqueeze(-1), 6, {}),
    "max, kept": (2, lambda s, x: torch.max(x, 2, keepdim=True).values, 6, {}),
    "max, unpacked": (1, both, 6, {}),
    "spread": (1, lambda s, x: torch.cat([x.mean(-1, True), x.std(-1, keepdim=True)], 1), 12, {}),
    "amin": (3, lambda s, x: x.amin([2, 3, 4], keepdim=True), 6, {}),
    "circular": (1, lambda s, x: s.p(x), 6, {"p": nn.CircularPad1d(2)}),
    "replicated": (3, lambda s, x: s.p(x), 6, {"p": nn.ReplicationPad3d(1)}),
    "reflected": (3, lambda s, x: s.p(x), 6, {"p": nn.ReflectionPad3d(1)}),
    "output_size": (1, lambda s, x: s.c(x, output_size=[30]), 4, {"c": nn.ConvTranspose1d(6, 4, 3, 2, 1)}),
    "depthwise": (2, lambda s, x: s.c(x), 12, {"c": nn.ConvTranspose2d(6, 12, 2, 2, groups=6)}),
    "cropped": (2, cropped, 10, {"c": nn.Conv2d(6, 4, 3)}),
    "padded": (2, padded, 10, {"c": nn.ConvTranspose2d(6, 4, 2, 2)}),
}
WIDE = {
    "where": (1, where, 6, {}, "min"),
    "max over channels": (1, lambda s, x: torch.cat([x, x.max(1, keepdim=True)[0]], 1), 7, {}, "max"),
    "max of all": (1, lambda s, x: x / x.max(), 6, {}, "max"),
    "var of all": (1, lambda s, x: x / x.var(False), 6, {}, "var"),
    "groups": (1, lambda s, x: s.c(x), 6, {"c": nn.ConvTranspose1d(6, 6, 3, groups=2)}, "c"),
    "recurrent": (1, lambda s, x: s.l(x.transpose(1, 2))[0].transpose(1, 2), 6, LSTM, "l"),
}


@pytest.mark.parametrize("case", NARROW)
def test_what_is_done_to_sequences_and_maps_is_followed(case):
    dims, between, width, modules = NARROW[case]
    model = Between(dims, between, width, **modules).double()
    x = torch.randn(INPUTS[dims], generator=torch.Generator().manual_seed(0)).double()
    bank = tr.find_filters(model, x, skip=None)
    assert [layer.route for layer in bank.ranked] == ["narrow"] * len(bank.ranked)
    outputs = []
    for mode in ("masked", "compact"):
        with bank.without({layer.name: [1, 3] for layer in bank.ranked}, mode=mode):
            outputs.append(model(x))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(outputs[0], model(x))


@pytest.mark.parametrize("case", WIDE)
def test_what_needs_every_channel_keeps_the_full_width(case):
    dims, between, width, modules, place = WIDE[case]
    bank = tr.find_filters(Between(dims, between, width, **modules), torch.randn(INPUTS[dims]), skip=None)
    assert bank["conv"].reason.startswith(f"full width at {place}")


def test_a_transposed_kernel_costs_what_it_does_at_its_inputs():
    model = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ConvTranspose1d(4, 5, 4, 2, 1), nn.Conv1d(5, 2, 1))
    bank = tr.find_filters(model, torch.randn(2, 3, 10), skip=None)
    assert bank.cost({}).multiply_adds == 10 * 3 * 4 * 3 + 10 * 4 * 5 * 4 + 20 * 5 * 2
    assert bank.cost({"0": [1], "1": [0, 2]}).multiply_adds == 10 * 3 * 3 * 3 + 10 * 3 * 3 * 4 + 20 * 3 * 2
    assert bank.cost({}).activations == 10 * 4 + 20 * 5 + 20 * 2


def run(program: str, *arguments: str) -> str:
    """What an example prints, in a process of its own, any warning an error."""
    command = [sys.executable, "-W", "error", f"examples/{program}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def epochs(printed: str) -> list[tuple[str, float]]:
    """Phase and score of every epoch."""
    found = re.findall(r"^epoch +(\d+)  (full|sub) +test [\w ]+ ([\d.]+) %  [\d.]+ s$", printed, re.MULTILINE)
    assert [int(epoch) for epoch, _, _ in found] == list(range(1, len(found) + 1))
    return [(phase, float(score)) for _, phase, score in found]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("segmentation", ["--width", "4", "--scope", "down2", "bottom"]), ("timeseries", ["--width", "16"])],
)
def test_an_example_goes_through_two_cycles_really_smaller(program, arguments):
    printed = run(program, "--repr", "--epochs", "6", *arguments)
    assert [phase for phase, _ in epochs(printed)] == ["full", "full", "sub", "full", "full", "sub"]
    assert re.search(r"of the multiply-adds; compact$", printed, re.MULTILINE), "print(scheme) tells it"
    ranked = re.findall(r"^(\S+) +\d+ +\d+  yes +(\w+)", printed, re.MULTILINE)
    assert ranked
    assert {route for _, route in ranked} == {"narrow"}
    if program == "segmentation":
        assert {name.split(".")[0] for name, _ in ranked} == {"down2", "bottom"}, "--scope"
        overlaps = re.findall(r"(\w+) ([\d.]+)", printed.split("IoU %: ")[1].splitlines()[0])
        assert [name for name, _ in overlaps] == [*map(str, range(10)), "background"]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "least"), [("segmentation", 50.0), ("timeseries", 90.0)])
@pytest.mark.parametrize("options", [[], ["--repr"]], ids=["standard", "repr"])
def test_an_example_learns(program, least, options):
    """Chance is 9 % of mean IoU (all background) and 10 % of the sequences."""
    found = epochs(run(program, *options))
    assert len(found) == 20
    assert found[-1][1] > least


@pytest.fixture
def programs(monkeypatch):
    """Import from examples/ and benchmarks/, which are no packages, and forget it afterwards."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "examples")
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        file = str(getattr(sys.modules[name], "__file__", ""))
        if file.startswith((str(ROOT / "benchmarks"), str(ROOT / "examples"))):
            del sys.modules[name]


@pytest.mark.parametrize("program", ["segmentation", "timeseries"])
def test_an_example_refuses_too_few_epochs(program, programs, capsys):
    with pytest.raises(SystemExit):
        programs(program).main(["--epochs", "5"])
    assert "argument --epochs: 5: two cycles take at least 6" in capsys.readouterr().err


def test_scenes_hold_digits_where_their_classes_say_so(programs):
    """A pixel is of a digit's class where that digit is drawn, at most once in each quarter, and background else."""
    segmentation = programs("segmentation")
    digits = torch.stack([torch.full((8, 8), 0.5 + 0.1 * k) for k in range(3)])
    generator = torch.Generator().manual_seed(0)
    pictures, classes = segmentation.scenes(digits, torch.tensor([4, 5, 6]), 5, generator)
    assert (pictures.shape, classes.shape) == ((5, 1, 32, 32), (5, 32, 32))
    for label, value in ((4, 0.5), (5, 0.6), (6, 0.7)):
        torch.testing.assert_close(pictures[:, 0][classes == label], torch.full(((classes == label).sum(),), value))
    assert (pictures[:, 0][classes == 10] < 0.3).all()
    quarters = (classes < 10).unflatten(2, (2, 16)).unflatten(1, (2, 16)).sum((2, 4))
    assert (quarters == 64).all()


def test_overlaps_are_those_of_the_pixels(programs):
    segmentation = programs("segmentation")
    classes = torch.tensor([[[0, 0, 1, 10]]])
    found = torch.tensor([[[0, 1, 1, 10]]])
    model = nn.Module()
    model.forward = lambda batch: F.one_hot(found, 11).movedim(-1, 1)
    overlaps = segmentation.overlaps(model, torch.zeros(1, 1, 1, 4), classes)
    assert overlaps == pytest.approx([1 / 2, 1 / 2, *[0] * 8, 1])


@pytest.mark.slow
def test_the_comparison_of_the_examples_runs(programs, tmp_path, capsys):
    assert programs("shapes").main(["--quick", "--only", "timeseries", "--repeats", "2", "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "other-shapes-cpu.json").read_text())
    assert {"cpu", "torch", "threads", "date", "commit"} <= set(kept["environment"])
    assert [(run["scheme"], run["seed"]) for run in kept["runs"]] == [
        (s, k) for k in (0, 1) for s in ("standard", "RePr")
    ]
    assert capsys.readouterr().out == (tmp_path / "other-shapes-cpu.md").read_text()


def test_the_table_of_the_comparison_is_of_pairs(programs):
    scores = {"standard": [0.5, 0.7, 0.6], "RePr": [0.6, 0.7, 0.65]}
    seconds = {"full": [2.0, 4.0, 2.0], "sub": [1.0]}
    runs = [
        {"example": "timeseries", "scheme": scheme, "seed": seed, "score": score, "seconds": seconds}
        for scheme, values in scores.items()
        for seed, score in enumerate(values)
    ]
    row = programs("shapes").row("timeseries", runs)
    # Differences 10, 0 and 5: a mean of 5, a standard error of 5 / sqrt(3), and t = 4.303 with 2 degrees of freedom.
    assert row["difference"] == "+5.00 [-7.42, +17.42]"
    assert (row["n"], row["p"], row["epoch"]) == (3, "0.225", "0.50 [0.50, 0.50]")
    assert (row["standard"], row["RePr"]) == ("60.00 [35.16, 84.84]", "65.00 [52.58, 77.42]")
    assert row["verdict"].startswith("No evidence of a difference between RePr and standard")


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--only", "detection"]])
def test_the_comparison_refuses_what_it_cannot_do(programs, arguments, capsys):
    with pytest.raises(SystemExit):
        programs("shapes").main(arguments)
    assert f"argument {arguments[0]}" in capsys.readouterr().err
