"""The command `reaper`: texts, exit codes, what it writes and what it does not."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from tests.lab.seeing import Seeing
from typer.testing import CliRunner

from torchreaper.errors import NoEffectWarning
from torchreaper.lab import cli, console
from torchreaper.lab.errors import LESS_MEMORY, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = {
    "name": "tiny",
    "epochs": 3,
    "batch": 25,
    "data": {"name": "digits", "limit": 50},
    "model": {"name": "cnet", "options": {"depth": 2, "width": 4}},
    "optim": {"name": "sgd", "lr": 0.05},
    "scheme": {"name": "repr", "full": 1, "sub": 1, "cycles": 1},
    "seeds": 2,
    "profiles": {"quick": {"seeds": 1}},
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def reaper(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], prog_name="reaper")


# --- what works


def test_train_writes_a_run_and_says_where(recipe):
    done = reaper("train", recipe, "--scheme", "standard", "--seed", 3, "--out", "there")
    assert done.exit_code == 0, done.output
    line, path = done.output.splitlines()
    result = json.loads(Path("there/tiny/standard/seed-3/result.json").read_text())
    accuracy = f"{100 * result['test_accuracy']:.2f}"
    assert line.startswith(f"standard seed 3: test accuracy {accuracy} %, gap ")
    assert path == "there/tiny/standard/seed-3"


def test_train_takes_the_recipes_own_scheme_and_shows_a_finished_run_again(recipe):
    first = reaper("train", recipe)
    stamp = Path("runs/tiny/repr/seed-0/last.pt").stat().st_mtime_ns
    again = reaper("train", recipe)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert first.output == again.output
    assert Path("runs/tiny/repr/seed-0/last.pt").stat().st_mtime_ns == stamp


def test_quiet_leaves_one_line(recipe):
    done = reaper("train", recipe, "--quiet", "--set", "epochs=4", "--set", "optim.lr=0.1")
    assert len(done.output.splitlines()) == 1
    assert ", 4 epochs, " in done.output
    assert yaml.safe_load(Path("runs/tiny/repr/seed-0/recipe.yaml").read_text())["optim"]["lr"] == 0.1


def test_compare_prints_runs_table_verdict_and_figures(recipe):
    done = reaper("compare", recipe, "--schemes", "standard,repr", "--seeds", 2)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.strip()]
    assert [line.split(":")[0] for line in lines[:4]] == [
        "standard seed 0",
        "repr seed 0",
        "standard seed 1",
        "repr seed 1",
    ]
    assert lines[4].split()[:2] == ["scheme", "n"]
    assert [line.split()[:2] for line in lines[6:8]] == [["standard", "2"], ["repr", "2"]]
    assert re.match(r"(No evidence of a difference|No verdict|repr is (better|worse))", lines[8])
    paths = [f"runs/tiny/{name}" for name in ("comparison.md", "accuracy.png", "overlap.png", "filters.png")]
    assert lines[-5:] == [*paths, "As one page: reaper report runs/tiny"]
    assert all(Path(path).stat().st_size for path in paths)
    assert json.loads(Path("runs/tiny/comparison.json").read_text())["contrasts"][0]["seeds"] == [0, 1]


def test_compare_by_default_is_standard_against_the_recipes_own_with_its_seeds(recipe):
    done = reaper("compare", recipe, "--profile", "quick")
    assert done.exit_code == 0, done.output
    found = json.loads(Path("runs/tiny-quick/comparison.json").read_text())
    assert [(summary["scheme"], summary["seeds"]) for summary in found["schemes"]] == [
        ("standard", [0]),
        ("repr", [0]),
    ]


def test_compare_takes_all_schemes_of_a_recipe(recipe):
    schemes = "schemes={repr-random: {name: repr, criterion: random, full: 1, sub: 1, cycles: 1}}"
    done = reaper("compare", recipe, "--schemes", "all", "--seeds", 1, "--set", schemes)
    assert done.exit_code == 0, done.output
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    assert [summary["scheme"] for summary in found["schemes"]] == ["standard", "repr", "repr-random"]
    help_text = " ".join(reaper("compare", "--help").output.split())
    assert "all: standard, the recipe's own, and its schemes section." in help_text


def test_compare_without_repr_leaves_out_the_map(recipe):
    done = reaper("compare", recipe, "--schemes", "standard", "--seeds", 2)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-4:-1] == [
        "runs/tiny/comparison.md",
        "runs/tiny/accuracy.png",
        "runs/tiny/overlap.png",
    ]


def test_inspect_shows_a_recipes_filters_and_what_would_go(recipe):
    done = reaper("inspect", recipe)
    assert done.exit_code == 0, done.output
    assert re.search(r"conv1 +4 +9 +no", done.output)  # 3x3 on one channel: the digits are grey
    assert re.search(r"conv2 +4 +36 +yes", done.output)
    assert "fraction 0.3: 1 of 4 ranked filters would be dropped" in done.output
    assert not Path("runs").exists()


def test_inspect_takes_a_network_its_options_and_the_images_size():
    done = reaper("inspect", "cnet", "--set", "depth=3", "--set", "width=6", "--image", "2x16x16", "--classes", 4,
                  "--fraction", 0.5, "--criterion", "magnitude")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert re.search(r"conv1 +6 +18 +no", done.output)
    assert re.search(r"conv3 +6 +54 +yes", done.output)
    assert "fraction 0.5: 6 of 12 ranked filters would be dropped" in done.output


def test_inspect_chooses_as_the_recipe_would(recipe):
    limits = ("--set", "scheme.fraction=0.5", "--set", "scheme.min_filters=3", "--set", "scheme.skip=null")
    done = reaper("inspect", recipe, *limits)
    assert done.exit_code == 0, done.output
    assert "fraction 0.5: 2 of 8 ranked filters would be dropped" in done.output
    assert "held back by min_filters=3" in done.output
    assert "fraction 0.25: 2 of 8" in reaper("inspect", recipe, *limits, "--fraction", "0.25").output


def test_inspect_of_another_size_needs_no_data(recipe):
    done = reaper("inspect", recipe, "--set", "data={name: parquet, train: no.parquet, test: no.parquet}",
                  "--image", "3x16x16", "--classes", 2)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert re.search(r"conv1 +4 +27 ", done.output)


def test_inspect_reads_the_recipes_images_where_the_criterion_does(recipe, seeing):
    images = ("--set", "scheme.criterion=seeing", "--set", "scheme.images=30")
    found = [
        reaper("inspect", recipe, *args).output
        for args in (["--criterion", "seeing"], images, [*images, "--criterion", "seeing"])
    ]
    assert all("fraction 0.3: 1 of 4 ranked filters would be dropped" in output for output in found)
    assert found[1] == found[2]
    standard = reaper("inspect", recipe, "--set", "scheme={name: standard}", "--criterion", "seeing")
    assert standard.output == found[0]
    # Images that the recipe has for another criterion are none of this one's.
    assert reaper("inspect", recipe, *images, "--criterion", "magnitude").exit_code == 0


def test_inspect_ranks_by_the_images_that_the_run_reads(recipe, seeing, monkeypatch):
    read, real = [], Seeing.scores

    def scores(self, bank):
        read.append(torch.cat([images for images, _ in self.batches]))
        return real(self, bank)

    monkeypatch.setattr(Seeing, "scores", scores)
    settings = ("--set", "scheme.criterion=seeing", "--set", "scheme.images=30", "--seed", 3)
    for command in ("inspect", "train"):
        assert reaper(command, recipe, *settings).exit_code == 0
    assert torch.equal(read[0], read[1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["inspect", "cnet", "--criterion", "seeing"],
            r"criterion='seeing': may read images; name a recipe instead of c",
        ),
        (
            ["inspect", "tiny.yaml", "--set", "scheme.criterion=seeing", "--set", "scheme.images=51"],
            r"scheme\.images=51: only 50 training images are there; use images <= 50$",
        ),
        (
            ["inspect", "tiny.yaml", "--criterion", "seeing", "--image", "3x8x8"],
            r"batches: .* does not run on batch 0, inputs \[50, 1, 8, 8\]",
        ),
        (["train", "tiny.yaml", "--set", "scheme.images=5"], r"scheme\.images=5: has no effect with criterion 'orthog"),
    ],
)
def test_images_that_cannot_be_read_are_one_line(recipe, seeing, args, message):
    assert_refused(reaper(*args), message)


def test_version_and_help():
    assert re.fullmatch(r"torchreaper \d+\.\d+\.\d+\S*\n", reaper("--version").output)
    for command in ("train", "compare", "inspect", "analyze"):
        help_text = reaper(command, "--help").output
        assert "Example" in help_text
        assert f"reaper {command} " in help_text.split("Example")[1]
    bare = reaper()
    assert bare.exit_code == 2
    assert bare.output == reaper("--help").output


# --- what does not: one line, exit code 2, nothing written


def parquet(path, labels, *, damage=False):
    """A small parquet file of images in the schema of Hugging Face's data sets."""
    import datasets
    import numpy as np
    from PIL import Image

    images = []
    for number in range(len(labels)):
        stream = io.BytesIO()
        Image.fromarray(np.full((12, 12, 3), number, dtype=np.uint8)).save(stream, format="PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"img": images, "label": labels}, features=features).to_parquet(str(path))
    if damage:
        path.write_bytes(path.read_bytes()[:-40])


WRONG = {
    "fraction": (["--set", "scheme.fraction=1.3"], r"scheme\.fraction=1\.3: must be in \(0, 1\)"),
    "full": (["--set", "scheme.full=0"], r"scheme\.full=0: must be "),
    "too-long": (["--set", "scheme.cycles=3"], r"scheme: full=1, sub=1, cycles=3 need 6 epochs, the recipe has 3"),
    "ends-inside": (["--set", "scheme.sub=5"], r"which end inside the sub-network phase"),
    "no-filters": (["--set", "model.options.depth=1"], r"no convolution to rank \(conv1: skipped\)"),
    "all-skipped": (["--set", "scheme.skip=[conv1, conv2]"], r"no convolution to rank"),
    "criterion": (["--set", "scheme.criterion=orthogonal"], r"unknown criterion; did you mean 'orthogonality'"),
    "misspelt": (["--set", "optim.lrr=0.1"], r"optim\.lrr: unknown key; did you mean optim\.lr\?"),
    "no-key": (["--set", "lr"], r"set='lr': must be key=value"),
    "type": (["--set", "epochs=many"], r"epochs='many': must be a whole number"),
    "no-data": (
        ["--set", "data={name: parquet, train: no-*.parquet, test: no.parquet}"],
        r"data\.train='no-\*\.parquet': no such file",
    ),
    "corrupt-data": (
        ["--set", "data={name: parquet, train: corrupt.parquet, test: good.parquet}"],
        r"cannot be read as parquet",
    ),
    "labels": (
        ["--set", "data={name: parquet, train: good.parquet, test: labels.parquet}"],
        r"data\.test: row 3.*7.*0 to 1",
    ),
    "profile": (["--profile", "quik"], r"profile='quik': unknown profile; did you mean 'quick'"),
    "device": (["--device", "warp"], r"device='warp': unknown; choose one of auto, cpu"),
    "out-is-a-file": (["--out", "good.parquet/runs"], r"out=good\.parquet/runs: .*good\.parquet is a file"),
    "unknown-option": (["--epochs", "3"], r"No such option"),
}


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line(recipe, tmp_path, case, command):
    parquet(tmp_path / "good.parquet", [0, 1, 0, 1])
    parquet(tmp_path / "corrupt.parquet", [0, 1, 0, 1], damage=True)
    parquet(tmp_path / "labels.parquet", [0, 1, 0, 7])
    before = sorted(tmp_path.rglob("*"))
    args, message = WRONG[case]
    assert_refused(reaper(command, recipe, *args), message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "missing.yaml"], r"recipe='missing\.yaml': no such file"),
        (["train"], r"Missing argument"),
        (["train", "tiny.yaml", "--scheme", "rerp"], r"'rerp': unknown scheme; did you mean 'repr'\?"),
        (["train", "tiny.yaml", "--seed", "-1"], r"--seed"),
        (["train", "tiny.yaml", "--threads", "0"], r"--threads"),
        (["compare", "tiny.yaml", "--seeds", "0"], r"seeds=0: must be 1 or more"),
        (["compare", "tiny.yaml", "--seeds", "three"], r"--seeds"),
        (["compare", "tiny.yaml", "--jobs", "0"], r"jobs=0: must be 1 or more"),
        (["compare", "tiny.yaml", "--ray", "--jobs", "2"], r"jobs=2: has no effect with ray='local'"),
        (["compare", "tiny.yaml", "--jobs", "2", "--ray"], r"jobs=2: has no effect with ray='local'"),
        (["compare", "tiny.yaml", "--ray", "h:1", "--jobs", "2"], r"jobs=2: has no effect with ray='h:1'"),
        (["compare", "tiny.yaml", "--schemes", ","], r"schemes: none named"),
        (["compare", "tiny.yaml", "--schemes", "standard,rerp"], r"'rerp': unknown scheme; did you mean 'repr'\?"),
        (
            ["compare", "tiny.yaml", "--schemes", "all,repr"],
            r"schemes=all,repr: all is every scheme already; name it al",
        ),
        (["train", "tiny.yaml", "--scheme", "all"], r"scheme='all': unknown scheme; "),
        (["compare", "tiny.yaml", "--schemes", "repr,repr"], r"repr is named twice"),
        (["compare", "tiny.yaml", "--detect", "0"], r"--detect"),
        (["compare", "tiny.yaml", "--detect", "101"], r"--detect"),
        (["compre", "tiny.yaml"], r"No such command"),
        (["inspect", "resnet21"], r"model\.name='resnet21': unknown model; did you mean 'resnet"),
        (["inspect", "missing.yaml"], r"recipe='missing\.yaml': no such file"),
        (["inspect", "cnet", "--set", "depht=3"], r"model\.options\.depht: unknown key; did you mean .*depth"),
        (["inspect", "cnet", "--set", "depth"], r"set='depth': must be key=value"),
        (["inspect", "cnet", "--set", "depth=[1"], r"set='depth=\[1': the value is not valid YAML"),
        (["inspect", "cnet", "--image", "32x32"], r"image='32x32': must be channels x height x width"),
        (["inspect", "cnet", "--fraction", "1.5"], r"fraction=1\.5: must be in \(0, 1\)"),
        (["inspect", "cnet", "--criterion", "magic"], r"magic"),
        (["inspect", "cnet", "--profile", "quick"], r"profile='quick': has no effect without a recipe"),
        (["inspect", "cnet", "--image", "99999999x99999x99999"], r"model\.name='cnet': cannot be built for 9999"),
        (
            ["inspect", "cnet", "--image", "1x8x8", "--classes", "9" * 15],
            r"cannot be built for 1x8x8 pixels",
        ),
        (
            ["inspect", "cnet", "--set", f"width={10**17}"],
            r"cannot be built for .*; make it smaller",
        ),
        (["inspect", "cnet", "--set", "depth=100000"], r"model\.options\.depth=100000: must be at most 1000"),
        (["inspect", "cnet", "--seed", "9" * 20], r"--seed"),
        (["train", "tiny.yaml", "--seed", "9" * 20], r"--seed"),
        (["train", "tiny.yaml", "--threads", "9" * 11], r"--threads"),
    ],
)
def test_bad_arguments_are_one_line(recipe, tmp_path, args, message):
    before = sorted(tmp_path.rglob("*"))
    assert_refused(reaper(*args), message)
    assert sorted(tmp_path.rglob("*")) == before


