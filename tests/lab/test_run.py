"""One run: what it writes, what it depends on, how it goes on, how it fails."""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from tests.lab.seeing import Seeing
from tests.lab.tiny import ADAMW, recipe

from torchreaper.lab import models, training
from torchreaper.lab import run as run_module
from torchreaper.lab.checkpoints import save_checkpoint
from torchreaper.lab.data import load
from torchreaper.lab.errors import UserError
from torchreaper.lab.progress import Progress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import RunFailed, train
from torchreaper.lab.runs import read_events, read_metrics, read_result

PHASES = ["full", "sub", "sub", "full", "full"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Listener(Progress):
    """Writes down what it is told, and stops the run after an epoch if asked to."""

    def __init__(self, stop_after=None):
        self.calls, self.notes, self.losses, self.stop_after = [], [], [], stop_after

    def start_run(self, title, epochs, batches, done):
        self.calls.append(("start", title, epochs, batches, done))

    def batch(self, epoch, batch, loss):
        self.calls.append(("batch", epoch, batch))
        self.losses.append((epoch, batch, loss))

    def epoch(self, metrics):
        self.calls.append(("epoch", metrics["epoch"]))
        if metrics["epoch"] == self.stop_after:
            raise KeyboardInterrupt

    def transition(self, epoch, transition):
        self.calls.append((transition.kind, epoch))

    def note(self, text):
        self.notes.append(text)

    def end_run(self, result):
        self.calls.append(("end", result["fingerprint"]))


def stopped(out, after, **kwargs):
    """A run that was interrupted after some epoch; returns the listener."""
    listener = Listener(stop_after=after)
    with pytest.raises(KeyboardInterrupt):
        train(out=out, progress=listener, **kwargs)
    return listener


def initial(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def test_a_run_writes_its_folder(tmp_path):
    tiny = recipe()
    result = train(tiny, scheme="repr", seed=0, out=tmp_path)
    folder = tmp_path / "tiny" / "repr" / "seed-0"
    assert {path.name for path in folder.iterdir()} == {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "result.json"),
        *("result.json.sha256", "metrics.jsonl.sha256", "events.jsonl.sha256"),
        *("last.pt", "last.pt.sha256", "previous.pt", "previous.pt.sha256"),
    }
    metrics, events = read_metrics(folder), read_events(folder)
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5]
    assert [line["phase"] for line in metrics] == PHASES
    assert [(line["epoch"], line["kind"], line["cycle"]) for line in events] == [(1, "drop", 1), (3, "restore", 1)]
    for line in metrics:
        assert line["dropped"] == (events[0]["filters"] if line["phase"] == "sub" else {})
        assert set(line["overlap"]) == {"conv1", "conv2"}
        kept = {name: 6 - len(line["dropped"].get(name, [])) for name in line["overlap"]}
        expected = sum(mean * kept[name] for name, mean in line["overlap"].items())
        assert line["overlap_total"] == pytest.approx(expected)
        assert 0 <= line["train_accuracy"] <= 1
        # Of the 60 images the last 10 of an epoch's order make no full batch, and are left out.
        assert round(line["train_accuracy"] * 50, 6) == int(round(line["train_accuracy"] * 50, 6))
        assert line["lr"] == 0.05
        assert line["images_per_second"] > 0 < line["seconds"]
    assert len(events[0]["scores"]["conv2"]) == 6
    assert result == read_result(folder)
    last = metrics[-1]
    assert result["test_accuracy"] == last["test_accuracy"]
    assert result["validation_accuracy"] == last["validation_accuracy"]
    assert result["gap"] == pytest.approx(result["train_accuracy"] - result["test_accuracy"])
    assert result["seconds"] == pytest.approx(sum(line["seconds"] for line in metrics))
    assert result["layers"] == {"conv1": 6, "conv2": 6}
    assert (result["recipe"], result["scheme"], result["seed"], result["epochs"]) == ("tiny", "repr", 0, 5)
    written = Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text()))
    assert written.scheme_spec("repr") == tiny.scheme_spec("repr")
    assert json.loads((folder / "environment.json").read_text())["threads"] == 1


