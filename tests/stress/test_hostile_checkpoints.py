"""Files that would run code where they are unpickled, in every place that a checkpoint is read from."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tests.lab.tiny import TINY, recipe
from tests.stress.gadgets import FORMATS, archive, bomb, gadgets, legacy, plain
from tests.stress.memory import Peak
from tests.stress.recording import lengths
from typer.testing import CliRunner

import torchreaper as tr
from torchreaper import loading
from torchreaper.integrations import timm_saving
from torchreaper.integrations.adapter import Adapter
from torchreaper.lab import cli, runs, snapshots
from torchreaper.lab.analyze.subjects import state_dict_in
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train

ROOT = Path(__file__).parents[2]
EXAMPLE = [sys.executable, "-m", "tests.imagenet", "--size", "8", "--batch", "1", "--arch", "resnet18"]


def run_state(value):
    """A whole checkpoint of a run, the value in the place of its weights."""
    return {"run": {}, "epoch": 1, "lines": {"metrics": {}, "events": []}, "model": {"conv.weight": value}}


def nothing(_):
    return None


def as_last(folder, data):
    write(folder / runs.LAST, data)
    runs.load_checkpoint(folder, nothing)


def as_the_one_before(folder, data):
    write(folder / runs.LAST, b"damaged", b"something else")
    write(folder / runs.PREVIOUS, data)
    runs.load_checkpoint(folder, nothing)


def as_a_snapshot(folder, data):
    path = folder / snapshots.FOLDER / "epoch-0001.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    loading.load(snapshots.find(folder)[1])


def as_weights(folder, data):
    (folder / "model.pt").write_bytes(data)
    state_dict_in(folder / "model.pt")


def as_a_run_of_timm(folder, data):
    (folder / timm_saving.LAST).write_bytes(data)
    timm_saving.load(folder, {"args": {}, "repr": {}}, Namespace(rank=0))


def as_text_in_a_trainers_state(_, data):
    Adapter.read_text(base64.b64encode(data).decode())


PLACES = (as_last, as_the_one_before, as_a_snapshot, as_weights, as_a_run_of_timm, as_text_in_a_trainers_state)


def write(path, data, summed=None):
    path.write_bytes(data)
    digest = hashlib.sha256(data if summed is None else summed).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")


def fired(canary):
    """Whether the canary is there; it is taken away."""
    there = os.path.lexists(canary)
    if there:
        canary.rmdir() if canary.is_dir() and not canary.is_symlink() else canary.unlink()
    return there


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of files that gadgets open
def test_every_gadget_works_where_a_file_is_trusted(tmp_path):
    """Else the tests below would show nothing."""
    canary = tmp_path / "canary"
    for name, gadget in gadgets(canary).items():
        pickle.loads(plain({"a": [gadget]}))
        assert fired(canary), name
        for form in (archive, legacy):
            torch.load(io.BytesIO(form(gadget)), weights_only=False)
            assert fired(canary), name


@lengths(300, 3_000)
def test_no_crafted_file_runs_code(times, trials, tmp_path):
    count = trials(
        "hostile files",
        "checkpoints, snapshots, weights and trainers' states with code in them, in 7 formats and 6 places: refused in "
        "one line, none of it run",
        "files",
    )
    canary, draw = tmp_path / "canary", random.Random(times)
    every = list(itertools.product(gadgets(canary).items(), FORMATS, PLACES))
    draw.shuffle(every)
    shapes = (lambda gadget: gadget, run_state, lambda gadget: {"state_dict": {"a": torch.zeros(2), "b": gadget}})
    for number, ((name, gadget), form, place) in zip(range(times), itertools.cycle(every)):
        with count.one():
            folder = tmp_path / str(number % 10)
            folder.mkdir(exist_ok=True)
            for old in folder.glob("*.pt"):
                old.unlink()
            what = f"{name} as {form.__name__} {place.__name__}"
            with pytest.raises(Exception) as caught:  # noqa: PT011  (each place has its own)
                place(folder, form(draw.choice(shapes)(gadget)))
            assert place is as_a_snapshot or "\n" not in str(caught.value), (
                what
            )  # snapshots: left out by those who look
            assert place is as_a_snapshot or isinstance(caught.value, UserError | tr.ReaperError), what
            assert not os.path.lexists(canary), what
    count.note = f"{len(gadgets(canary))} gadgets"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is not finished, and its recipe as a file."""
    out = tmp_path_factory.mktemp("trained")
    (out / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "snapshots": 2}))
    train(recipe(snapshots=2), scheme="repr", seed=0, out=out / "runs")
    return out