def assert_refused(done, message):
    assert done.exit_code == 2, done.output
    lines = done.output.splitlines()
    assert len(lines) == 1, done.output
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", ""])
def test_a_recipe_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "broken.yaml").write_text(text)
    assert_refused(reaper("train", "broken.yaml"), r"recipe='broken\.yaml'")


def test_a_folder_with_another_recipes_run_is_refused_and_kept(recipe, tmp_path):
    reaper("train", recipe)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_refused(reaper("train", recipe, "--set", "model.options.width=6"), r"holds a run of another recipe")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_fails_ends_with_1_and_one_line(recipe):
    done = reaper("train", recipe, "--set", "optim.lr=1e30")
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert re.match(r"error: epoch \d+.*the training loss is", done.output)


def test_a_comparison_with_failures_ends_with_1_and_names_them(recipe):
    done = reaper("compare", recipe, "--seeds", 1, "--set", "optim.lr=1e30")
    assert done.exit_code == 1
    assert "Failed: standard, seed 0: epoch" in done.output
    assert "Failed: repr, seed 0: epoch" in done.output
    assert "minus standard" not in done.output  # no table of nothing
    assert "Traceback" not in done.output


def test_debug_shows_the_traceback_before_the_line(recipe):
    done = reaper("train", recipe, "--set", "scheme.fraction=1.3", "--debug")
    assert done.exit_code == 2
    assert "Traceback (most recent call last)" in done.output
    assert done.output.splitlines()[-1].startswith("error: scheme.fraction=1.3")


