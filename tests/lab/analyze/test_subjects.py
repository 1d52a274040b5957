"""What targets stand for, and how weights are read from files of any training code."""

import dataclasses
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.lab.tiny import recipe
from torch import nn

from torchreaper.lab.analyze import Subject, find_subjects
from torchreaper.lab.analyze.subjects import load_weights, state_dict_in
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import read_events

pytestmark = pytest.mark.usefixtures("one_thread")


def refused(call, *args, **options):
    with pytest.raises(UserError) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3))


def loaded(path):
    """The network with the weights of a file."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3))
    load_weights(model, state_dict_in(path), path)
    return model.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- targets


def test_a_run_folder_is_a_subject_of_one_network(trained):
    (subject,) = find_subjects([trained / "repr" / "seed-1"])
    (source,) = subject.sources
    assert subject.label == "repr/seed-1"
    assert (source.path, source.seed, source.is_run) == (trained / "repr" / "seed-1", 1, True)
    assert source.recipe.scheme["name"] == "repr"


def test_a_schemes_folder_is_one_subject_with_its_seeds(trained):
    (subject,) = find_subjects([trained / "repr"])
    assert subject.label == "tiny/repr"
    assert [source.seed for source in subject.sources] == [0, 1]


def test_seeds_are_in_the_order_of_numbers(trained, tmp_path):
    for seed in (0, 2, 10):
        shutil.copytree(trained / "repr" / "seed-0", tmp_path / "repr" / f"seed-{seed}")
    (subject,) = find_subjects([tmp_path / "repr"])
    assert [source.seed for source in subject.sources] == [0, 2, 10]


def test_a_recipes_folder_is_a_subject_for_each_scheme_standard_first(trained):
    subjects = find_subjects([trained])
    assert [subject.label for subject in subjects] == ["standard", "repr"]
    assert [[source.path.name for source in subject.sources] for subject in subjects] == [["seed-0", "seed-1"]] * 2


def test_targets_stand_in_the_order_they_are_named_in(trained):
    labels = [subject.label for subject in find_subjects([trained / "repr", trained / "standard" / "seed-1"])]
    assert labels == ["repr", "seed-1"]


def test_five_subjects_are_too_many(trained, tmp_path):
    for name in "abcde":
        shutil.copytree(trained / "repr" / "seed-0", tmp_path / name / "seed-0")
    assert len(find_subjects([tmp_path / name for name in "abcd"])) == 4
    assert refused(find_subjects, [tmp_path]).startswith("targets: 5 of them; at most 4 can stand side by side")


def test_one_named_twice_is_refused_by_name(trained, monkeypatch):
    monkeypatch.chdir(trained)
    twice = [Path("repr"), Path("standard"), Path("standard/../repr")]
    assert refused(find_subjects, twice) == "targets: standard/../repr is named twice; name each once"


@pytest.mark.parametrize(
    ("name", "value"), [("recipe", recipe()), ("model", "cnet"), ("options", {"width": 3})], ids=lambda v: str(v)[:6]
)
def test_what_is_for_checkpoints_has_no_effect_on_runs(trained, name, value):
    message = refused(find_subjects, [trained], **{name: value})
    assert message.startswith(f"{name.removesuffix('s')}: has no effect, a run folder has its own recipe")


def test_what_is_no_target_is_refused(trained, tmp_path):
    assert refused(find_subjects, [tmp_path / "no"]) == f"{tmp_path / 'no'}: no such file or folder"
    for folder in (tmp_path, trained.parent):
        assert refused(find_subjects, [folder]).startswith(f"{folder}: holds no runs; name a run folder, <out>/")
    (tmp_path / "model.pt").touch()
    assert "is a checkpoint; name a recipe by --recipe" in refused(find_subjects, [tmp_path / "model.pt"])
    message = refused(find_subjects, [tmp_path / "model.pt"], recipe(), None, {"width": 3})
    assert message.startswith("option: has no effect without --model")


LABELS = {
    "one-file": (["a/model.pt"], ["model"]),
    "seeds": (["r/repr/seed-0/", "r/repr/seed-1/"], ["seed-0", "seed-1"]),
    "schemes": (["r/repr/seed-0/", "r/standard/seed-0/"], ["repr", "standard"]),
    "crossed": (
        ["r/repr/seed-0/", "r/standard/seed-1/", "r/repr/seed-1/"],
        ["repr/seed-0", "standard/seed-1", "repr/seed-1"],
    ),
    "outs": (["one/tiny/repr/seed-0/", "two/tiny/repr/seed-0/"], ["one", "two"]),
    "deep-and-flat": (["x/y/model.pt", "model.pt"], ["y", None]),
    "suffixes": (["a/model.pt", "a/model.pth"], ["model.pt", "model.pth"]),
    "file-and-folder": (["a/repr.pt", "a/repr/"], ["repr.pt", "repr"]),
    "dots": (["a/model.v1.pt", "a/model.v2.pt"], ["model.v1", "model.v2"]),
    "inside": (["w/seed-0/", "w/seed-0/w/seed-0/"], [None, "seed-0"]),
    "four": (["a/1/x.pt", "a/2/x.pt", "b/1/x.pt", "b/2/x.pt"], ["a/1", "a/2", "b/1", "b/2"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_short_and_differ(trained, tmp_path, case):
    paths, expected = LABELS[case]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            shutil.copytree(trained / "repr" / "seed-0", tmp_path / path, dirs_exist_ok=True)
        else:
            (tmp_path / path).touch()
    some_file = any(not path.endswith("/") for path in paths)
    subjects = find_subjects([tmp_path / path for path in paths], recipe() if some_file else None)
    labels = [subject.label for subject in subjects]
    assert len(set(labels)) == len(labels)
    assert [label if want else None for label, want in zip(labels, expected)] == expected


# --- checkpoint files


WRAPPED = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "both": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "both-turned": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 1},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_state_dict_is_found_in_what_training_code_saves(tmp_path, case):
    torch.save(WRAPPED[case](net().state_dict()), tmp_path / "model.pt")
    assert equal(loaded(tmp_path / "model.pt"), net().state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.model."])
def test_a_network_may_have_names_like_those_of_wrappers(tmp_path, prefix):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = net()

    saved, model = Holder(), Holder()
    nn.init.constant_(saved.model[0].weight, 0.5)
    # A wrapper that is called like the network's own part goes only where it is in the way.
    torch.save({f"{prefix}{key}": value for key, value in saved.state_dict().items()}, tmp_path / "model.pt")
    load_weights(model, state_dict_in(tmp_path / "model.pt"), tmp_path / "model.pt")
    assert equal(model.state_dict(), saved.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(tmp_path, dtype):
    torch.save(net().to(dtype).state_dict(), tmp_path / "model.pt")
    found = loaded(tmp_path / "model.pt")
    assert found["0.weight"].dtype == torch.float32
    torch.testing.assert_close(found["0.weight"], net().state_dict()["0.weight"], atol=0.01, rtol=0.01)


def test_the_labs_own_checkpoint_can_be_named_as_a_file(trained):
    file = trained / "repr" / "seed-0" / "last.pt"
    (subject,) = find_subjects([file], recipe())
    (source,) = subject.sources
    assert (subject.label, source.is_run, source.earlier(), source.metrics(), source.dropped()) == (
        "last", False, {}, [], {}
    )  # fmt: skip
    (run,) = find_subjects([file.parent])[0].sources
    assert equal(source.last(pytest.fail)[1], run.last(pytest.fail)[1])


@pytest.mark.parametrize("scheme", [{"name": "ema"}, {"name": "swa"}], ids=str)
def test_a_file_of_a_run_that_averages_weights_is_the_average_as_its_folder_is(tmp_path, scheme):
    asked = recipe(scheme=scheme)
    train(asked, scheme=scheme["name"], seed=0, out=tmp_path)
    folder = tmp_path / "tiny" / scheme["name"] / "seed-0"
    _, of_folder = find_subjects([folder])[0].sources[0].last(pytest.fail)
    of_file = state_dict_in(folder / "last.pt")
    assert equal(of_file, of_folder)
    assert not equal(of_file, torch.load(folder / "last.pt", weights_only=True)["model"])


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    file, marker = tmp_path / "model.pt", tmp_path / "ran"
    for content in (Payload(marker), {"model": net().state_dict(), "extra": Payload(marker)}):
        torch.save(content, file)
        assert f"{file}: torch cannot read it as weights (" in refused(state_dict_in, file)
        file.write_bytes(pickle.dumps(content))
        assert f"{file}: torch cannot read it as weights (" in refused(state_dict_in, file)
    assert not marker.exists()


def test_a_pickle_of_a_whole_network_is_refused(tmp_path):
    torch.save(net(), tmp_path / "model.pt")
    message = refused(state_dict_in, tmp_path / "model.pt")
    assert message.endswith("(Weights only load failed); save model.state_dict() alone by torch.save")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no state dict \(\), nor one under model, state_dict"),
        ({"epoch": 3, "lr": 0.1}, r"holds no state dict \('epoch', 'lr'\)"),
        ([torch.zeros(2)], r"holds no state dict \(list\)"),
        (torch.zeros(2), r"holds no state dict \(Tensor\)"),
        ({"model": {"layers": 3}}, r"holds no state dict \('model'\)"),
    ],
    ids=["empty", "numbers", "list", "tensor", "no-tensors"],
)
def test_a_file_without_weights_tells_what_it_has(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    assert re.search(message, refused(state_dict_in, tmp_path / "model.pt"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"weights: none\n"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert refused(state_dict_in, tmp_path / "model.pt").startswith(f"{tmp_path / 'model.pt'}: torch cannot read it")


def test_weights_of_another_network_are_refused_with_the_file(tmp_path):
    file = tmp_path / "other.pt"
    for other in (nn.Sequential(nn.Conv2d(1, 3, 3)), nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))):
        torch.save(other.state_dict(), file)
        message = refused(loaded, file)
        assert message.startswith(f"{file}: its weights do not fit Sequential (Error(s) in loading state_dict for ")
        assert message.endswith("; name the network they are of")


def test_weights_that_are_not_finite_are_told_by_name(tmp_path):
    state = net().state_dict()
    state["2.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "model.pt")
    assert refused(loaded, tmp_path / "model.pt") == (
        f"{tmp_path / 'model.pt'}: 2.weight is not finite, training has diverged; take an earlier checkpoint"
    )


# --- runs


def copied(trained, tmp_path, name="repr/seed-0"):
    return Path(shutil.copytree(trained / name, tmp_path / "copied" / name))


def source_of(folder):
    ((source,),) = (subject.sources for subject in find_subjects([folder]))
    return source


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed(tmp_path, monkeypatch, *, after):
    """The folder of a run that was cut off after so many epochs."""
    from torchreaper.lab import runs

    real = runs.RunFolder.save

    def save(self, epoch, *args, **options):
        real(self, epoch, *args, **options)
        if epoch == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(snapshots=1), scheme="repr", seed=0, out=tmp_path / "killed")
    return tmp_path / "killed" / "tiny" / "repr" / "seed-0"


def test_a_run_that_is_not_finished_is_noted(tmp_path, monkeypatch):
    folder, notes = killed(tmp_path, monkeypatch, after=1), []
    epoch, _ = source_of(folder).last(notes.append)
    assert epoch == 1
    assert notes == [f"{folder}: the run is not finished, this is epoch 1 of 5"]


@pytest.mark.parametrize("after", [2, 3])
def test_a_run_that_stopped_in_a_sub_network_phase_is_refused(tmp_path, monkeypatch, after):
    folder = killed(tmp_path, monkeypatch, after=after)
    assert refused(source_of(folder).last, pytest.fail) == (
        f"{folder}: stopped in a sub-network phase, at epoch {after} of 5, when part of the network was not there; "
        "finish the run before it is analysed"
    )


def test_a_run_without_checkpoint_is_refused(trained, tmp_path):
    folder = copied(trained, tmp_path)
    for name in ("last.pt", "previous.pt"):
        (folder / name).unlink()
    assert refused(source_of(folder).last, pytest.fail) == (
        f"{folder}: has no whole checkpoint; finish the run before it is analysed"
    )


def test_a_damaged_checkpoint_is_noted_and_left_where_it_is(trained, tmp_path):
    folder, notes = copied(trained, tmp_path), []
    (folder / "last.pt").write_bytes(b"damaged")
    before = everything(folder)
    epoch, _ = source_of(folder).last(notes.append)
    assert epoch == 4
    assert notes[0] == (f"{folder / 'last.pt'}: damaged, it does not agree with its checksum; using the one before")
    (folder / "previous.pt").unlink()
    assert "no whole checkpoint" in refused(source_of(folder).last, notes.append)
    assert everything(folder) == {name: data for name, data in before.items() if name != "previous.pt"}


def test_how_often_filters_were_dropped_is_what_the_events_say(trained):
    for seed in (0, 1):
        folder = trained / "repr" / f"seed-{seed}"
        drops = [event["filters"] for event in read_events(folder) if event["kind"] == "drop"]
        assert len(drops) == 1
        expected = {layer: dict.fromkeys(filters, 1) for layer, filters in drops[0].items()}
        assert source_of(folder).dropped() == expected
    assert source_of(trained / "standard" / "seed-0").dropped() == {}


def test_a_filter_that_is_dropped_in_two_cycles_counts_twice(trained, tmp_path):
    folder = copied(trained, tmp_path)
    events = [
        {"epoch": 1, "kind": "drop", "filters": {"conv2": [1, 3]}},
        {"epoch": 3, "kind": "restore", "filters": {"conv2": [1, 3]}},
        {"epoch": 4, "kind": "drop", "filters": {"conv2": [3], "c": [0]}},
        {"epoch": 6, "kind": "restore", "filters": {"c": [0]}, "scores": {"c": [0.5, 0.1]}},  # at once, with sub: 0
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "events.jsonl.sha256").unlink()
    assert source_of(folder).dropped() == {"conv2": {1: 1, 3: 2}, "c": {0: 2}}


# --- the network


def test_a_source_builds_the_network_of_its_recipe_or_another(trained, mine):
    run = source_of(trained / "repr" / "seed-0")
    assert run.build().conv1.out_channels == 6
    (mine / "x.pt").touch()

    def built(*args):
        return find_subjects([mine / "x.pt"], recipe(), *args)[0].sources[0].build()

    assert built().conv1.out_channels == 6
    assert built("cnet", {"depth": 3, "width": 5}).conv3.out_channels == 5
    assert built("mynets.nets:make", {"width": 9})[0].out_channels == 9
    assert "unknown model" in refused(built, "cnett")


def test_a_subject_is_its_label_and_sources(trained):
    assert [field.name for field in dataclasses.fields(Subject)] == ["label", "sources"]