def test_progress_hears_everything_in_order(tmp_path):
    listener = Listener()
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path, progress=listener)
    expected = [("start", "tiny / repr / seed 0", 5, 2, 0)]
    for epoch in range(1, 6):
        expected += [("batch", epoch, batch) for batch in (1, 2)]
        expected += [("drop", 1)] if epoch == 1 else [("restore", 3)] if epoch == 3 else []
        expected += [("epoch", epoch)]
    assert listener.calls == [*expected, ("end", result["fingerprint"])]
    assert [loss is not None for _, batch, loss in listener.losses if batch == 2] == [True] * 5
    assert listener.notes == []


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="batch=61: larger than the 60 training images; use a smaller one"):
        train(recipe(batch=61), scheme="standard", seed=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_metrics_are_those_of_the_trained_network(tmp_path, monkeypatch):
    # Plain gradient descent, one batch: the running loss of epoch 1 is that of the initial weights.
    tiny = recipe(
        batch=60, optim={"name": "sgd", "lr": 1e-9}, model__options={"depth": 2, "width": 6}, data__validation=0
    )
    result = train(tiny, scheme="standard", seed=0, out=tmp_path)
    metrics = read_metrics(tmp_path / "tiny" / "standard" / "seed-0")
    assert metrics[0]["train_loss"] == pytest.approx(metrics[4]["train_loss"], rel=1e-4)
    assert metrics[0]["train_accuracy"] == result["train_accuracy"]
    assert metrics[0]["validation_accuracy"] is None
    assert result["validation_accuracy"] is None
    # Random weights: about the loss of guessing one of ten.
    assert metrics[0]["test_loss"] == pytest.approx(2.3, abs=0.2)


@pytest.mark.parametrize("optim", [recipe().optim.model_dump(), ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("scheme", ["standard", "repr"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path, scheme, optim):
    tiny = recipe(optim=optim, augment="crop-flip")
    fingerprints = [
        train(tiny, scheme=scheme, seed=seed, out=tmp_path / str(n))["fingerprint"] for n, seed in enumerate((0, 0, 1))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_what_is_drawn_while_a_run_is_built_changes_nothing(tmp_path, monkeypatch):
    """A library may draw when it is imported: in the first run of a process, and in no other."""
    real, found = models.build, []

    def build(*args, **options):
        if not found:
            random.random(), np.random.rand()
        return real(*args, **options)

    monkeypatch.setattr(models, "build", build)
    for out in ("first", "second"):
        train(recipe(epochs=1, scheme={"name": "standard"}), scheme="standard", seed=0, out=tmp_path / out)
        state = initial(tmp_path / out / "tiny" / "standard" / "seed-0")["rng"][0]
        found.append((state["python"][1].tolist(), state["numpy"][1].tolist(), state["numpy"][2]))
    assert found[0] == found[1]


def test_schemes_share_initial_weights_and_data_order(tmp_path):
    # Without a drop yet, RePr is standard training bit for bit.
    standard = stopped(tmp_path, 1, recipe=recipe(), scheme="standard", seed=3)
    repr_ = stopped(tmp_path, 1, recipe=recipe(), scheme="repr", seed=3)
    assert [loss for *_, loss in standard.losses] == [loss for *_, loss in repr_.losses]
    models = [initial(tmp_path / "tiny" / scheme / "seed-3")["model"] for scheme in ("standard", "repr")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0] if not name.startswith("conv2"))


def test_without_cycles_repr_is_standard_training_bit_for_bit(tmp_path):
    tiny = recipe(scheme__cycles=0)
    assert (
        train(tiny, scheme="repr", seed=0, out=tmp_path)["fingerprint"]
        == train(tiny, scheme="standard", seed=0, out=tmp_path)["fingerprint"]
    )


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [
        ("standard", {}),
        ("repr", {}),
        ("repr", {"optim": ADAMW, "augment": "crop-flip", "grad_clip": 0.5}),
        ("repr", {"schedule": {"name": "cosine", "warmup": 1}, "precision": "bf16-mixed"}),
        ("repr", {"schedule": {"name": "halving", "every": 4}, "precision": "64-true", "report": "validation"}),
        ("repr", {"scheme__criterion": "seeing", "epochs": 8, "scheme__cycles": 2}),
        ("repr", {"scheme__criterion": "seeing", "scheme__images": 30, "data__validation": 0}),
        ("repr", {"optim": {"name": "rmsprop", "lr": 0.01, "momentum": 0.5}, "scheme__reinit": "random"}),
    ],
)
@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, seeing, scheme, changes, after):
    tiny = recipe(**changes)
    whole = train(tiny, scheme=scheme, seed=1, out=tmp_path / "whole")
    stopped(tmp_path / "cut", after, recipe=tiny, scheme=scheme, seed=1)
    torch.rand(5)  # the caller's random numbers do not matter
    listener = Listener()
    result = train(tiny, scheme=scheme, seed=1, out=tmp_path / "cut", progress=listener)
    assert listener.calls[0][-1] == after
    assert listener.notes == []
    same = ("fingerprint", "test_accuracy", "train_accuracy", "validation_accuracy", "reported_epoch")
    assert {key: result[key] for key in same} == {key: whole[key] for key in same}
    for read in (read_metrics, read_events):
        logs = [read(tmp_path / out / "tiny" / scheme / "seed-1") for out in ("whole", "cut")]
        for line in (*logs[0], *logs[1]):
            for measured in ("seconds", "images_per_second"):
                line.pop(measured, None)
        assert logs[0] == logs[1]


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path)
    monkeypatch.setattr(run_module, "Run", None)
    listener = Listener()
    assert train(recipe(), scheme="repr", seed=0, out=tmp_path, progress=listener) == result
    assert listener.calls == []


def test_starting_afresh_repeats_it(tmp_path):
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path)
    listener = Listener()
    again = train(recipe(), scheme="repr", seed=0, out=tmp_path, progress=listener, resume=False)
    assert listener.calls[0][-1] == 0
    assert again["fingerprint"] == result["fingerprint"]