def test_a_bug_is_not_called_an_error_of_the_user(recipe, monkeypatch):
    def broken(*args, **options):
        raise ValueError("a bug")

    monkeypatch.setattr("torchreaper.lab.recipe.load_recipe", broken)
    done = reaper("train", recipe)
    assert done.exit_code == 1
    assert isinstance(done.exception, ValueError)
    assert not isinstance(done.exception, UserError)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; finished epochs are kept: give the same command again to go on"),
        (
            OSError(28, "No space left on device", "/a"),
            1,
            "error: /a: No space left on device; make room there and give the same command again",
        ),
        (MemoryError(), 1, f"error: memory ran out; {LESS_MEMORY}"),
    ],
)
def test_what_comes_from_outside_is_one_line(recipe, monkeypatch, error, code, message):
    def stopped(*args, **options):
        raise error

    monkeypatch.setattr("torchreaper.lab.compare.perform", stopped)
    done = reaper("train", recipe)
    assert (done.exit_code, done.output) == (code, message + "\n")


def test_only_our_warnings_are_shown(recipe, monkeypatch):
    def noisy(*args, **options):
        warnings.warn("something about numpy", UserWarning, stacklevel=1)
        warnings.warn("gain=2.0: has no effect\nhere", NoEffectWarning, stacklevel=1)
        raise UserError("stop=here: enough")

    monkeypatch.setattr("torchreaper.lab.recipe.load_recipe", noisy)
    shown = reaper("train", recipe)
    assert shown.output.splitlines() == ["warning: gain=2.0: has no effect here", "error: stop=here: enough"]