@lengths(4, 20)
def test_commands_say_it_in_one_line(times, trials, trained, tmp_path, monkeypatch):
    """The whole way: the command, its exit code, what it prints."""
    count = trials(
        "hostile files",
        "reaper train and reaper analyze on runs and weights with code in them: one line, exit code 2 (snapshots: left "
        "out with a note), none of it run",
        "commands",
    )
    monkeypatch.chdir(trained)
    canary, draw = tmp_path / "canary", random.Random(times)
    known, folder = gadgets(canary), trained / "runs" / "tiny" / "repr" / "seed-0"
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for number in range(times):
        name = draw.choice(list(known))
        data = draw.choice(FORMATS)(draw.choice((run_state, lambda gadget: gadget))(known[name]))
        kind = ("train", "analyze run", "analyze weights", "snapshot")[number % 4]
        with count.one():
            if kind == "snapshot":
                write(folder / "snapshots" / "epoch-0004.pt", data)
            elif kind == "analyze weights":
                (trained / "model.pt").write_bytes(data)
            else:
                write(folder / runs.LAST, data)
                (folder / runs.RESULT).unlink(missing_ok=True)
            command = {
                "train": ["train", "tiny.yaml", "--quiet"],
                "analyze run": ["analyze", str(folder), "--quiet"],
                "analyze weights": ["analyze", "model.pt", "--recipe", "tiny.yaml", "--quiet"],
                "snapshot": ["analyze", str(folder), "--images", "20", "--criteria", "magnitude", "--quiet"],
            }[kind]
            ended = CliRunner().invoke(cli.app, command)
            assert not os.path.lexists(canary), (name, command)
            if kind == "snapshot":
                assert ended.exit_code == 0, ended.stderr
                assert "epoch-0004.pt: cannot be read; left out" in ended.stderr
            else:
                assert ended.exit_code == 2, (ended.stdout, ended.stderr)
                assert ended.stderr.startswith("error: ")
                assert ended.stderr.count("\n") == 1
            for path, old in whole.items():
                path.write_bytes(old)


@pytest.mark.stress
def test_the_example_of_imagenet_refuses_it(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
    canary = tmp_path / "canary"
    for part in ("train", "val"):
        Image.new("RGB", (8, 8)).save(tmp_path / part / "a" / "0.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(archive(gadgets(canary)["os.system"]))
    ended = subprocess.run(
        [*EXAMPLE, str(tmp_path), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 1
    assert ended.stderr == f"{tmp_path / 'out' / 'checkpoint.pt'}: cannot be read; move it away, or give --resume no\n"
    assert not canary.exists()


@lengths(1, 4)
def test_an_archive_that_unpacks_without_end_is_refused_before_it_does(times, trials, tmp_path):
    count = trials(
        "hostile files",
        "checkpoints of some kilobytes that unpack to 128 MB to 1 GB: refused, and less than 60 MB of memory taken",
        "files",
    )
    for number in range(times):
        data = bomb((1 + number % 8) * 2**27)
        (tmp_path / "model.pt").write_bytes(data)
        assert len(data) < 10 * 2**20
        with count.one():
            peak = Peak()
            with pytest.raises(tr.ReaperError, match=r"^'.*/data\.pkl' in it is compressed, as nothing is that"):
                loading.load(tmp_path / "model.pt")
            assert peak.taken() < 60


def test_json_of_a_trainer_without_a_state_of_ours_is_refused():
    for text in ("", "AAAA", json.dumps({}), base64.b64encode(archive([1])).decode()):
        with pytest.raises(tr.ReaperError, match=r"^checkpoint: .*; resume from another, or from none$"):
            Adapter.read_text(text)