def test_a_run_of_another_recipe_is_refused_finished_or_not(tmp_path):
    stopped(tmp_path, 2, recipe=recipe(), scheme="repr", seed=0)
    text = r"holds a run of another recipe: optim\.lr is 0\.05 there, 0\.1 here; choose another out"
    with pytest.raises(UserError, match=text):
        train(recipe(optim__lr=0.1), scheme="repr", seed=0, out=tmp_path)
    train(recipe(), scheme="repr", seed=0, out=tmp_path)
    with pytest.raises(UserError, match=text):
        train(recipe(optim__lr=0.1), scheme="repr", seed=0, out=tmp_path)
    # Another number of seeds is not another run.
    train(recipe(seeds=9), scheme="repr", seed=0, out=tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    stopped(tmp_path / "a", 2, recipe=recipe(), scheme="repr", seed=0)
    stopped(tmp_path / "b", 1, recipe=recipe(model__options__width=7), scheme="repr", seed=0)
    folders = [tmp_path / out / "tiny" / "repr" / "seed-0" for out in "ab"]
    for name in ("last.pt", "last.pt.sha256"):
        shutil.copy(folders[0] / name, folders[1] / name)
    with pytest.raises(UserError, match=r"another recipe: model\.options\.width is 6 there, 7 here"):
        train(recipe(model__options__width=7), scheme="repr", seed=0, out=tmp_path / "b")


def test_a_checkpoint_that_the_code_no_longer_fits_is_refused(tmp_path):
    stopped(tmp_path, 2, recipe=recipe(), scheme="repr", seed=0)
    folder = tmp_path / "tiny" / "repr" / "seed-0"
    state = initial(folder)
    state["model"]["conv3.weight"] = state["model"].pop("conv2.weight")
    run_module.RunFolder(folder, state["run"]).save(2, state, state["lines"]["metrics"], [])
    with pytest.raises(UserError, match=r"^checkpoint: is of another model or version .*conv2\.weight"):
        train(recipe(), scheme="repr", seed=0, out=tmp_path)


def test_a_damaged_checkpoint_costs_an_epoch_and_no_bit(tmp_path):
    whole = train(recipe(), scheme="repr", seed=0, out=tmp_path / "whole")
    stopped(tmp_path / "cut", 3, recipe=recipe(), scheme="repr", seed=0)
    last = tmp_path / "cut" / "tiny" / "repr" / "seed-0" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    listener = Listener()
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path / "cut", progress=listener)
    assert len(listener.notes) == 1
    assert "damaged" in listener.notes[0]
    assert listener.calls[0][-1] == 2
    assert result["fingerprint"] == whole["fingerprint"]
    assert [line["epoch"] for line in read_metrics(last.parent)] == [1, 2, 3, 4, 5]
    assert [line["epoch"] for line in read_events(last.parent)] == [1, 3]