# --- as a process of its own

WITHOUT_TORCH = """
import sys, types, pathlib
# The package's own __init__ stands for the method, which is torch; here it is about the command alone.
package = types.ModuleType("torchreaper")
package.__path__ = [str(pathlib.Path({source!r}))]
sys.modules["torchreaper"] = package
from torchreaper.lab.cli import main
sys.argv = ["reaper", *{args!r}]
try:
    main()
finally:
    heavy = sorted({{"torch", "scipy", "matplotlib", "datasets", "numpy"}} & set(sys.modules))
    print("heavy:", heavy, file=sys.stderr)
"""


@pytest.mark.parametrize("args", [["--help"], ["compare", "--help"], ["analyze", "--help"], ["--version"], ["train"]])
def test_help_needs_no_torch(args):
    source = str(Path(cli.__file__).parents[1])
    code = WITHOUT_TORCH.format(source=source, args=args)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "heavy: []"


def command():
    return [sys.executable, "-c", "from torchreaper.lab.cli import main; main()"]


def test_errors_of_the_process_go_to_stderr():
    bad = subprocess.run([*command(), "train", "no.yaml"], capture_output=True, text=True, timeout=120)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: recipe='no.yaml': no such file")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(recipe):
    args = [*command(), "train", recipe, "--threads", "1", "--set", "epochs=400"]
    # A shell's background jobs ignore Ctrl-C, and hand that on: this one is in the foreground, wherever the tests run.
    process = subprocess.Popen(
        args,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines = Path("runs/tiny/repr/seed-0/metrics.jsonl")
    deadline = time.monotonic() + 100
    while not (lines.exists() and lines.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; finished epochs are kept: give the same command again to go on\n"
    done = len(lines.read_text().splitlines())
    assert 3 < done < 400
    again = subprocess.run(args, capture_output=True, text=True, timeout=200)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(again.stdout.splitlines()) == 2
    assert [json.loads(line)["epoch"] for line in lines.read_text().splitlines()] == list(range(1, 401))


# --- the bar, on a terminal that is none


def on_a_terminal(width=120):
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, markup=False)


def plain(screen):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_leaves_transitions_notes_and_results(made_up, width):
    screen = on_a_terminal(width)
    with console.progress_on(screen, quiet=False, runs=2) as progress:
        for seed in range(2):
            progress.start_run(f"tiny / repr / seed {seed}", 12, 4, 0)
            for line in made_up.metrics(seed):
                for batch in range(1, 5):
                    progress.batch(line["epoch"], batch, 0.5)
                if line["epoch"] == 3:
                    kind = SimpleNamespace(kind="drop", filters={"conv2": (1, 2, 3), "conv3": (0,)})
                    progress.transition(3, kind)
                progress.epoch(line)
            progress.note("something [odd] happened")
            progress.end_run(made_up.result("repr", seed, 0.6789))
    text = plain(screen)
    for expected in (
        "tiny / repr / seed 1: epoch 3: 4 filters dropped (conv2 3, conv3 1)",
        "note: something [odd] happened",
        "repr seed 1: test accuracy 67.89 %, gap 10.00, 12 epochs, 6.0 s",
    ):
        assert expected in " ".join(text.split())


def test_the_line_beside_the_bar(made_up):
    last = made_up.metrics()[0] | {"test_accuracy": 0.7123, "images_per_second": 8123.4}
    wide = console.status_line(4, 12, "sub", 0.51234, last, wide=True)
    assert wide == "epoch 4/12  sub   loss 0.512  test 71.23 %  8,123 images/s"
    narrow = console.status_line(4, 12, "sub", 0.51234, last, wide=False)
    assert narrow == "4/12  sub   loss 0.512  71.2 %  8,123/s"
    assert console.status_line(1, 12, "", None, {}, wide=True) == "epoch 1/12"


@pytest.mark.parametrize(("kind", "verb"), [("drop", "dropped"), ("restore", "back"), ("at once", "re-initialised")])
def test_a_transition_names_its_largest_layers(kind, verb):
    filters = {f"conv{i}": tuple(range(i)) for i in range(1, 8)}
    scores = {"conv1": torch.zeros(1)} if verb != "back" else {}
    line = console.transition_line(20, SimpleNamespace(kind=kind, filters=filters, scores=scores))
    assert line == f"epoch 20: 28 filters {verb} (conv7 7, conv6 6, conv5 5, conv4 4, 3 layers more)"


def test_a_narrow_terminal_gets_intervals_on_lines_of_their_own():
    heads, rows = ["scheme", "test"], [["standard", "94.79 [92.40, 97.18]"]]
    screen = on_a_terminal(25)
    console.show_table(screen, heads, rows)
    assert "94.79\n" in re.sub(r" +\n", "\n", plain(screen))
    assert "…" not in plain(screen)
    wide = on_a_terminal(80)
    console.show_table(wide, heads, rows)
    assert "94.79 [92.40, 97.18]" in plain(wide)
