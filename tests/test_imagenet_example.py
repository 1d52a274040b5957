"""examples/imagenet.py on a few small images: it learns, is killed, and goes on to the same bits, by torchrun too."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.imagenet import EXAMPLE
from tests.lab.test_processes import TORCHRUN, ended, started
from tests.zoo import torchvision_importable

CLASSES = ("blue", "green", "red")
SCHEDULE = ["--full", "1", "--sub", "2", "--cycles", "2", "--epochs", "8"]
PHASES = ["full", "sub", "sub", "full", "sub", "sub", "full", "full"]
MOVES = {1: "drop", 3: "restore", 4: "drop", 6: "restore"}  # after these epochs
SMALL = ["--size", "32", "--batch", "12", "--lr", "0.01", *SCHEDULE]  # three steps an epoch
COMPACT = ["--arch", "resnet18", "--workers", "2"]
MASKED = [
    "--arch",
    "shufflenet_v2_x0_5",
    "--workers",
    "0",
    "--amp",
    "bf16",
    "--channels-last",
    "--subnetwork",
    "masked",
]
TOGETHER = ["--arch", "shufflenet_v2_x0_5", "--workers", "0", "--amp", "fp16", "--subnetwork", "compact"]
ONE_CYCLE = ["--cycles", "1", "--epochs", "4"]
IN_A_PHASE = 14  # the training step in which processes are killed: the second of epoch 5
ALONE = [sys.executable, "-W", "error", "-m", "tests.imagenet"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Noise in which one colour is stronger: 12 images of each to train on, 7 to judge by."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 7)):
        for colour, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 160, (32, 32, 3))
                pixels[..., 2 - colour] += 90
                Image.fromarray(pixels.astype("uint8")).save(folder / part / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def rows(images, tmp_path_factory) -> Path:
    """The same images, in the same order, as parquet files of Hugging Face."""
    folder = tmp_path_factory.mktemp("rows")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    for part, name in (("train", "train"), ("val", "validation")):
        files = sorted((images / part).rglob("*.png"))
        columns = {"image": [{"bytes": f.read_bytes(), "path": None} for f in files], "label": []}
        columns["label"] = [CLASSES.index(f.parent.name) for f in files]
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")
    return folder


def killed(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=150)
    assert process.returncode == -9


@pytest.fixture(scope="module")
def runs(images, rows, tmp_path_factory) -> Path:
    """Folders of whole runs, and of those that were killed and then given again; what they said is in `said`."""
    out = tmp_path_factory.mktemp("runs")
    cache = {"HF_HOME": str(out / "cache")}

    def start(name: str, data: Path, options: list[str], **more: str) -> subprocess.Popen[str]:
        return started([*ALONE, str(data), *SMALL, *options, "--out", str(out / name)], **cache, **more)

    wholes = {
        "compact": start("compact", images, COMPACT),
        "masked": start("masked", images, MASKED),
        "rows": start("rows", rows, MASKED),
    }
    dying = {"compact killed": (images, COMPACT), "masked killed": (images, MASKED)}
    doomed = [start(n, *what, KILL=f"0:{IN_A_PHASE}:{out / n}.mark") for n, what in dying.items()]
    for process in doomed:
        killed(process)
    for name in dying:
        shutil.copy(out / name / "checkpoint.pt", out / f"{name}.pt")
    again = {name: start(name, *what) for name, what in dying.items()}
    for name, process in (wholes | again).items():
        said, errors = ended(process)
        assert errors == "" or name == "rows", errors  # datasets shows its progress there
        (out / name / "said").write_text(said)
    return out


def end(folder: Path) -> dict[str, Any]:
    """Weights, and all the optimizer, the schedule and the scaler hold, as flat tensors and numbers."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == state["settings"]["epochs"]
    assert state["scheme"]["dropped"] == {}
    return flat({name: state[name] for name in ("model", "optimizer", "schedule", "scaler")})


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {key: one for part, inner in value.items() for key, one in flat(inner, f"{name} {part}").items()}
    return {name: value}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what is not the same, to the bit."""
    assert one.keys() == other.keys()
    alike = {k: torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()}
    return [name for name, so in alike.items() if not so]


def epochs(said: str) -> list[re.Match[str]]:
    shown = r"^epoch +(\d+)  (full|sub ) +lr [\d.]+  loss [\d.]+  train ([\d.]+)%  val ([\d.]+)%  [\d.]+ s"
    return list(re.finditer(shown + r"(?:  (\w+) (\d+) filters)?$", said, re.MULTILINE))


def test_it_learns_through_two_cycles_and_says_so_in_a_line_an_epoch(runs):
    said = (runs / "compact" / "said").read_text()
    lines = epochs(said)
    assert [int(line[1]) for line in lines] == list(range(1, 9))
    assert [line[2].strip() for line in lines] == PHASES
    assert {int(line[1]): line[5] for line in lines if line[5]} == MOVES
    assert all(int(line[6]) > 1000 for line in lines if line[5])  # 30 % of a ResNet-18's
    assert said.count("multiply-adds; compact\n") == 1
    assert float(lines[0][3]) < 60
    assert float(lines[-1][3]) > 90
    assert float(lines[-1][4]) > 60
    assert len(EXAMPLE.read_text().splitlines()) <= 200


@pytest.mark.parametrize("name", ["compact", "masked"])
def test_killed_in_a_phase_it_goes_on_to_the_same_bits(runs, name):
    state = torch.load(runs / f"{name} killed.pt", weights_only=True)
    assert state["epoch"] == 4
    assert sum(map(len, state["scheme"]["dropped"].values())) > 500
    said = (runs / f"{name} killed" / "said").read_text()
    assert said.startswith(f"{runs / f'{name} killed'}/checkpoint.pt: goes on after epoch 4\n")
    assert [line[1] for line in epochs(said)] == ["5", "6", "7", "8"]
    assert not differing(end(runs / name), end(runs / f"{name} killed"))


def test_half_precision_and_channels_last_were_on(runs):
    model = torch.load(runs / "masked" / "checkpoint.pt", weights_only=True)["model"]
    weight = model["conv5.0.weight"]
    assert model["stage2.0.branch2.5.weight"].is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float32
    assert len(epochs((runs / "masked" / "said").read_text())) == len(PHASES)


def test_rows_of_hugging_face_are_the_images_in_folders(runs):
    assert not differing(end(runs / "masked"), end(runs / "rows"))


@pytest.mark.slow
def test_two_processes_by_torchrun_and_an_elastic_restart_come_to_the_same(images, tmp_path):
    settings = [*SMALL, *TOGETHER, *ONE_CYCLE]
    script = [*TORCHRUN, "--max-restarts", "1", "-m", "tests.imagenet", str(images), *settings, "--out"]
    whole, _ = ended(started([*script, str(tmp_path / "whole")]))
    assert [line[2].strip() for line in epochs(whole)] == PHASES[:4]
    assert "multiply-adds; compact\n" in whole
    mark = tmp_path / "mark"
    restarted, _ = ended(started([*script, str(tmp_path / "killed")], KILL=f"1:8:{mark}"))
    assert mark.exists()
    assert f"{tmp_path / 'killed'}/checkpoint.pt: goes on after epoch 2\n" in restarted
    assert not differing(end(tmp_path / "whole"), end(tmp_path / "killed"))


@pytest.fixture(scope="module")
def example() -> Any:
    torchvision_importable()
    spec = importlib.util.spec_from_file_location("imagenet_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusal(example: Any, *arguments: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        example.main([str(one) for one in arguments])
    assert "\n" not in str(caught.value.code)
    return str(caught.value.code)


def test_wrong_data_is_named_in_one_line(example, images, rows, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert "nowhere/train" in refusal(example, nowhere)
    assert refusal(example, images, "--batch", 37) == "--batch 37: more than the 36 images there are to train on"
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(next((images / "val" / "red").iterdir()), tmp_path / name)
    assert refusal(example, tmp_path) == f"data={tmp_path}: classes of training or validation alone: b"
    (tmp_path / "val" / "b").mkdir()
    assert "no valid file for the classes b" in refusal(example, tmp_path)
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(rows / "train.parquet", lone)
    assert refusal(example, lone).startswith(f"data={lone}: needs splits train and validation or test, with features")


def test_settings_that_cannot_be_are_named_in_one_line(example, images, monkeypatch):
    assert refusal(example, images, "--epochs", 90).startswith("--epochs 90: must be more than --cycles x (--full + ")
    if not torch.cuda.is_available():
        assert refusal(example, images, "--sync-bn").startswith("--sync-bn: torch trains with it on several GPUs only")
    assert refusal(example, images, *SMALL, "--fraction", 3).startswith("fraction=3.0: ")
    assert refusal(example, images, *SMALL, "--arch", "vit_b_16", "--size", 224).startswith(
        "model=VisionTransformer: no"
    )
    monkeypatch.setattr(example, "WORLD", 3)
    assert refusal(example, images).startswith("--batch 256: 3 processes cannot share it evenly")


def test_a_checkpoint_of_other_settings_is_named_and_kept(example, images, runs):
    path = runs / "masked" / "checkpoint.pt"
    before = path.read_bytes()
    options = [*SMALL, *MASKED, "--out", runs / "masked", "--lr", "0.02", "--amp", "none"]
    text = f"{path}: is of other settings: lr was 0.01, is 0.02; amp was bf16, is none; give --out another folder, or"
    assert refusal(example, images, *options).startswith(text)
    assert path.read_bytes() == before


def test_a_training_that_diverges_ends_and_keeps_the_epoch_before(example, images, tmp_path):
    options = [*SMALL, "--arch", "shufflenet_v2_x0_5", "--workers", 0, "--cycles", 0, "--lr", "1e30"]
    text = refusal(example, images, *options, "--out", tmp_path)
    assert re.match(r"epoch \d: the training loss is (nan|inf); lower --lr", text)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_precision_is_the_one_asked_for(example, dtype):
    seen = []

    class Net(torch.nn.Linear):
        def forward(self, images):
            logits = super().forward(images.mean((2, 3)))
            seen.append(logits.dtype)
            return logits

    example.one_pass(
        Net(3, 2), [(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))], dtype
    )
    assert seen == [dtype or torch.float32]


def test_a_checkpoint_that_cannot_be_read_is_named_and_kept(example, images, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    text = refusal(example, images, *SMALL, *MASKED, "--out", tmp_path)
    assert text == f"{tmp_path / 'checkpoint.pt'}: cannot be read; move it away, or give --resume no"
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"half a file"


def test_help_shows_every_option_and_its_default(example, capsys):
    with pytest.raises(SystemExit, match="0"):
        example.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("torchrun --nproc-per-node 8", "hf:NAME", "(100)", "(0.0001)", "auto: masked in many processes"):
        assert text in shown