def test_a_lost_line_takes_no_second_from_the_result(tmp_path):
    stopped(tmp_path, 3, recipe=recipe(), scheme="repr", seed=0)
    log = tmp_path / "tiny" / "repr" / "seed-0" / "metrics.jsonl"
    first, second, third = log.read_text().splitlines(keepends=True)
    log.write_text(first + second.replace("{", "[", 1) + third)
    listener = Listener()
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path, progress=listener)
    assert listener.notes == [f"{log}: the lines of epochs [2] are lost; training is not affected"]
    there = [line["seconds"] for line in read_metrics(log.parent)]
    assert len(there) == 4
    assert result["seconds"] == pytest.approx(sum(there) + json.loads(second)["seconds"])


def test_a_run_that_an_older_version_began_has_the_seconds_of_its_lines(tmp_path):
    stopped(tmp_path, 2, recipe=recipe(), scheme="repr", seed=0)
    folder = tmp_path / "tiny" / "repr" / "seed-0"
    state = initial(folder)
    assert state.pop("seconds") == pytest.approx(sum(line["seconds"] for line in read_metrics(folder)))
    save_checkpoint(folder, state)
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path)
    assert result["seconds"] == pytest.approx(sum(line["seconds"] for line in read_metrics(folder)))


def test_another_number_of_threads_is_told_and_the_old_one_taken(tmp_path, caplog):
    whole = train(recipe(), scheme="repr", seed=0, out=tmp_path / "whole")
    stopped(tmp_path / "cut", 2, recipe=recipe(), scheme="repr", seed=0)
    torch.set_num_threads(2)
    with caplog.at_level(logging.WARNING, "torchreaper.lab"):
        result = train(recipe(), scheme="repr", seed=0, out=tmp_path / "cut")
    assert "the run used 1 threads and this process 2: going on with 1" in caplog.text
    assert torch.get_num_threads() == 2
    assert result["fingerprint"] == whole["fingerprint"]
    assert (whole["threads"], result["threads"]) == (1, 1)
    folder = tmp_path / "cut" / "tiny" / "repr" / "seed-0"
    assert [e["after_epoch"] for e in json.loads((folder / "environment.json").read_text())["resumed"]] == [2]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    good = stopped(tmp_path, 2, recipe=recipe(), scheme="repr", seed=0)
    assert good.calls[-1] == ("epoch", 2)
    folder = tmp_path / "tiny" / "repr" / "seed-0"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "environment.json"}
    real = training.data.training

    def spoilt(*args, **options):
        for number, (images, labels) in enumerate(real(*args, **options), 1):
            yield images * (float("nan") if number == 2 else 1), labels

    monkeypatch.setattr(training.data, "training", spoilt)
    with pytest.raises(
        RunFailed, match=r"^epoch 3, step 2: the training loss is nan; lower optim\.lr or set grad_clip"
    ):
        train(recipe(), scheme="repr", seed=0, out=tmp_path)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "environment.json"}
    assert read_result(folder) is None


HEADED = """
import torch
from torch import nn


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc, self.extra = nn.Linear(4, 10), nn.Linear(4, 10)

    def forward(self, x):
        x = self.last(self.conv(x).relu()).relu().mean((2, 3))
        return self.fc(x) + self.extra(x) if self.training else self.fc(x)
"""


def test_weights_that_are_not_finite_are_never_saved_where_judging_cannot_see_them_either(tmp_path, monkeypatch):
    """Spoilt in the last step of an epoch, in a head that only training has: the run could never go on from there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headed_nets.py").write_text(HEADED)
    mine = recipe(model={"name": "headed_nets:Headed"})
    real, calls = training.Run._backward, []

    def spoilt(self, images, targets):
        found = real(self, images, targets)
        calls.append(1)
        if len(calls) == 3 * self.steps:
            self.module.extra.weight.grad[0] = torch.inf
        return found

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "_backward", spoilt)
        with pytest.raises(RunFailed, match=r"^epoch 3: the values of 'extra\.weight' are not finite; lower optim\.lr"):
            train(mine, scheme="repr", seed=0, out=tmp_path / "cut")
    assert [line["epoch"] for line in read_metrics(tmp_path / "cut" / "tiny" / "repr" / "seed-0")] == [1, 2]
    went_on = train(mine, scheme="repr", seed=0, out=tmp_path / "cut")
    whole = train(mine, scheme="repr", seed=0, out=tmp_path / "whole")
    assert went_on["fingerprint"] == whole["fingerprint"]


def test_nor_are_those_of_the_average_that_is_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headed_too.py").write_text(HEADED)
    mine = recipe(model={"name": "headed_too:Headed"}, scheme={"name": "ema"})
    real = training.Run._train

    def spoilt(self, epoch, progress):
        found = real(self, epoch, progress)
        if epoch == 2:
            with torch.no_grad():
                self.judged.extra.weight[0] = torch.inf
        return found

    monkeypatch.setattr(training.Run, "_train", spoilt)
    what = r"^epoch 2: the values of 'extra\.weight' in the network that is judged are not finite; lower optim\.lr"
    with pytest.raises(RunFailed, match=what):
        train(mine, scheme="ema", seed=0, out=tmp_path / "out")
    assert [line["epoch"] for line in read_metrics(tmp_path / "out" / "tiny" / "ema" / "seed-0")] == [1]


def test_an_infinite_statistic_is_not_saved_though_a_relu_hides_it(tmp_path, monkeypatch):
    real = training.Run._backward

    def spoilt(self, images, targets):
        found = real(self, images, targets)
        norms = [module for module in self.module.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        norms[-1].running_mean[0] = torch.inf
        return found

    monkeypatch.setattr(training.Run, "_backward", spoilt)
    with pytest.raises(RunFailed, match=r"^epoch 1: the values of '.*running_mean' are not finite"):
        train(recipe(), scheme="standard", seed=0, out=tmp_path)
    assert read_metrics(tmp_path / "tiny" / "standard" / "seed-0") == []


def test_a_rate_that_is_far_too_high_is_a_failed_run_in_the_same_place_every_time(tmp_path):
    wild = recipe(optim={"name": "sgd", "lr": 1e6}, model__options={"depth": 2, "width": 6})
    texts = set()
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"^epoch 1") as error:
            train(wild, scheme="standard", seed=0, out=tmp_path)
        texts.add(str(error.value))
    assert len(texts) == 1
    assert read_metrics(tmp_path / "tiny" / "standard" / "seed-0") == []


def test_a_criterion_that_fails_is_a_failed_run_with_its_epoch(tmp_path, seeing):
    blind = recipe(scheme__criterion="failing", scheme__full=2, scheme__sub=1)
    text = "^epoch 2: batches: nothing can be seen; switch on the light$"
    with pytest.raises(RunFailed, match=text):
        train(blind, scheme="repr", seed=0, out=tmp_path)
    assert [line["epoch"] for line in read_metrics(tmp_path / "tiny" / "repr" / "seed-0")] == [1]


def test_criteria_read_the_validation_images_in_the_networks_precision(tmp_path, seeing, monkeypatch):
    read, real = [], Seeing.scores

    def scores(self, bank):
        read.append([(images.dtype, labels) for images, labels in self.batches])
        return real(self, bank)

    monkeypatch.setattr(Seeing, "scores", scores)
    tiny = recipe(scheme__criterion="seeing", precision="64-true", eval_batch=15)
    train(tiny, scheme="repr", seed=0, out=tmp_path)
    validation = load(tiny.data).validation
    # How many images are judged at a time is nothing to a criterion: it must not change what goes.
    assert [len(labels) for _, labels in read[0]] == [20]
    assert {dtype for dtype, _ in read[0]} == {torch.float64}
    labels = torch.cat([labels for _, labels in read[0]])
    assert labels.bincount(minlength=10).tolist() == validation.labels.bincount(minlength=10).tolist()


def test_a_full_disk_is_a_failed_run_that_goes_on_later(tmp_path, monkeypatch):
    whole = train(recipe(), scheme="repr", seed=0, out=tmp_path / "whole")
    real, calls = run_module.RunFolder.save, []

    def full(self, epoch, *args):
        calls.append(epoch)
        if epoch == 3:
            raise OSError(28, "No space left on device")
        real(self, epoch, *args)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.RunFolder, "save", full)
        with pytest.raises(RunFailed, match=r"^epoch 3: cannot be saved in .*No space left on device"):
            train(recipe(), scheme="repr", seed=0, out=tmp_path / "cut")
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path / "cut")
    assert result["fingerprint"] == whole["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "kwargs", "text"),
    [
        ({"data": {"name": "parquet", "train": "no-such-*.parquet", "test": "x"}}, {}, "no-such"),
        ({"data__limit": 5000}, {}, "limit=5000"),
        ({"scheme__fraction": 0.01}, {}, "^scheme: fraction=0.01"),
        ({"scheme__skip": ["conv*"]}, {}, "^scheme: "),
        ({}, {"scheme": "repro"}, "unknown scheme"),
        (
            {"scheme__criterion": "seeing", "scheme__images": 21},
            {},
            r"^scheme\.images=21: only 20 validation images are there; use images <= 20$",
        ),
        (
            {"scheme__criterion": "seeing", "scheme__images": 61, "data__validation": 0},
            {},
            r"^scheme\.images=61: only 60 training images are there; use images <= 60$",
        ),
        ({}, {"device": "tpu"}, "^device='tpu'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, seeing, changes, kwargs, text):
    with pytest.raises(UserError, match=text):
        train(recipe(**changes), **{"scheme": "repr", "seed": 0, "out": tmp_path / "out", **kwargs})
    assert not (tmp_path / "out").exists()


def test_the_validation_split_chooses_the_first_best_epoch_of_the_whole_network(tmp_path, monkeypatch):
    tiny = recipe(report="validation", epochs=9, scheme__cycles=2)
    # By epoch: the sub-networks of 2, 3, 5 and 6 are better than any whole network, and 7 and 9 are equal.
    accuracies = iter([0.1, 0.9, 0.9, 0.2, 0.9, 0.9, 0.6, 0.3, 0.6])
    classification = sys.modules["torchreaper.lab.tasks.classification"]
    real = classification.evaluate

    def scripted(fabric, model, split, **kwargs):
        loss, accuracy = real(fabric, model, split, **kwargs)
        return loss, next(accuracies) if len(split) == tiny.data.validation else accuracy

    monkeypatch.setattr(classification, "evaluate", scripted)
    result = train(tiny, scheme="repr", seed=0, out=tmp_path)
    metrics = read_metrics(tmp_path / "tiny" / "repr" / "seed-0")
    assert [line["phase"] for line in metrics] == ["full", "sub", "sub"] * 2 + ["full"] * 3
    assert (result["report"], result["reported_epoch"], result["validation_accuracy"]) == ("validation", 7, 0.6)
    assert result["test_accuracy"] == metrics[6]["test_accuracy"]
    assert result["gap"] == result["train_accuracy"] - result["test_accuracy"]


def test_order_and_augmentation_of_an_epoch_depend_on_the_seed_and_the_epoch_only(tmp_path, monkeypatch):
    data, orders, crops = training.data, [], []
    batches, augment = data.batches, data.augment
    batching, splitting = (sys.modules[f"torchreaper.lab.data.{name}"] for name in ("batches", "split"))

    def ordered(split, *, seed, epoch, shuffle, **kwargs):
        if shuffle:
            orders.append((seed, epoch))
        return batches(split, seed=seed, epoch=epoch, shuffle=shuffle, **kwargs)

    def cropped(images, kind, generator, *share):
        crops.append(generator.initial_seed())
        return augment(images, kind, generator, *share)

    monkeypatch.setattr(batching, "batches", ordered)
    monkeypatch.setattr(splitting, "augment", cropped)
    for scheme in ("standard", "repr"):
        train(recipe(augment="crop-flip"), scheme=scheme, seed=7, out=tmp_path)
    epochs = [1, 2, 3, 4, 5] * 2
    assert orders == [(7, epoch) for epoch in epochs]
    seeds = [seed for seed in crops if seed != data.epoch_seed(0, 0, "augment")]  # that of reading without any
    assert seeds == [data.epoch_seed(7, epoch, "augment") for epoch in epochs for _ in range(2)]


def test_precision_is_that_of_the_recipe(tmp_path):
    for precision, dtype in (("64-true", torch.float64), ("bf16-mixed", torch.float32)):
        tiny = recipe(precision=precision, name=precision)
        train(tiny, scheme="repr", seed=0, out=tmp_path)
        state = initial(tmp_path / precision / "repr" / "seed-0")
        assert state["model"]["conv1.weight"].dtype == dtype
        assert state["optimizer"]["state"][0]["momentum_buffer"].dtype == dtype


def test_clipped_gradients_are_clipped(tmp_path):
    # Without momentum and decay, the first step is at most lr * clip long.
    lengths = []
    for clip in (None, 1e-3):
        tiny = recipe(
            grad_clip=clip, name=f"clip-{clip}", batch=60, epochs=4, optim={"name": "sgd", "lr": 1.0},
            model__options={"depth": 2, "width": 6},
        )  # fmt: skip
        stopped(tmp_path, 1, recipe=tiny, scheme="standard", seed=0)
        moved = initial(tmp_path / tiny.name / "standard" / "seed-0")["model"]
        fresh = models.build(
            "cnet", tiny.model.options, in_channels=1, classes=10, image_size=(8, 8), generator_seed=0
        ).state_dict()
        lengths.append(sum(((moved[n] - fresh[n]) ** 2).sum() for n in fresh).sqrt().item())
    assert lengths[0] > 10 * lengths[1]
    assert lengths[1] == pytest.approx(1e-3, rel=1e-2)


def test_the_data_are_as_they_were(tmp_path):
    dataset = load(recipe().data)
    before = dataset.train.images.clone(), dataset.train.labels.clone()
    train(recipe(augment="crop-flip"), scheme="standard", seed=0, out=tmp_path)
    assert torch.equal(dataset.train.images, before[0])
    assert torch.equal(dataset.train.labels, before[1])
